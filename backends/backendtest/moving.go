package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// imports imports sessions and wants n to be taken in.
func (s *suite) imports(id string, want int, sessions ...backends.Session) {
	s.Helper()
	n, err := s.movable().Import(s.ctx, id, sessions)
	s.is("Import", err, nil)
	if n != want {
		s.Fatalf("Import took in %d sessions, want %d", n, want)
	}
}

// foreign is a session as another store may tell it.
func (s *suite) foreign() backends.Session {
	data := randomData(100)
	return backends.Session{Key: s.key(), Data: data, Size: len(data), Created: time.Now().Add(-time.Hour).Truncate(time.Second),
		Timeout: timeout, Left: 10 * minute, LockCookie: 7, LockAge: 3 * minute}
}

// isImported asserts that a session stands here as it stood there, at most margin ago.
func (s *suite) isImported(there backends.Session) backends.Session {
	s.Helper()
	here := s.inspect(there.Key)
	s.between("what has gone meanwhile", there.Left-here.Left, -time.Millisecond, margin)
	s.between("what the lock has aged meanwhile", here.LockAge-there.LockAge, -time.Millisecond, margin)
	if !here.Created.Truncate(time.Second).Equal(there.Created.Truncate(time.Second)) {
		s.Fatalf("created %v, want %v", here.Created, there.Created)
	}
	if !bytes.Equal(here.Data, there.Data) {
		s.Fatalf("data are %s, want %s", brief(here.Data), brief(there.Data))
	}
	rest := here
	there.Data, rest.Data = nil, nil
	rest.Left, rest.LockAge, rest.Created = there.Left, there.LockAge, there.Created
	if !reflect.DeepEqual(rest, there) {
		s.Fatalf("imported was %+v, here is %+v", there, rest)
	}
	return here
}

// lockedWith asserts that the session is locked, and whether this look clears the mark.
func (s *suite) lockedWith(key backends.Key, cookie backends.Cookie, mark bool) *backends.LockedError {
	s.Helper()
	locked := s.locked(key, cookie)
	if locked.Uninitialized != mark {
		s.Fatalf("the mark is %t, want %t", locked.Uninitialized, mark)
	}
	return locked
}

