package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
)

// sharedStore is a memory store that several Sessions use, as servers use one database.
type sharedStore struct {
	backends.Store

	mu        sync.Mutex
	expected  map[backends.Key]bool
	listeners map[int]func(backends.Key)
	lost      chan struct{} // closed: connections of listeners end
	refuse    error         // of Listen
	asked     int           // GetExclusives
	told      int           // releases
}

func newSharedStore() *sharedStore {
	return &sharedStore{Store: memory.New(0), expected: make(map[backends.Key]bool), listeners: make(map[int]func(backends.Key)), lost: make(chan struct{})}
}

func (s *sharedStore) Expect(ctx context.Context, key backends.Key) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.Store.Get(ctx, key, backends.Token{})
	if !isLocked(err) {
		return false, nil
	}
	s.expected[key] = true
	return true, nil
}

func (s *sharedStore) Listen(ctx context.Context, ready func(), released func(backends.Key)) error {
	s.mu.Lock()
	if s.refuse != nil {
		defer s.mu.Unlock()
		return s.refuse
	}
	n, lost := len(s.listeners), s.lost
	s.listeners[n] = released
	s.mu.Unlock()
	ready()
	select {
	case <-ctx.Done():
	case <-lost:
	}
	return errors.New("connection lost")
}

func (s *sharedStore) tell(key backends.Key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || !s.expected[key] {
		return
	}
	delete(s.expected, key)
	s.told++
	for _, released := range s.listeners {
		go released(key)
	}
}

func (s *sharedStore) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	return s.Store.GetExclusive(ctx, key, tok)
}

func (s *sharedStore) Release(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (bool, error) {
	mark, err := s.Store.Release(ctx, key, tok, cookie, cond)
	s.tell(key, err)
	return mark, err
}

func (s *sharedStore) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	err := s.Store.Set(ctx, key, tok, w)
	s.tell(key, err)
	return err
}

func (s *sharedStore) counts() (asked, told int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.told
}

// twoServers are Sessions over one store, with one session.
func twoServers(t *testing.T, refuse error, test func(t *testing.T, store *sharedStore, a, b *waitRig)) {
	synctest.Test(t, func(t *testing.T) {
		store := newSharedStore()
		store.refuse = refuse
		var rigs [2]*waitRig
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		for i := range rigs {
			r := &waitRig{retryRig: &retryRig{Sessions: NewSessions(store, budget, slog.New(slog.DiscardHandler))}}
			r.SetLockWait(lockWait)
			r.session = Session{App: r.Application("shop"), ID: "1"}
			running.Go(func() { r.Run(ctx) })
			rigs[i] = r
		}
		synctest.Wait()
		if err := rigs[0].set("first", backends.NoCookie); err != nil {
			t.Fatal(err)
		}
		test(t, store, rigs[0], rigs[1])
		cancel()
		running.Wait()
		for _, r := range rigs {
			if err := r.leftBehind(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A release on one server hands the lock to who waits on another, at once and each time.
func TestLockIsHandedToAnotherServer(t *testing.T) {
	twoServers(t, nil, func(t *testing.T, store *sharedStore, a, b *waitRig) {
		holder := a.begin(true, "")
		waiters := []*call{b.begin(true, ""), b.begin(true, ""), b.begin(true, "")}
		asked, _ := store.counts()
		time.Sleep(100 * time.Millisecond)
		if now, _ := store.counts(); now != asked {
			t.Errorf("%d questions were asked while requests waited", now-asked)
		}
		for i, w := range waiters {
			// The web server sends its Set to whichever server it has a connection to: always a here.
			if err := a.set(fmt.Sprint(i), holder.item.LockCookie); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if !w.isDone() || w.err != nil || w.took != 100*time.Millisecond {
				t.Fatalf("waiter %d: done %v after %v, %v", i, w.isDone(), w.took, w.err)
			}
			holder = w
		}
		a.set("last", holder.item.LockCookie)
		if _, told := store.counts(); told != 3 {
			t.Errorf("%d releases were told, want the 3 that somebody waited for", told)
		}
	})
}

// Where the store does not tell, the first waiter asks again, seldom enough.
func TestWithoutTellingTheFirstWaiterAsksAgain(t *testing.T) {
	twoServers(t, fmt.Errorf("behind a pooler: %w", errors.ErrUnsupported), func(t *testing.T, store *sharedStore, a, b *waitRig) {
		holder := a.begin(true, "")
		first, second := b.begin(true, ""), b.begin(true, "")
		asked, _ := store.counts()
		time.Sleep(500 * time.Millisecond)
		now, _ := store.counts()
		if polls := now - asked; polls < 3 || polls > 12 {
			t.Errorf("%d questions in 500 ms of waiting", polls)
		}
		a.set("second", holder.item.LockCookie)
		time.Sleep(2 * pollMost)
		synctest.Wait()
		if !first.isDone() || first.err != nil || second.isDone() {
			t.Errorf("first: done %v, %v; second: done %v", first.isDone(), first.err, second.isDone())
		}
		second.hangUp()
		synctest.Wait()
	})
}

// A listener that lost its connection polls, and listens again.
func TestListenerThatLostItsConnection(t *testing.T) {
	twoServers(t, nil, func(t *testing.T, store *sharedStore, a, b *waitRig) {
		holder := a.begin(true, "")
		store.mu.Lock()
		clear(store.listeners)
		close(store.lost)
		store.lost = make(chan struct{})
		store.mu.Unlock()
		synctest.Wait()
		w := b.begin(true, "")
		a.set("second", holder.item.LockCookie)
		time.Sleep(2 * pollMost)
		synctest.Wait()
		if !w.isDone() || w.err != nil {
			t.Fatalf("done %v, %v", w.isDone(), w.err)
		}
		time.Sleep(listenAgain)
		a.set("third", w.item.LockCookie)
		holder = a.begin(true, "")
		next := b.begin(true, "")
		a.set("fourth", holder.item.LockCookie)
		synctest.Wait()
		if !next.isDone() || next.err != nil || next.took != 0 {
			t.Errorf("done %v after %v, %v", next.isDone(), next.took, next.err)
		}
	})
}
