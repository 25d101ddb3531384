package backendtest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

var importCases = []testCase{
	{"takes in sessions as they stood", func(s *suite) {
		s.enter(move("one"))
		var all []backends.Session
		for _, timeout := range []time.Duration{timeout, minute, 525600 * minute, backends.NeverExpires} {
			for _, locked := range []bool{false, true} {
				for _, mark := range []bool{false, true} {
					for _, left := range []time.Duration{30 * time.Second, timeout, timeout + backends.Slack(timeout)} {
						session := s.foreign()
						session.Timeout, session.Left, session.Locked, session.Uninitialized = timeout, left, locked, mark
						if timeout == backends.NeverExpires {
							session.Left = 0
						}
						session.Data = randomData(1 + len(all)*400)
						session.Size = len(session.Data)
						all = append(all, session)
					}
				}
			}
		}
		begun := time.Now()
		s.imports("one", len(all), all...)
		for _, session := range all {
			s.isImported(session)
		}
		oldest := func(age time.Duration) time.Duration { return age + time.Since(begun) + time.Second } // for the clocks' resolution
		for _, session := range all {
			if session.Locked {
				locked := s.lockedWith(session.Key, session.LockCookie, session.Uninitialized)
				s.between("the lock's age", locked.Age, session.LockAge, oldest(session.LockAge))
				w := write(session.Timeout)
				w.LockCookie = session.LockCookie
				s.set(session.Key, w)
				s.holds(session.Key, w, session.LockCookie)
			} else {
				item := s.get(session.Key)
				s.sameItem(item, backends.Write{Data: session.Data, Timeout: session.Timeout}, session.LockCookie)
				s.between("the last lock's age", item.LockAge, session.LockAge-time.Millisecond, oldest(session.LockAge))
				if item.Uninitialized != session.Uninitialized {
					s.Fatalf("the mark is %t, want %t", item.Uninitialized, session.Uninitialized)
				}
			}
			if c := s.lock(session.Key); c != session.LockCookie+1 {
				s.Fatalf("the next lock has cookie %d, want %d", c, session.LockCookie+1)
			}
		}
	}},
	{"lets a session live for what was left of it, and then as ever", func(s *suite) {
		s.enter(move("one"))
		untouched, touched, swept := s.foreign(), s.foreign(), s.foreign()
		s.imports("one", 3, untouched, touched, swept)
		s.get(touched.Key)
		for _, session := range []backends.Session{untouched, touched, swept} {
			s.backdate(session.Key, 10*minute-margin)
			s.inspect(session.Key)
			s.backdate(session.Key, margin+tick)
		}
		_, err := s.movable().Inspect(s.ctx, untouched.Key)
		s.is("Inspect", err, backends.ErrNotFound)
		s.exists(touched.Key)
		s.deleteExpired(10, 2)
		s.missing(untouched.Key)
		s.exists(touched.Key)
		s.expire(touched.Key, timeout)
		s.missing(touched.Key)
	}},
	{"imports each session once in a move, whatever becomes of it", func(s *suite) {
		s.enter(move("one"))
		kept, removed, expired, anew := s.foreign(), s.foreign(), s.foreign(), s.foreign()
		all := []backends.Session{kept, removed, expired, anew}
		s.imports("one", 4, all...)
		for _, session := range []backends.Session{removed, anew} {
			s.is("Remove", s.Store.Remove(s.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie), nil)
		}
		s.backdate(expired.Key, 11*minute)
		w := s.create(anew.Key)
		for _, sweep := range []bool{false, true} {
			if sweep {
				_, err := s.Store.DeleteExpired(s.ctx, 100)
				s.is("DeleteExpired", err, nil)
			}
			s.imports("one", 0, all...)
			for _, session := range all {
				s.imports("one", 0, session)
			}
			s.missing(removed.Key)
			s.missing(expired.Key)
			s.holds(anew.Key, w, 1)
			s.holds(kept.Key, backends.Write{Data: kept.Data, Timeout: timeout}, kept.LockCookie)
		}
	}},
	{"leaves a session that is there as it is", func(s *suite) {
		s.enter(move("one"))
		for _, id := range []string{"one", ""} {
			there, expired, locked := s.foreign(), s.foreign(), s.foreign()
			w := s.create(there.Key)
			s.create(expired.Key)
			s.expire(expired.Key, timeout)
			s.createLocked(locked.Key)
			s.imports(id, 1, there, expired, locked)
			s.holds(there.Key, w, 1)
			s.locked(locked.Key, 2)
			s.isImported(expired)
			s.imports(id, 0, there, expired, locked)
		}
	}},
	{"takes the first of two with one key, and none with less than nothing left", func(s *suite) {
		s.enter(move("one"))
		for _, id := range []string{"one", ""} {
			first := s.foreign()
			second := s.foreign()
			second.Key = first.Key
			over := s.foreign()
			over.Left = -time.Second
			s.imports(id, 1, over, first, second)
			s.isImported(first)
			s.missing(over.Key)
			s.imports(id, 0)
		}
	}},
	{"is refused where the move is not under way", func(s *suite) {
		session := s.foreign()
		refused := func(id string) {
			s.Helper()
			for _, sessions := range [][]backends.Session{{session}, nil} {
				n, err := s.movable().Import(s.ctx, id, sessions)
				s.isMoved("Import", err)
				if n != 0 {
					s.Fatalf("a refused Import took in %d sessions", n)
				}
			}
			s.missing(session.Key)
		}
		refused("one")
		s.enter(move("one"))
		refused("two")
		s.complete("one")
		refused("one")
		s.enter(move("one")) // again, and so nothing begins
		refused("one")
		s.enter(move("two"))
		refused("one")
		s.imports("two", 1, session)
	}},
	{"outside of a move takes in what is missing, again and again", func(s *suite) {
		session := s.foreign()
		for range 3 {
			s.imports("", 1, session)
			s.imports("", 0, session)
			s.isImported(session)
			s.is("Remove", s.Store.Remove(s.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie), nil)
		}
		s.enter(move("one"))
		s.imports("", 1, session)
		s.is("Remove", s.Store.Remove(s.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie), nil)
		s.imports("one", 1, session)
		s.complete("one")
		s.imports("", 0, session)
	}},
	{"of a new move takes in what an older one brought", func(s *suite) {
		session := s.foreign()
		for _, id := range []string{"one", "two", "three"} {
			s.enter(move(id))
			s.imports(id, 1, session)
			s.is("Remove", s.Store.Remove(s.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie), nil)
			s.imports(id, 0, session)
			s.complete(id)
		}
	}},
	{"keeps nothing of the caller's", func(s *suite) {
		s.enter(move("one"))
		session := s.foreign()
		session.Data = randomData(100_000)
		session.Size = len(session.Data)
		kept := slices.Clone(session.Data)
		s.imports("one", 1, session)
		clear(session.Data)
		session.Data = kept
		s.isImported(session)
	}},
	{"by many at once takes in each session once, and brings none back", func(s *suite) {
		s.enter(move("one"))
		for range 20 {
			sessions := make([]backends.Session, 16)
			for i := range sessions {
				sessions[i] = s.foreign()
			}
			var taken atomic.Int64
			race(8, func(i int) {
				own := slices.Clone(sessions)
				if i%2 == 1 {
					slices.Reverse(own)
				}
				for len(own) > 0 { // in parts that overlap those of the others
					part := own[:min(len(own), 1+i*3)]
					n, err := s.movable().Import(s.ctx, "one", part)
					if err != nil {
						s.Errorf("Import: %v", err)
						return
					}
					taken.Add(int64(n))
					// Whoever has claimed a session goes on with it, and removes it here.
					for _, session := range part {
						err := s.Store.Remove(s.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie)
						if err != nil && !errors.Is(err, backends.ErrNotFound) {
							s.Errorf("Remove: %v", err)
						}
					}
					own = own[len(part):]
				}
			})
			if taken.Load() != int64(len(sessions)) {
				s.Fatalf("%d sessions were taken in, want %d", taken.Load(), len(sessions))
			}
			for _, session := range sessions {
				s.missing(session.Key)
			}
		}
	}},
	{"never ends after the move", func(s *suite) {
		for round := range 10 {
			id := fmt.Sprint("move", round)
			s.enter(move(id))
			session := s.foreign()
			s.imports(id, 1, session)
			s.is("Remove", s.Store.Remove(s.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie), nil)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						n, err := s.movable().Import(s.ctx, id, []backends.Session{session})
						if n != 0 {
							s.Error("a session that was removed has come back")
						}
						if err != nil {
							if !errors.Is(err, backends.ErrMoved) {
								s.Errorf("Import: %v", err)
							}
							return
						}
					}
				})
			}
			s.complete(id)
			wg.Wait()
			s.missing(session.Key)
		}
	}},
}