var moveCases = []testCase{
	{"is kept by both, and its steps may be repeated", func(s *suite) {
		from, to := s, s.another()
		m := move("one")
		for range 2 {
			to.enter(m)
			to.moves(backends.Move{}, at(m, backends.Moving))
		}
		for range 2 {
			from.leave(m)
			from.moves(at(m, backends.Moving), backends.Move{})
		}
		for range 2 {
			to.complete("one")
			to.moves(backends.Move{}, at(m, backends.Moved))
		}
		for range 2 {
			from.complete("one")
			from.moves(at(m, backends.Moved), backends.Move{})
		}
		to.enter(m)
		to.moves(backends.Move{}, at(m, backends.Moved))
		from.leave(m)
		from.moves(at(m, backends.Moved), backends.Move{})
	}},
	{"does not enter where another one is under way", func(s *suite) {
		s.is("Complete", s.movable().Complete(s.ctx, completed("none")), backends.ErrPermanent)
		s.enter(move("one"))
		s.isMoved("Enter", s.movable().Enter(s.ctx, move("two")))
		s.is("Complete", s.movable().Complete(s.ctx, completed("two")), backends.ErrPermanent)
		s.moves(backends.Move{}, at(move("one"), backends.Moving))
		s.complete("one")
		s.enter(move("two"))
		s.moves(backends.Move{}, at(move("two"), backends.Moving))
		s.is("Complete", s.movable().Complete(s.ctx, completed("one")), backends.ErrPermanent)
	}},
	{"does not disturb the target", func(s *suite) {
		key, locked := s.key(), s.key()
		w := s.create(key)
		s.createLocked(locked)
		s.enter(move("one"))
		s.holds(key, w, 1)
		s.locked(locked, 2)
		s.complete("one")
		s.holds(key, w, 1)
		s.locked(locked, 2)
	}},
	{"brings every session there, and back", func(s *suite) {
		from, to := s, s.another()
		keys := map[backends.Key]backends.Write{}
		for i := range 300 {
			key := from.key()
			w := write(timeout)
			w.Data = randomData(1 + i*i)
			w.Uninitialized = i%5 == 0
			from.set(key, w)
			if i%3 == 0 {
				from.lock(key)
			}
			keys[key] = w
		}
		stale := s.foreign()
		for round := range 4 {
			id := fmt.Sprint("move", round)
			to.enter(move(id))
			to.create(stale.Key) // what is there only goes on here
			from.leave(move(id))
			q := backends.Query{Limit: 70, Data: true}
			for n := q.Limit; n == q.Limit; {
				page := from.list(q)
				to.imports(id, len(page)-contains(page, stale.Key), page...)
				to.imports(id, 0, page...)
				for _, session := range page {
					if session.Key != stale.Key {
						to.isImported(session)
					}
				}
				if n = len(page); n > 0 {
					q.After = page[n-1].Key
				}
			}
			to.complete(id)
			from.complete(id)
			for key := range keys {
				from.left(from.Store, key)
				break
			}
			from, to = to, from
			if infos := from.applications(); len(infos) != 1 || infos[0].Sessions != len(keys)+1 || infos[0].Locked != len(keys)/3 {
				s.Fatalf("after move %d: %v", round, infos)
			}
		}
		for i, session := range from.list(backends.Query{}) {
			w, known := keys[session.Key]
			if !known {
				continue
			}
			if session.Locked {
				w.LockCookie = session.LockCookie
				w.Data = randomData(10)
				from.set(session.Key, w)
			}
			from.sameItem(from.get(session.Key), w, session.LockCookie)
			if i%50 == 0 {
				from.is("Remove", from.Store.Remove(from.ctx, session.Key, newToken(), session.LockCookie, backends.IfCookie), nil)
			}
		}
	}},
	{"into a store that was left forgets its sessions, and no others", func(s *suite) {
		key, other := s.key(), s.key()
		s.create(key)
		s.createLocked(other)
		s.leave(move("one"))
		s.isMoved("Enter", s.movable().Enter(s.ctx, move("two")))
		s.inspect(key)
		s.complete("one")
		s.inspect(key)
		s.enter(move("two"))
		s.moves(backends.Move{}, at(move("two"), backends.Moving))
		s.sameKeys("List", s.list(backends.Query{}))
		s.missing(key)
		s.missing(other)
		if app := s.application("/lm/w3svc/1/root"); app != s.app {
			s.Fatalf("the AppID was %d and is %d", s.app, app)
		}
		w := s.create(key)
		s.enter(move("two"))
		s.holds(key, w, 1)
		session := s.foreign()
		s.imports("two", 1, session)
		s.is("Complete", s.movable().Complete(s.ctx, completed("one")), backends.ErrPermanent)
		s.complete("two")
		s.holds(key, w, 1)
		s.isImported(session)
		s.leave(move("three"))
		s.moves(at(move("three"), backends.Moving), at(move("two"), backends.Moved))
	}},
	{"loses no update while pages claim, and a copier copies", func(s *suite) {
		const workers, sessions, pages = 8, 40, 60
		from, to := s, s.another()
		var keys [sessions]backends.Key
		for i := range keys {
			keys[i] = from.key()
			w := write(timeout)
			w.Data = counterData(0)
			from.set(keys[i], w)
		}
		var moved atomic.Bool
		// page is what a server does: it goes to the target when the source says so, with what the source holds.
		var done atomic.Int64
		add := func(key backends.Key) {
			for {
				at := from
				if moved.Load() {
					session, err := from.movable().Inspect(s.ctx, key)
					if err == nil {
						_, err = to.movable().Import(s.ctx, "one", []backends.Session{session})
					}
					if err != nil && !errors.Is(err, backends.ErrMoved) && !errors.Is(err, backends.ErrNotFound) {
						s.Errorf("a claim fails with %v", err)
						return
					}
					at = to
				}
				item, err := at.Store.GetExclusive(s.ctx, key, newToken())
				if err == nil {
					w := write(timeout)
					w.Data, w.LockCookie = counterData(counter(item.Data)+1), item.LockCookie
					for {
						err = at.Store.Set(s.ctx, key, newToken(), w)
						if !errors.Is(err, backends.ErrMoved) {
							break
						}
						session, inspectErr := from.movable().Inspect(s.ctx, key) // the lock goes along
						if inspectErr != nil {
							s.Errorf("Inspect: %v", inspectErr)
							return
						}
						if _, err := to.movable().Import(s.ctx, "one", []backends.Session{session}); err != nil && !errors.Is(err, backends.ErrMoved) {
							s.Errorf("Import: %v", err)
							return
						}
						at = to
					}
					if err != nil {
						s.Errorf("Set: %v", err)
					}
					done.Add(1)
					return
				}
				if errors.Is(err, backends.ErrMoved) {
					moved.Store(true)
				} else if _, locked := errors.AsType[*backends.LockedError](err); !locked {
					s.Errorf("GetExclusive: %v", err)
					return
				}
			}
		}
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() {
				for n := range pages {
					add(keys[(i*7+n)%sessions])
				}
			})
		}
		for done.Load() < workers*pages/4 {
			s.lockAndRelease()
		}
		to.enter(move("one"))
		from.leave(move("one"))
		for q := (backends.Query{Limit: 7, Data: true}); ; {
			page := from.list(q)
			if _, err := to.movable().Import(s.ctx, "one", page); err != nil {
				s.Fatalf("Import: %v", err)
			}
			if len(page) < q.Limit {
				break
			}
			q.After = page[len(page)-1].Key
		}
		to.complete("one")
		from.complete("one")
		wg.Wait()
		sum := uint64(0)
		for _, key := range keys {
			session := to.inspect(key)
			sum += counter(session.Data)
			if session.Locked || uint64(session.LockCookie) != counter(session.Data)+1 {
				s.Fatalf("a session counts %d, with cookie %d, locked %t", counter(session.Data), session.LockCookie, session.Locked)
			}
		}
		if sum != workers*pages {
			s.Fatalf("the counters add up to %d, want %d", sum, workers*pages)
		}
	}},
}

func contains(sessions []backends.Session, key backends.Key) int {
	if slices.Contains(keysOf(sessions), key) {
		return 1
	}
	return 0
}
