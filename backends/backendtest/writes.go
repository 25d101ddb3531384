package backendtest

import (
	"fmt"
	"time"

	"aspstate/backends"
)

var someCookies = []backends.Cookie{backends.NoCookie, 0, 1, 2, 7, 1<<31 - 1}

// MS-ASP 3.1.5.3 and what the original server does, and ASPState's rules.
var setCases = []testCase{
	{"creates a missing session with cookie 1, whatever cookie it brings", func(s *suite) {
		for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfMissing} {
			for _, cookie := range someCookies {
				s.sub(fmt.Sprintf("condition %d cookie %d", cond, cookie), func(s *suite) {
					key := s.key()
					w := write(timeout)
					w.Condition, w.LockCookie = cond, cookie
					s.set(key, w)
					s.holds(key, w, 1)
					if c := s.lock(key); c != 2 {
						s.Fatalf("the first lock's cookie is %d, want 2", c)
					}
				})
			}
		}
	}},
	{"replaces an unlocked session, whatever cookie it brings, and keeps the cookie", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.release(key, 2)
		for _, cookie := range someCookies {
			w := write(timeout)
			w.LockCookie = cookie
			s.set(key, w)
			s.holds(key, w, 2)
		}
	}},
	{"with the lock's cookie stores, unlocks and keeps the cookie", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		w := write(timeout)
		w.LockCookie = 2
		s.set(key, w)
		s.holds(key, w, 2)
	}},
	{"of a locked session with another cookie is a LockedError and changes nothing", func(s *suite) {
		key := s.key()
		before := s.createLocked(key)
		for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 1, 3} {
			w := write(2 * timeout)
			w.LockCookie, w.Uninitialized = cookie, true
			s.isLocked("Set", s.Store.Set(s.ctx, key, newToken(), w), 2)
		}
		s.locked(key, 2)
		s.release(key, 2)
		s.holds(key, before, 2)
		if s.get(key).Uninitialized {
			s.Fatal("a refused Set marked the session")
		}
	}},
	{"changes the timeout and keeps the cookie", func(s *suite) {
		for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfCookie} {
			key := s.key()
			s.createLocked(key)
			w := write(timeout + minute)
			w.Condition, w.LockCookie = cond, 2
			s.set(key, w)
			s.holds(key, w, 2)
			if c := s.lock(key); c != 3 {
				s.Fatalf("the next lock's cookie is %d, want 3", c)
			}
		}
	}},
	{"of an unlocked session with a changed timeout and any cookie keeps the cookie", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.release(key, 2)
		for i, cookie := range someCookies {
			w := write(timeout + minute*(1+time.Duration(i)))
			w.LockCookie = cookie
			s.set(key, w)
			s.holds(key, w, 2)
		}
	}},
	{"IfCookie stores under the last cookie, locked or not", func(s *suite) {
		key := s.key()
		s.create(key)
		w := write(timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 1
		s.set(key, w)
		s.holds(key, w, 1)
		s.lock(key)
		w = write(timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 2
		s.set(key, w) // unlocks
		s.holds(key, w, 2)
		w = write(timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 2
		s.set(key, w) // the lock is gone, its cookie is still the last
		s.holds(key, w, 2)
	}},
	{"IfCookie with another cookie is ErrConflict and changes nothing, locked or not", func(s *suite) {
		key := s.key()
		before := s.createLocked(key)
		refused := func() {
			for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 1, 3} {
				w := write(2 * timeout)
				w.Condition, w.LockCookie, w.Uninitialized = backends.IfCookie, cookie, true
				s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrConflict)
			}
		}
		refused()
		s.locked(key, 2)
		s.release(key, 2)
		refused()
		s.holds(key, before, 2)
		if s.get(key).Uninitialized {
			s.Fatal("a refused Set marked the session")
		}
	}},
	{"IfCookie of a missing session is ErrNotFound and creates nothing", func(s *suite) {
		key := s.key()
		for _, cookie := range someCookies {
			w := write(timeout)
			w.Condition, w.LockCookie = backends.IfCookie, cookie
			s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrNotFound)
			s.missing(key)
		}
	}},
	{"IfMissing of an existing session is ErrExists and changes nothing", func(s *suite) {
		key := s.key()
		before := s.create(key)
		w := write(2 * timeout)
		w.Condition, w.LockCookie, w.Uninitialized = backends.IfMissing, 1, true
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
		s.holds(key, before, 1)
		if s.get(key).Uninitialized {
			s.Fatal("a refused Set marked the session")
		}
	}},
	{"IfMissing of a locked session is ErrExists and the lock stays", func(s *suite) {
		key := s.key()
		before := s.createLocked(key)
		for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 2} {
			w := write(timeout)
			w.Condition, w.LockCookie = backends.IfMissing, cookie
			s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
		}
		s.locked(key, 2)
		s.release(key, 2)
		s.holds(key, before, 2)
	}},
	{"IfMissing after Remove creates", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 2, backends.IfUnlocked), nil)
		w := s.createUninitialized(key)
		s.holds(key, w, 1)
	}},
}

// MS-ASP 3.1.5.5 and what the original server does, and ASPState's rules.
var removeCases = []testCase{
	{"deletes an unlocked session, whatever the cookie", func(s *suite) {
		for _, cookie := range someCookies {
			key := s.key()
			s.create(key)
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), cookie, backends.IfUnlocked), nil)
			s.missing(key)
		}
	}},
	{"deletes a locked session with its lock's cookie", func(s *suite) {
		for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfCookie} {
			key := s.key()
			s.createLocked(key)
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 2, cond), nil)
			s.missing(key)
		}
	}},
	{"of a locked session with another cookie is a LockedError and deletes nothing", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 1, 3} {
			s.isLocked("Remove", s.Store.Remove(s.ctx, key, newToken(), cookie, backends.IfUnlocked), 2)
		}
		s.locked(key, 2)
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"IfCookie deletes an unlocked session with its last cookie", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.release(key, 2)
		s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 2, backends.IfCookie), nil)
		s.missing(key)
	}},
	{"IfCookie with another cookie is ErrConflict and deletes nothing, locked or not", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		refused := func() {
			for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 1, 3} {
				err := s.Store.Remove(s.ctx, key, newToken(), cookie, backends.IfCookie)
				s.is("Remove", err, backends.ErrConflict)
			}
		}
		refused()
		s.locked(key, 2)
		s.release(key, 2)
		refused()
		s.holds(key, w, 2)
	}},
	{"of a missing session is ErrNotFound", func(s *suite) {
		for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfCookie} {
			key := s.key()
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 1, cond), backends.ErrNotFound)
			s.create(key)
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 1, cond), nil)
			s.is("second Remove", s.Store.Remove(s.ctx, key, newToken(), 1, cond), backends.ErrNotFound)
		}
	}},
	{"forgets lock, cookie and mark", func(s *suite) {
		key := s.key()
		s.createUninitialized(key)
		s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 1, backends.IfUnlocked), nil)
		w := s.create(key)
		item := s.get(key)
		s.sameItem(item, w, 1)
		if item.Uninitialized {
			s.Fatal("a new session has the removed one's mark")
		}
		for range 3 {
			s.release(key, s.lock(key))
		}
		s.lock(key)
		s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 5, backends.IfUnlocked), nil)
		w = s.create(key)
		s.holds(key, w, 1)
	}},
	{"deletes one session only", func(s *suite) {
		one, other := s.key(), s.key()
		s.create(one)
		w := s.create(other)
		s.is("Remove", s.Store.Remove(s.ctx, one, newToken(), 1, backends.IfUnlocked), nil)
		s.holds(other, w, 1)
	}},
}
