package backendtest

import (
	"sync"
	"time"

	"aspstate/backends"
)

// deleteExpired sweeps and wants n deletions.
func (s *suite) deleteExpired(limit, want int) {
	s.Helper()
	n, err := s.Store.DeleteExpired(s.ctx, limit)
	s.is("DeleteExpired", err, nil)
	if n != want {
		s.Fatalf("DeleteExpired(%d) deleted %d sessions, want %d", limit, n, want)
	}
}

var sweepCases = []testCase{
	{"of an empty store deletes nothing", func(s *suite) { s.deleteExpired(10, 0) }},
	{"deletes what has expired and nothing else", func(s *suite) {
		live := map[backends.Key]backends.Write{}
		for _, timeout := range []time.Duration{minute, timeout, 525600 * minute, backends.NeverExpires} {
			key := s.key()
			w := write(timeout)
			s.set(key, w)
			live[key] = w
			if timeout == backends.NeverExpires {
				s.backdate(key, 100000*time.Hour)
			} else {
				s.backdate(key, timeout-margin)
			}
		}
		lockedKey := s.key()
		s.createLocked(lockedKey)
		s.backdate(lockedKey, timeout-margin)

		for _, d := range dead {
			s.Log(d.name)
			d.make(s, s.key())
		}
		// The one that was never created does not count; whether one that was
		// expired when it was written is kept at all is the store's affair.
		n, err := s.Store.DeleteExpired(s.ctx, 100)
		s.is("DeleteExpired", err, nil)
		if n < 3 || n > len(dead)-1 {
			s.Fatalf("DeleteExpired deleted %d sessions, want 3 to %d", n, len(dead)-1)
		}
		s.deleteExpired(100, 0)
		for key, w := range live {
			s.holds(key, w, 1)
		}
		s.locked(lockedKey, 2)
	}},
	{"deletes at most limit, and goes on next time", func(s *suite) {
		for i := range 10 {
			key := s.key()
			if i%2 == 0 {
				s.createLocked(key)
			} else {
				s.create(key)
			}
			s.expire(key, timeout)
		}
		w := s.create(backends.Key{App: s.app, ID: "live"})
		for _, want := range []int{3, 3, 3, 1, 0} {
			s.deleteExpired(3, want)
		}
		s.holds(backends.Key{App: s.app, ID: "live"}, w, 1)
	}},
	{"spares a session that was renewed", func(s *suite) {
		for _, touch := range touches {
			key := s.key()
			if touch.locked {
				s.createLocked(key)
			} else {
				s.create(key)
			}
			s.backdate(key, timeout*3/5)
			touch.do(s, key)
			s.backdate(key, timeout*3/5)
			s.deleteExpired(100, 0)
			s.exists(key)
		}
	}},
	{"spares a session that was begun anew", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.expire(key, timeout)
		w := s.create(key)
		s.deleteExpired(100, 0)
		s.holds(key, w, 1)
	}},
	{"finds a session whose timeout was shortened", func(s *suite) {
		for _, from := range []time.Duration{backends.NeverExpires, 525600 * minute, timeout} {
			key := s.key()
			s.set(key, write(from))
			s.set(key, write(minute))
			s.expire(key, minute)
			s.deleteExpired(100, 1)
		}
	}},
	{"finds a session again that it spared", func(s *suite) {
		key := s.key()
		s.create(key)
		for range 3 {
			s.backdate(key, timeout*3/5)
			s.resetTimeout(key)
			s.deleteExpired(100, 0)
		}
		s.expire(key, timeout)
		s.deleteExpired(100, 1)
	}},
	{"in several applications", func(s *suite) {
		other := s.application("/lm/w3svc/2/root")
		one, two := s.key(), s.key()
		two.App = other
		s.create(one)
		s.create(two)
		s.expire(one, timeout)
		s.expire(two, timeout)
		s.deleteExpired(100, 2)
	}},
	{"never takes a session that is begun anew meanwhile", func(s *suite) {
		for range 30 {
			keys := make([]backends.Key, 8)
			for i := range keys {
				keys[i] = s.key()
				s.create(keys[i])
				s.expire(keys[i], timeout)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := s.Store.DeleteExpired(s.ctx, 100); err != nil {
					s.Errorf("DeleteExpired: %v", err)
				}
			})
			w := write(timeout)
			w.Condition = backends.IfMissing
			for _, key := range keys {
				wg.Go(func() {
					if err := s.Store.Set(s.ctx, key, newToken(), w); err != nil {
						s.Errorf("Set over an expired session: %v", err)
					}
				})
			}
			wg.Wait()
			for _, key := range keys {
				s.holds(key, w, 1)
			}
		}
	}},
}
