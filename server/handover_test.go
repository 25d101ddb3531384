package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
)

const lockWait = time.Second

// waitRig is Sessions whose requests wait for locks, with one session "first".
type waitRig struct {
	*retryRig
	mu         sync.Mutex
	statements int
	stop       func()
}

func newWaitRig() (*waitRig, error) {
	store := &backendtest.Failing{Store: memory.New(0)}
	r := &waitRig{retryRig: &retryRig{Sessions: NewSessions(store, budget, slog.New(slog.DiscardHandler)), store: store}}
	r.SetLockWait(lockWait)
	r.session = Session{App: r.Application("shop"), ID: "1"}
	store.Fail(func(_ context.Context, op string, apply func() error) error {
		r.mu.Lock()
		r.statements++
		r.mu.Unlock()
		return apply()
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	r.stop = func() { cancel(); <-done }
	return r, r.set("first", backends.NoCookie)
}

func waiting(t *testing.T, test func(t *testing.T, r *waitRig)) {
	synctest.Test(t, func(t *testing.T) {
		r, err := newWaitRig()
		if err != nil {
			t.Fatal(err)
		}
		test(t, r)
		r.stop()
		synctest.Wait()
		if err := r.leftBehind(); err != nil {
			t.Error(err)
		}
	})
}

// leftBehind is what is still queued.
func (r *waitRig) leftBehind() error {
	h := &r.handover
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queues) != 0 || len(h.clients) != 0 || r.Waiting() != 0 {
		return fmt.Errorf("left behind: %d queues, %d clients, %d waiters", len(h.queues), len(h.clients), r.Waiting())
	}
	return nil
}

func (r *waitRig) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.statements
}

// call is a request under way.
type call struct {
	exclusive bool
	begun     time.Time
	gone      chan struct{}
	hangUp    func()
	done      chan struct{}
	item      backends.Item
	err       error
	took      time.Duration
}

// begin sends a request; it returns when the request is answered or waits.
func (r *waitRig) begin(exclusive bool, client string) *call {
	c := &call{exclusive: exclusive, begun: time.Now(), gone: make(chan struct{}), done: make(chan struct{})}
	c.hangUp = sync.OnceFunc(func() { close(c.gone) })
	req := Request{Arrived: c.begun, Watch: func() (<-chan struct{}, func()) { return c.gone, func() {} }}
	if client != "" {
		req.Client = netip.MustParseAddr(client)
	}
	session := r.session
	go func() {
		defer close(c.done)
		if exclusive {
			c.item, c.err = r.GetExclusive(context.Background(), req, session)
		} else {
			c.item, c.err = r.Get(context.Background(), req, session)
		}
		c.took = time.Since(c.begun)
	}()
	synctest.Wait()
	return c
}

func (c *call) isDone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func isLocked(err error) bool {
	_, ok := errors.AsType[*backends.LockedError](err)
	return ok
}

