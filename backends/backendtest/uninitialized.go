package backendtest

import (
	"time"

	"aspstate/backends"
)

// report is an operation that says whether the session's mark was still set, and clears
// it.
type report struct {
	name string
	do   func(s *suite, key backends.Key) bool
}

var reports = []report{
	{"Get", func(s *suite, key backends.Key) bool { return s.get(key).Uninitialized }},
	{"GetExclusive", func(s *suite, key backends.Key) bool {
		item := s.getExclusive(key)
		// A locked session's mark is gone: its lock's GetExclusive reported it.
		if locked := s.locked(key, item.LockCookie); locked.Uninitialized {
			s.Fatal("Get of the locked session reports the mark again")
		}
		_, err := s.Store.GetExclusive(s.ctx, key, newToken())
		if s.isLocked("GetExclusive", err, item.LockCookie).Uninitialized {
			s.Fatal("GetExclusive of the locked session reports the mark again")
		}
		_, err = s.Store.Release(s.ctx, key, newToken(), item.LockCookie+1, backends.IfUnlocked)
		if s.isLocked("Release", err, item.LockCookie).Uninitialized {
			s.Fatal("Release with another cookie reports the mark again")
		}
		if s.release(key, item.LockCookie) {
			s.Fatal("Release reports the mark again")
		}
		return item.Uninitialized
	}},
	{"Release", func(s *suite, key backends.Key) bool { return s.release(key, 1) }},
}

// unreporting are the operations on an existing session that neither report nor clear
// nor set its mark.
var unreporting = []struct {
	name string
	do   func(s *suite, key backends.Key)
}{
	{"Set with the same timeout", func(s *suite, key backends.Key) { s.set(key, write(timeout)) }},
	{"Set with the same timeout and Uninitialized", func(s *suite, key backends.Key) {
		w := write(timeout)
		w.Uninitialized = true
		s.set(key, w)
	}},
	{"Set IfCookie", func(s *suite, key backends.Key) {
		for _, timeout := range []time.Duration{timeout, timeout + minute} {
			w := write(timeout)
			w.Condition, w.LockCookie = backends.IfCookie, 1
			s.set(key, w)
		}
	}},
	{"Release IfCookie", func(s *suite, key backends.Key) { s.releaseIfCookie(key, 1) }},
	{"ErrConflict", func(s *suite, key backends.Key) {
		w := write(2 * timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 2
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrConflict)
		s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 2, backends.IfCookie), backends.ErrConflict)
		_, err := s.Store.Release(s.ctx, key, newToken(), 2, backends.IfCookie)
		s.is("Release", err, backends.ErrConflict)
	}},
	{"ErrExists", func(s *suite, key backends.Key) {
		w := write(2 * timeout)
		w.Condition = backends.IfMissing
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
		w.Uninitialized = true
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
	}},
	{"ResetTimeout", func(s *suite, key backends.Key) { s.resetTimeout(key) }},
}

var uninitializedCases = []testCase{
	{"is reported exactly once, by whichever comes first", func(s *suite) {
		for _, cond := range []backends.Condition{backends.IfMissing, backends.IfUnlocked} {
			for _, first := range reports {
				for _, second := range reports {
					s.sub(first.name+" then "+second.name, func(s *suite) {
						key := s.key()
						w := write(timeout)
						w.Condition, w.Uninitialized = cond, true
						s.set(key, w)
						if !first.do(s, key) {
							s.Fatalf("%s does not report the mark", first.name)
						}
						if second.do(s, key) {
							s.Fatalf("%s reports the mark again", second.name)
						}
					})
				}
			}
		}
	}},
	{"is not reported for a session created without it", func(s *suite) {
		for _, r := range reports {
			key := s.key()
			s.create(key)
			if r.do(s, key) {
				s.Fatalf("%s reports a mark that was never set", r.name)
			}
		}
	}},
	{"the first visit: create uninitialized, GetExclusive, Set", func(s *suite) {
		key := s.key()
		w := s.createUninitialized(key)
		item := s.getExclusive(key)
		s.sameItem(item, w, 2)
		if !item.Uninitialized {
			s.Fatal("GetExclusive does not report the mark")
		}
		w = write(timeout)
		w.LockCookie = 2
		s.set(key, w)
		item = s.getExclusive(key)
		s.sameItem(item, w, 3)
		if item.Uninitialized {
			s.Fatal("the next page's GetExclusive reports the mark again")
		}
	}},
	{"is kept by what does not report it", func(s *suite) {
		for _, u := range unreporting {
			s.sub(u.name, func(s *suite) {
				key := s.key()
				s.createUninitialized(key)
				u.do(s, key)
				if !s.get(key).Uninitialized {
					s.Fatal("the mark is lost")
				}
			})
		}
	}},
	{"is never set on an existing session", func(s *suite) {
		for _, u := range unreporting {
			s.sub(u.name, func(s *suite) {
				key := s.key()
				s.create(key)
				u.do(s, key)
				if s.get(key).Uninitialized {
					s.Fatal("the session has been marked")
				}
			})
		}
	}},
	{"is lost when Set changes the timeout", func(s *suite) {
		for _, again := range []bool{false, true} {
			key := s.key()
			s.createUninitialized(key)
			w := write(timeout + minute)
			w.LockCookie, w.Uninitialized = 1, again
			s.set(key, w)
			item := s.get(key)
			s.sameItem(item, w, 1)
			if item.Uninitialized {
				s.Fatalf("Uninitialized %t: the session kept its mark", again)
			}
		}
	}},
}
