package backendtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
)

// counterData is a session's content with a counter in it, and is as long as a small page's.
func counterData(n uint64) []byte {
	data := randomData(64)
	binary.LittleEndian.PutUint64(data, n)
	return data
}

// race runs f n times at once, as nearly as can be.
func race(n int, f func(i int)) {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	ready.Add(n)
	for i := range n {
		done.Go(func() {
			ready.Done()
			<-start
			f(i)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
}

var concurrencyCases = []testCase{
	{"no update under the lock is lost, and no cookie is given out twice", func(s *suite) {
		const workers, sessions = 16, 4
		increments := 50 // each worker's
		if testing.Short() {
			increments = 10
		}
		type session struct {
			key     backends.Key
			mu      sync.Mutex
			cookies []backends.Cookie // as they were given out
		}
		var all [sessions]session
		for i := range all {
			all[i].key = s.key()
			w := write(timeout)
			w.Data = counterData(0)
			s.set(all[i].key, w)
		}
		var wg sync.WaitGroup
		for worker := range workers {
			wg.Go(func() {
				for i := range increments {
					se := &all[(worker+i)%sessions]
					item, err := s.Store.GetExclusive(s.ctx, se.key, newToken())
					for !s.Failed() {
						if _, locked := errors.AsType[*backends.LockedError](err); !locked {
							break
						}
						runtime.Gosched()
						item, err = s.Store.GetExclusive(s.ctx, se.key, newToken())
					}
					if err != nil {
						s.Errorf("GetExclusive: %v", err)
						return
					}
					se.mu.Lock()
					se.cookies = append(se.cookies, item.LockCookie)
					se.mu.Unlock()
					w := write(timeout)
					w.Data = counterData(binary.LittleEndian.Uint64(item.Data) + 1)
					w.LockCookie = item.LockCookie
					if err := s.Store.Set(s.ctx, se.key, newToken(), w); err != nil {
						s.Errorf("Set under the lock: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		var sum uint64
		for i := range all {
			item := s.get(all[i].key)
			n := binary.LittleEndian.Uint64(item.Data)
			sum += n
			if uint64(item.LockCookie) != n+1 {
				s.Errorf("session %d was incremented %d times and its cookie is %d", i, n, item.LockCookie)
			}
			for j, cookie := range all[i].cookies {
				if want := backends.Cookie(j + 2); cookie != want {
					s.Fatalf("session %d: lock number %d has cookie %d, want %d", i, j+1, cookie, want)
				}
			}
		}
		if want := uint64(workers * increments); sum != want {
			s.Fatalf("the counters add up to %d, want %d: updates are lost", sum, want)
		}
	}},
	{"of racing creators IfMissing exactly one wins", func(s *suite) {
		for round := range 20 {
			key := s.key()
			if round%2 == 0 { // over nothing, and over an expired session
				s.createLocked(key)
				s.expire(key, timeout)
			}
			writes := make([]backends.Write, 8)
			var wins atomic.Int32
			var winner atomic.Int32
			for i := range writes {
				writes[i] = write(timeout)
				writes[i].Condition, writes[i].Uninitialized = backends.IfMissing, true
			}
			race(len(writes), func(i int) {
				switch err := s.Store.Set(s.ctx, key, newToken(), writes[i]); {
				case err == nil:
					wins.Add(1)
					winner.Store(int32(i))
				case !errors.Is(err, backends.ErrExists):
					s.Errorf("Set IfMissing: %v", err)
				}
			})
			if wins.Load() != 1 {
				s.Fatalf("%d of %d creators won", wins.Load(), len(writes))
			}
			s.holds(key, writes[winner.Load()], 1)
		}
	}},
	{"of racing GetExclusives exactly one gets the lock", func(s *suite) {
		key := s.key()
		w := s.create(key)
		for round := range 20 {
			cookie := backends.Cookie(round + 2)
			var wins atomic.Int32
			race(8, func(int) {
				item, err := s.Store.GetExclusive(s.ctx, key, newToken())
				if err == nil {
					wins.Add(1)
					if item.LockCookie != cookie {
						s.Errorf("lock cookie is %d, want %d", item.LockCookie, cookie)
					}
					return
				}
				if locked, ok := errors.AsType[*backends.LockedError](err); !ok || locked.Cookie != cookie {
					s.Errorf("GetExclusive: %v, want a LockedError with cookie %d", err, cookie)
				}
			})
			if wins.Load() != 1 {
				s.Fatalf("%d of 8 got the lock", wins.Load())
			}
			s.release(key, cookie)
			s.holds(key, w, cookie)
		}
	}},
	{"of racing readers exactly one sees Uninitialized", func(s *suite) {
		for range 60 {
			key := s.key()
			s.createUninitialized(key)
			var seen atomic.Int32
			race(8, func(i int) {
				var mark bool
				var err error
				switch i % 3 {
				case 0:
					var item backends.Item
					item, err = s.Store.Get(s.ctx, key, newToken())
					mark = item.Uninitialized
				case 1:
					mark, err = s.Store.Release(s.ctx, key, newToken(), 2, backends.IfUnlocked)
				default:
					var item backends.Item
					item, err = s.Store.GetExclusive(s.ctx, key, newToken())
					mark = item.Uninitialized
				}
				if locked, ok := errors.AsType[*backends.LockedError](err); ok {
					mark = locked.Uninitialized
				} else if err != nil {
					s.Errorf("a racing reader: %v", err)
				}
				if mark {
					seen.Add(1)
				}
			})
			if seen.Load() != 1 {
				s.Fatalf("%d of 8 readers saw the mark", seen.Load())
			}
		}
	}},
	{"of racing Sets under one lock exactly one is under it", func(s *suite) {
		for range 20 {
			key := s.key()
			s.createLocked(key)
			var wins atomic.Int32
			race(4, func(i int) {
				w := write(timeout)
				w.LockCookie = backends.Cookie(i) // 2 is the lock's
				w.Condition = backends.IfCookie
				err := s.Store.Set(s.ctx, key, newToken(), w)
				if err == nil {
					wins.Add(1)
				} else if !errors.Is(err, backends.ErrConflict) {
					s.Errorf("Set: %v", err)
				}
			})
			if wins.Load() != 1 {
				s.Fatalf("%d Sets were stored, want the lock holder's only", wins.Load())
			}
			s.get(key)
		}
	}},
	{"a write without the lock never lands under it", func(s *suite) {
		key := s.key()
		s.create(key)
		rounds := 100
		if testing.Short() {
			rounds = 20
		}
		stop := make(chan struct{})
		var writers, holders sync.WaitGroup
		for range 3 {
			writers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					err := s.Store.Set(s.ctx, key, newToken(), write(timeout))
					if _, locked := errors.AsType[*backends.LockedError](err); !locked && err != nil {
						s.Errorf("Set: %v", err)
						return
					}
					runtime.Gosched()
				}
			})
		}
		for range 2 {
			holders.Go(func() {
				s := s.forWorker()
				for held := 0; held < rounds; {
					item, err := s.Store.GetExclusive(s.ctx, key, newToken())
					if _, locked := errors.AsType[*backends.LockedError](err); locked {
						runtime.Gosched()
						continue
					}
					s.is("GetExclusive", err, nil)
					held++
					for range 3 {
						s.locked(key, item.LockCookie)
						runtime.Gosched()
					}
					s.release(key, item.LockCookie)
				}
			})
		}
		holders.Wait()
		close(stop)
		writers.Wait()
	}},
	{"of racing Removes exactly one finds the session", func(s *suite) {
		for range 20 {
			key := s.key()
			s.create(key)
			var wins atomic.Int32
			race(8, func(int) {
				err := s.Store.Remove(s.ctx, key, newToken(), 1, backends.IfUnlocked)
				if err == nil {
					wins.Add(1)
				} else if !errors.Is(err, backends.ErrNotFound) {
					s.Errorf("Remove: %v", err)
				}
			})
			if wins.Load() != 1 {
				s.Fatalf("%d of 8 Removes succeeded", wins.Load())
			}
			s.missing(key)
		}
	}},
	{"of racing registrations all get the same AppID", func(s *suite) {
		for round := range 10 {
			// A pair that collides, as far as the first round goes.
			names := []string{fmt.Sprintf("/lm/w3svc/%d/root", round+10), fmt.Sprintf("/lm/w3svc/%d/root/shop", round+10)}
			if round == 0 && !s.Collides {
				names = []string{"/lm/w3svc/1/root/ozbyjek", "/lm/w3svc/1/root/vewemtr"}
			}
			var got [8]backends.AppID
			race(len(got), func(i int) {
				id, err := s.Store.Application(s.ctx, names[i%2], true)
				if err != nil {
					s.Errorf("Application: %v", err)
				}
				got[i] = id
			})
			for i, id := range got {
				if id != got[i%2] {
					s.Fatalf("%s has AppIDs %d and %d", names[i%2], got[i%2], id)
				}
			}
			if got[0] == got[1] {
				s.Fatalf("%s and %s share AppID %d", names[0], names[1], got[0])
			}
		}
	}},
	{"a reader never sees half of a write", func(s *suite) {
		key := s.key()
		pattern := func(b byte) backends.Write {
			w := write(time.Duration(b) * minute)
			w.Data = bytes.Repeat([]byte{b}, 20000+int(b))
			return w
		}
		s.set(key, pattern(1))
		rounds := 100
		if testing.Short() {
			rounds = 20
		}
		var wg sync.WaitGroup
		for writer := range 2 {
			wg.Go(func() {
				for i := range rounds {
					if err := s.Store.Set(s.ctx, key, newToken(), pattern(byte(1+2*(i%50)+writer))); err != nil {
						s.Errorf("Set: %v", err)
					}
				}
			})
		}
		for range 4 {
			wg.Go(func() {
				for range rounds {
					item, err := s.Store.Get(s.ctx, key, newToken())
					if err != nil {
						s.Errorf("Get: %v", err)
						return
					}
					want := pattern(item.Data[0])
					if !bytes.Equal(item.Data, want.Data) || item.Timeout != want.Timeout {
						s.Errorf("read %s with timeout %v: of two writes", brief(item.Data), item.Timeout)
						return
					}
				}
			})
		}
		wg.Wait()
	}},
	{"a write is seen by every call that begins after it", func(s *suite) {
		key := s.key()
		w := write(timeout)
		w.Data = counterData(0)
		s.set(key, w)
		rounds := uint64(200)
		if testing.Short() {
			rounds = 50
		}
		var written atomic.Uint64
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := uint64(1); i <= rounds; i++ {
				w := write(timeout)
				w.Data = counterData(i)
				if err := s.Store.Set(s.ctx, key, newToken(), w); err != nil {
					s.Errorf("Set: %v", err)
				}
				written.Store(i)
			}
		})
		for range 4 {
			wg.Go(func() {
				for {
					least := written.Load()
					item, err := s.Store.Get(s.ctx, key, newToken())
					if err != nil {
						s.Errorf("Get: %v", err)
						return
					}
					if n := binary.LittleEndian.Uint64(item.Data); n < least {
						s.Errorf("Get gives write %d after write %d was acknowledged", n, least)
						return
					}
					if least == rounds {
						return
					}
				}
			})
		}
		wg.Wait()
	}},
}