// Eight pages of one session, 40 ms each, sent at once, take 320 ms.
func TestLockIsHandedOverInOrderOfArrival(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		var calls []*call
		for range 8 {
			calls = append(calls, r.begin(true, ""))
		}
		before := r.count()
		begun := time.Now()
		for i, c := range calls {
			if !c.isDone() || c.err != nil || c.item.LockCookie != backends.Cookie(i+2) {
				t.Fatalf("request %d: done %v, cookie %d, %v; want the lock %d", i, c.isDone(), c.item.LockCookie, c.err, i+2)
			}
			for j, other := range calls[i+1:] {
				if other.isDone() {
					t.Fatalf("request %d was answered (%v) while %d has the lock", i+1+j, other.err, i)
				}
			}
			if r.count() != before {
				t.Fatalf("%d statements were made while requests waited", r.count()-before)
			}
			time.Sleep(40 * time.Millisecond)
			if i%2 == 0 {
				if err := r.set(fmt.Sprint("page ", i), c.item.LockCookie); err != nil {
					t.Fatal(err)
				}
			} else if _, err := r.Release(context.Background(), now(), r.session, c.item.LockCookie, backends.IfUnlocked); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			before = r.count()
		}
		if took := time.Since(begun); took != 320*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// Plain Gets queued before the next GetExclusive all see what the release left, for one statement;
// then the lock passes on.
func TestReadersShareARelease(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		readers := []*call{r.begin(false, ""), r.begin(false, ""), r.begin(false, "")}
		next := r.begin(true, "")
		late := r.begin(false, "")
		before := r.count()
		if err := r.set("second", holder.item.LockCookie); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i, c := range readers {
			if !c.isDone() || c.err != nil || string(c.item.Data) != "second" {
				t.Errorf("reader %d: done %v, %q, %v", i, c.isDone(), c.item.Data, c.err)
			}
		}
		if !next.isDone() || next.err != nil || late.isDone() {
			t.Errorf("the next lock: done %v, %v; the reader behind it: done %v", next.isDone(), next.err, late.isDone())
		}
		if got := r.count() - before; got != 3 {
			t.Errorf("%d statements, want 3: the Set, one Get, one GetExclusive", got)
		}
		if err := r.set("third", next.item.LockCookie); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !late.isDone() || string(late.item.Data) != "third" {
			t.Errorf("the late reader: done %v, %q", late.isDone(), late.item.Data)
		}
	})
}

func TestRemoveAnswersAllWhoWait(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		calls := []*call{r.begin(true, ""), r.begin(false, ""), r.begin(false, ""), r.begin(true, "")}
		if err := r.Remove(context.Background(), now(), r.session, holder.item.LockCookie, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for i, c := range calls {
			if !c.isDone() || !errors.Is(c.err, backends.ErrNotFound) {
				t.Errorf("request %d: done %v, %v; want not found", i, c.isDone(), c.err)
			}
		}
	})
}

func TestTimeOverIsAnsweredWithTheTrueLock(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		time.Sleep(300 * time.Millisecond)
		c := r.begin(true, "")
		<-c.done
		locked, ok := errors.AsType[*backends.LockedError](c.err)
		if !ok || locked.Cookie != holder.item.LockCookie || locked.Age != lockWait+300*time.Millisecond || c.took != lockWait {
			t.Errorf("answered %v after %v", c.err, c.took)
		}
		// Its lock is old by now: the next is not kept waiting.
		if c := r.begin(true, ""); !c.isDone() || !isLocked(c.err) {
			t.Errorf("a lock older than lockWait: done %v, %v", c.isDone(), c.err)
		}
		r.SetLockWait(0)
		r.Release(context.Background(), now(), r.session, holder.item.LockCookie, backends.IfUnlocked)
		r.begin(true, "")
		if c := r.begin(true, ""); !c.isDone() || !isLocked(c.err) {
			t.Errorf("with lockWait 0: done %v, %v", c.isDone(), c.err)
		}
	})
}

func TestWaitersAreBounded(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		r.begin(true, "")
		var waiters []*call
		for i := range maxWaiters {
			waiters = append(waiters, r.begin(true, fmt.Sprintf("192.0.2.%d", i)))
		}
		if c := r.begin(true, "192.0.2.200"); !c.isDone() || !isLocked(c.err) {
			t.Errorf("waiter %d of a session: done %v, %v", maxWaiters+1, c.isDone(), c.err)
		}
		for _, c := range waiters {
			c.hangUp()
		}
		synctest.Wait()
		for i := range maxWaitersOfClient {
			session := Session{App: r.session.App, ID: fmt.Sprint("session ", i)}
			r.Set(context.Background(), now(), session, backends.Write{Data: []byte("x")})
			was := r.session
			r.session = session
			r.begin(true, "")
			if c := r.begin(true, "192.0.2.1"); c.isDone() {
				t.Fatalf("waiter %d of a client: %v", i+1, c.err)
			}
			r.session = was
		}
		if c := r.begin(true, "192.0.2.1"); !c.isDone() || !isLocked(c.err) {
			t.Errorf("waiter %d of a client: done %v, %v", maxWaitersOfClient+1, c.isDone(), c.err)
		}
		if c := r.begin(true, "192.0.2.2"); c.isDone() {
			t.Errorf("another client: %v", c.err)
		}
		time.Sleep(2 * lockWait)
	})
}

