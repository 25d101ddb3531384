package backendtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"aspstate/backends"
)

// beside is the suite on the same store, as another process has it.
func (s *suite) beside() *suite {
	s.Helper()
	if s.Beside == nil {
		s.Skip("one process owns the store")
	}
	other := *s
	other.Store = s.Beside(s.T)
	return &other
}

func (s *suite) shared() backends.SharedMovable { return s.Store.(backends.SharedMovable) }

func (s *suite) announce(m backends.Move) {
	s.Helper()
	s.is("Announce", s.shared().Announce(s.ctx, m), nil)
}

func (s *suite) attend(a backends.Attendance, want ...backends.Attendance) {
	s.Helper()
	got, err := s.shared().Attend(s.ctx, a)
	s.is("Attend", err, nil)
	all := map[backends.Attendance]bool{}
	for _, entry := range got {
		all[entry] = true
	}
	same := len(got) == len(want)
	for _, entry := range want {
		same = same && all[entry]
	}
	if !same {
		s.Fatalf("Attend: %+v, want %+v", got, want)
	}
}

var sharedMovableCases = []testCase{
	{"announces a move to every process, which goes on serving", func(s *suite) {
		other := s.beside()
		key := s.key()
		w := s.create(key)
		m := at(move("one"), backends.Announced)
		for range 2 {
			s.announce(m)
			other.moves(m, backends.Move{})
		}
		s.holds(key, w, 1)
		other.holds(key, w, 1)
		for range 2 { // withdrawn
			other.announce(backends.Move{ID: "one"})
			s.moves(backends.Move{}, backends.Move{})
		}
		s.announce(m)
		s.announce(backends.Move{ID: "two"}) // there is none to withdraw
		other.moves(at(m, backends.Announced), backends.Move{})
		s.leave(m)
		other.moves(at(m, backends.Moving), backends.Move{})
	}},
	{"announces no move where another is in the way", func(s *suite) {
		s.enter(move("in"))
		s.isMoved("Announce", s.shared().Announce(s.ctx, at(move("one"), backends.Announced)))
		s.complete("in")
		s.announce(at(move("one"), backends.Announced))
		s.isMoved("Announce", s.shared().Announce(s.ctx, at(move("two"), backends.Announced)))
		s.isMoved("Leave", s.movable().Leave(s.ctx, move("two")))
		s.isMoved("Enter", s.movable().Enter(s.ctx, move("two")))
		s.is("Complete", s.movable().Complete(s.ctx, completed("one")), backends.ErrPermanent)
		s.moves(at(move("one"), backends.Announced), at(move("in"), backends.Moved))
		s.leave(move("one"))
		s.isMoved("Announce", s.shared().Announce(s.ctx, at(move("one"), backends.Announced)))
		s.isMoved("Announce", s.shared().Announce(s.ctx, backends.Move{ID: "one"}))
		s.isMoved("Announce", s.shared().Announce(s.ctx, at(move("two"), backends.Announced)))
		s.complete("one")
		s.isMoved("Announce", s.shared().Announce(s.ctx, at(move("two"), backends.Announced)))
		s.moves(at(move("one"), backends.Moved), at(move("in"), backends.Moved))
	}},
	{"of two moves at once lets one be announced, left for and entered", func(s *suite) {
		other := s.beside()
		for round := range 5 {
			steps := []func(store backends.SharedMovable, m backends.Move) error{
				func(store backends.SharedMovable, m backends.Move) error {
					return store.Announce(s.ctx, at(m, backends.Announced))
				},
				func(store backends.SharedMovable, m backends.Move) error { return store.Enter(s.ctx, m) },
			}
			var won [2]atomic.Int64
			race(4, func(i int) {
				store := []backends.SharedMovable{s.shared(), other.shared()}[i%2]
				err := steps[round%2](store, move(fmt.Sprintf("%d/%d", round, i)))
				switch {
				case err == nil:
					won[0].Add(1)
				case errors.Is(err, backends.ErrMoved):
					won[1].Add(1)
				default:
					s.Errorf("%v", err)
				}
			})
			if won[0].Load() != 1 || won[1].Load() != 3 {
				s.Fatalf("%d of 4 moves were let in and %d refused", won[0].Load(), won[1].Load())
			}
			away, into, err := s.movable().Moves(s.ctx)
			s.is("Moves", err, nil)
			if away.Stage == backends.Announced {
				s.announce(backends.Move{ID: away.ID})
			} else {
				s.complete(into.ID)
			}
		}
	}},
	{"knows the servers that have come lately", func(s *suite) {
		other := s.beside()
		one := backends.Attendance{ID: "1", Name: "web1 é/17"}
		two := backends.Attendance{ID: "2", Name: "web2/4", Ready: "one"}
		s.attend(one, one)
		other.attend(two, one, two)
		one.Ready, one.Fault = "two", "it does not answer"
		s.attend(one, one, two)
		other.attend(two, one, two)
		for range 2 {
			s.is("Depart", s.shared().Depart(s.ctx, "1"), nil)
			other.attend(two, two)
		}
		s.leave(move("one"))
		s.attend(one, one, two)
	}},
	{"is left in every process at once", func(s *suite) {
		other := s.beside()
		key := s.key()
		s.create(key)
		other.holds(key, other.create(key), 1)
		heard, begun := make(chan error, 1), make(chan struct{})
		go func() {
			heard <- other.shared().Listen(s.ctx, func() { close(begun) }, func(backends.Key) {})
		}()
		listening := true
		select {
		case <-begun:
		case err := <-heard:
			s.is("Listen", err, errors.ErrUnsupported)
			listening = false
		}
		s.leave(move("one"))
		s.left(other.Store, key)
		if listening {
			s.within("Listen", func() { s.isMoved("Listen", <-heard) })
		}
		s.left(s.beside().Store, key)
		other.complete("one")
		s.moves(at(move("one"), backends.Moved), backends.Move{})
		other.enter(move("two"))
		s.missing(key)
		s.holds(key, s.create(key), 1)
	}},
	{"is left while requests run in several processes, and nothing comes after", func(s *suite) {
		other := s.beside()
		const workers = 12
		var keys [workers]backends.Key
		var acknowledged [workers]uint64
		var pages atomic.Int64
		var wg sync.WaitGroup
		for i := range workers {
			keys[i] = s.key()
			w := write(timeout)
			w.Data = counterData(0)
			s.set(keys[i], w)
		}
		for i := range workers {
			store := []backends.Store{s.Store, other.Store}[i%2]
			wg.Go(func() {
				for {
					item, err := store.GetExclusive(s.ctx, keys[i], newToken())
					if err == nil {
						w := write(timeout)
						w.Data, w.LockCookie = counterData(acknowledged[i]+1), item.LockCookie
						if i < 2 {
							w.Data = append(w.Data, randomData(300_000)...)
						}
						if err = store.Set(s.ctx, keys[i], newToken(), w); err == nil {
							acknowledged[i]++
						}
					}
					pages.Add(1)
					if err != nil {
						if !errors.Is(err, backends.ErrMoved) {
							s.Errorf("a page fails with %v", err)
						}
						return
					}
				}
			})
		}
		for pages.Load() < 10*workers {
			s.lockAndRelease()
		}
		ctx, cancel := context.WithTimeout(s.ctx, hang)
		defer cancel()
		s.is("Leave", s.movable().Leave(ctx, move("one")), nil)
		var atLeave [workers]uint64
		for i := range workers {
			atLeave[i] = counter(s.inspect(keys[i]).Data)
		}
		wg.Wait()
		for i := range workers {
			n := counter(s.inspect(keys[i]).Data)
			if n != acknowledged[i] || n != atLeave[i] {
				s.Fatalf("session %d counts %d, at the Leave it was %d, acknowledged were %d", i, n, atLeave[i], acknowledged[i])
			}
		}
	}},
}