func TestWhoHasGoneLeavesTheQueue(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		first, second, third := r.begin(true, ""), r.begin(true, ""), r.begin(true, "")
		second.hangUp()
		synctest.Wait()
		if !second.isDone() || backends.IsAnswer(second.err) {
			t.Errorf("who has gone was answered %v", second.err)
		}
		r.set("x", holder.item.LockCookie)
		synctest.Wait()
		// It goes after it got the lock and before it is told.
		if !first.isDone() || third.isDone() {
			t.Fatalf("first done %v, third done %v", first.isDone(), third.isDone())
		}
		r.set("y", first.item.LockCookie)
		synctest.Wait()
		if !third.isDone() || third.err != nil {
			t.Errorf("third: done %v, %v", third.isDone(), third.err)
		}
	})
}

// A lock granted to somebody who went meanwhile goes to the next.
func TestLockOfWhoHasGonePassesOn(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		first, second := r.begin(true, ""), r.begin(true, "")
		count := r.statements
		r.store.Fail(func(_ context.Context, op string, apply func() error) error {
			err := apply()
			if op == "get exclusive" && err == nil {
				first.hangUp() // in the moment of the grant
			}
			return err
		})
		r.set("x", holder.item.LockCookie)
		synctest.Wait()
		if !first.isDone() || backends.IsAnswer(first.err) || !second.isDone() || second.err != nil {
			t.Errorf("first %v; second done %v, %v (%d)", first.err, second.isDone(), second.err, count)
		}
	})
}

// With waiters queued, a newcomer does not overtake them, not even in the moment of a release.
func TestNewcomerDoesNotOvertake(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		first := r.begin(true, "")
		newcomer := &call{done: make(chan struct{})}
		var arrived atomic.Bool
		r.store.Fail(func(_ context.Context, op string, apply func() error) error {
			// The first "get exclusive" is first's: the session is free at this moment.
			if op == "get exclusive" && arrived.CompareAndSwap(false, true) {
				go func() {
					newcomer.item, newcomer.err = r.GetExclusive(context.Background(), now(), r.session)
					close(newcomer.done)
				}()
				time.Sleep(time.Millisecond)
			}
			return apply()
		})
		r.set("x", holder.item.LockCookie)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if !first.isDone() || first.err != nil || newcomer.isDone() {
			t.Fatalf("first: done %v, %v; newcomer done %v", first.isDone(), first.err, newcomer.isDone())
		}
		r.set("y", first.item.LockCookie)
		synctest.Wait()
		if !newcomer.isDone() || newcomer.err != nil || string(newcomer.item.Data) != "y" {
			t.Errorf("newcomer: done %v, %q, %v", newcomer.isDone(), newcomer.item.Data, newcomer.err)
		}
	})
}

// A release between the answer "locked" and the place in the queue wakes the waiter all the same.
func TestReleaseJustBeforeJoiningIsNotLost(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		var once sync.Once
		r.store.Fail(func(_ context.Context, op string, apply func() error) error {
			err := apply()
			if isLocked(err) {
				once.Do(func() { r.set("x", holder.item.LockCookie) })
			}
			return err
		})
		if c := r.begin(true, ""); !c.isDone() || c.err != nil {
			t.Errorf("done %v, %v", c.isDone(), c.err)
		}
	})
}

func TestDrainAnswersAllWhoWait(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		r.begin(true, "")
		calls := []*call{r.begin(true, ""), r.begin(false, "")}
		r.Drain()
		synctest.Wait()
		for _, c := range append(calls, r.begin(true, "")) {
			if !c.isDone() || !isLocked(c.err) || c.took != 0 {
				t.Errorf("done %v after %v: %v", c.isDone(), c.took, c.err)
			}
		}
	})
}

// The mark is cleared by the first question; who then waits still has to tell of it.
func TestMarkIsToldAfterWaiting(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		r.session.ID = "2"
		r.Set(context.Background(), now(), r.session, backends.Write{Data: []byte("x"), Condition: backends.IfMissing, Uninitialized: true, Timeout: time.Hour})
		locking := &locksBehind{Store: r.store}
		r.Sessions.setRoute(newRoute(locking))
		c, other := r.begin(true, ""), (*call)(nil)
		r.Sessions.setRoute(newRoute(r.store))
		other = r.begin(true, "")
		r.Release(context.Background(), now(), r.session, 2, backends.IfUnlocked)
		synctest.Wait()
		if !c.isDone() || c.err != nil || !c.item.Uninitialized || other.isDone() {
			t.Errorf("done %v, marked %v, %v", c.isDone(), c.item.Uninitialized, c.err)
		}
		r.Release(context.Background(), now(), r.session, c.item.LockCookie, backends.IfUnlocked)
		synctest.Wait()
		if !other.isDone() || other.item.Uninitialized {
			t.Errorf("the next: done %v, marked %v", other.isDone(), other.item.Uninitialized)
		}
		// Also when the time is over.
		r.session.ID = "3"
		r.Set(context.Background(), now(), r.session, backends.Write{Data: []byte("x"), Condition: backends.IfMissing, Uninitialized: true, Timeout: time.Hour})
		locking.once = sync.Once{}
		r.Sessions.setRoute(newRoute(locking))
		c = r.begin(true, "")
		<-c.done
		if locked, ok := errors.AsType[*backends.LockedError](c.err); !ok || !locked.Uninitialized {
			t.Errorf("answered %v", c.err)
		}
	})
}

// locksBehind is a store in which somebody else takes the lock just before a GetExclusive, without
// clearing the mark.
type locksBehind struct {
	backends.Store
	once sync.Once
}

func (s *locksBehind) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (item backends.Item, err error) {
	first := false
	s.once.Do(func() { first = true })
	item, err = s.Store.GetExclusive(ctx, key, tok)
	if first {
		return backends.Item{}, &backends.LockedError{Cookie: item.LockCookie, Uninitialized: item.Uninitialized}
	}
	return item, err
}

// A release during a turn that found the session locked once more gives another turn.
func TestReleaseDuringATurnIsNotLost(t *testing.T) {
	waiting(t, func(t *testing.T, r *waitRig) {
		holder := r.begin(true, "")
		c := r.begin(true, "")
		var once sync.Once
		r.store.Fail(func(ctx context.Context, op string, apply func() error) (err error) {
			if op != "get exclusive" {
				return apply()
			}
			err = apply()
			once.Do(func() { // somebody else, on another server, was quicker
				r.store.Store.Release(ctx, r.session.App.key("1"), backends.Token{}, 3, backends.IfUnlocked)
				other, err2 := r.store.Store.GetExclusive(ctx, r.session.App.key("1"), backends.Token{})
				if err2 != nil {
					panic(err2)
				}
				err = &backends.LockedError{Cookie: other.LockCookie}
				r.Release(ctx, now(), r.session, other.LockCookie, backends.IfUnlocked)
			})
			return err
		})
		r.set("x", holder.item.LockCookie)
		synctest.Wait()
		if !c.isDone() || c.err != nil || c.took != 0 {
			t.Errorf("done %v after %v, %v", c.isDone(), c.took, c.err)
		}
	})
}

// A reader's time may be over at the very moment when another reader answers for it.
func TestReaderWhoseTimeIsOverMayHaveBeenAnswered(t *testing.T) {
	s := NewSessions(memory.New(0), budget, slog.New(slog.DiscardHandler))
	h, key := &s.handover, backends.Key{ID: "1"}
	first := h.join(key, false, netip.Addr{}, h.epoch(key).Load(), true)
	second := h.join(key, false, netip.Addr{}, h.epoch(key).Load(), true)
	h.share(key, first, found{})
	h.leave(key, first, false)
	h.share(key, second, found{}) // as after its last question
	h.leave(key, second, false)
	if n := s.Waiting(); n != 0 {
		t.Errorf("%d requests wait, want none", n)
	}
}
