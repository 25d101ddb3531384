package backendtest

import (
	"context"
	"time"

	"aspstate/backends"
)

// MS-ASP 3.1.5.1 and what the original server does (order of effects: report and
// clear the mark, look at the lock, take it).
var getCases = []testCase{
	{"returns what Set stored", func(s *suite) {
		key := s.key()
		w := s.create(key)
		item := s.get(key)
		s.sameItem(item, w, 1)
		if item.Uninitialized {
			s.Fatal("the session was not created uninitialized, and Get says so")
		}
	}},
	{"of a missing session is ErrNotFound and creates nothing", func(s *suite) {
		key := s.key()
		s.missing(key)
		s.missing(key)
		w := write(timeout)
		w.Condition = backends.IfMissing
		s.set(key, w)
	}},
	{"takes no lock", func(s *suite) {
		key := s.key()
		w := s.create(key)
		s.holds(key, w, 1)
		s.holds(key, w, 1)
		if c := s.lock(key); c != 2 {
			s.Fatalf("GetExclusive after Get gave cookie %d, want 2", c)
		}
	}},
	{"of a locked session is a LockedError", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		s.locked(key, 2)
		s.locked(key, 2)
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"reports the cookie of the last lock", func(s *suite) {
		key := s.key()
		w := s.create(key)
		for cookie := backends.Cookie(2); cookie < 5; cookie++ {
			s.release(key, s.lock(key))
			s.holds(key, w, cookie)
		}
	}},
}

var getExclusiveCases = []testCase{
	{"returns the item and locks it", func(s *suite) {
		key := s.key()
		w := s.create(key)
		s.sameItem(s.getExclusive(key), w, 2)
		s.locked(key, 2)
	}},
	{"of a missing session is ErrNotFound and creates nothing", func(s *suite) {
		key := s.key()
		_, err := s.Store.GetExclusive(s.ctx, key, newToken())
		s.is("GetExclusive", err, backends.ErrNotFound)
		s.missing(key)
	}},
	{"gives out cookies from 2, each one more than the last", func(s *suite) {
		key := s.key()
		s.create(key)
		for want := backends.Cookie(2); want < 12; want++ {
			if c := s.lock(key); c != want {
				s.Fatalf("lock cookie is %d, want %d", c, want)
			}
			// Both ways to unlock keep the count.
			if want%2 == 0 {
				s.release(key, want)
			} else {
				w := write(timeout)
				w.LockCookie = want
				s.set(key, w)
			}
		}
	}},
	{"of a locked session is a LockedError and leaves the lock alone", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		for range 3 {
			_, err := s.Store.GetExclusive(s.ctx, key, newToken())
			s.isLocked("GetExclusive", err, 2)
		}
		s.release(key, 2)
		s.holds(key, w, 2) // refusals used up no cookie
		if c := s.lock(key); c != 3 {
			s.Fatalf("the second lock's cookie is %d, want 3", c)
		}
	}},
	{"locks for whoever has the cookie, not for the caller", func(s *suite) {
		key := s.key()
		s.create(key)
		ctx, cancel := context.WithCancel(s.ctx)
		item, err := s.Store.GetExclusive(ctx, key, newToken())
		s.is("GetExclusive", err, nil)
		cancel()
		s.locked(key, item.LockCookie)
		w := write(timeout)
		w.LockCookie = item.LockCookie
		s.set(key, w)
		s.holds(key, w, 2)
	}},
	{"locks one session only", func(s *suite) {
		one, other := s.key(), s.key()
		s.createLocked(one)
		w := s.create(other)
		s.holds(other, w, 1)
		s.locked(one, 2)
	}},
}

var releaseCases = []testCase{
	{"with the lock's cookie unlocks and keeps content and cookie", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"with another cookie is a LockedError and the lock stays", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 1, 3, 1<<31 - 1} {
			_, err := s.Store.Release(s.ctx, key, newToken(), cookie, backends.IfUnlocked)
			s.isLocked("Release", err, 2)
		}
		s.locked(key, 2)
	}},
	{"with a former lock's cookie is a LockedError", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.release(key, 2)
		s.lock(key)
		_, err := s.Store.Release(s.ctx, key, newToken(), 2, backends.IfUnlocked)
		s.isLocked("Release", err, 3)
		s.locked(key, 3)
	}},
	{"of an unlocked session leaves it as it is, whatever the cookie", func(s *suite) {
		key := s.key()
		w := s.create(key)
		for _, cookie := range []backends.Cookie{backends.NoCookie, 0, 1, 2, 7} {
			s.release(key, cookie)
			s.holds(key, w, 1)
		}
		s.lock(key)
		s.release(key, 2)
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"of a missing session is ErrNotFound and creates nothing", func(s *suite) {
		key := s.key()
		_, err := s.Store.Release(s.ctx, key, newToken(), 1, backends.IfUnlocked)
		s.is("Release", err, backends.ErrNotFound)
		s.missing(key)
	}},
	{"IfCookie with the last cookie unlocks and keeps content, cookie and mark", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		if s.releaseIfCookie(key, 2) {
			s.Fatal("Release reports a mark that was never set")
		}
		s.holds(key, w, 2)
		s.releaseIfCookie(key, 2) // unlocked: the cookie is still the last
		s.holds(key, w, 2)
		key = s.key()
		w = s.createUninitialized(key)
		if s.releaseIfCookie(key, 1) {
			s.Fatal("Release IfCookie reports the mark")
		}
		item := s.get(key)
		s.sameItem(item, w, 1)
		if !item.Uninitialized {
			s.Fatal("Release IfCookie has cleared the mark")
		}
	}},
	{"IfCookie with another cookie is ErrConflict and changes nothing, locked or not", func(s *suite) {
		key := s.key()
		w := s.createUninitialized(key)
		refused := func(cookies ...backends.Cookie) {
			for _, cookie := range cookies {
				mark, err := s.Store.Release(s.ctx, key, newToken(), cookie, backends.IfCookie)
				s.is("Release", err, backends.ErrConflict)
				if mark {
					s.Fatalf("a refused Release with cookie %d reports the mark", cookie)
				}
			}
		}
		refused(backends.NoCookie, 0, 2, 7)
		item := s.get(key)
		s.sameItem(item, w, 1)
		if !item.Uninitialized {
			s.Fatal("a refused Release has cleared the mark")
		}
		s.lock(key)
		refused(backends.NoCookie, 0, 1, 3, 1<<31-1)
		s.locked(key, 2)
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"IfCookie of a missing session is ErrNotFound and creates nothing", func(s *suite) {
		key := s.key()
		for _, cookie := range someCookies {
			_, err := s.Store.Release(s.ctx, key, newToken(), cookie, backends.IfCookie)
			s.is("Release", err, backends.ErrNotFound)
			s.missing(key)
		}
	}},
	{"with the cookie of the refusal breaks a dead worker's lock", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		_, err := s.Store.GetExclusive(s.ctx, key, newToken())
		locked := s.isLocked("GetExclusive", err, 2)
		s.release(key, locked.Cookie)
		// Nobody took the lock meanwhile: the old holder's write still lands.
		w := write(timeout)
		w.LockCookie = 2
		s.set(key, w)
		s.holds(key, w, 2)
	}},
}

var lockAgeCases = []testCase{
	{"is small at first and grows with the store's clock", func(s *suite) {
		key := s.key()
		w := write(24 * time.Hour)
		s.set(key, w)
		before := time.Now()
		s.lock(key)
		var backdated time.Duration
		for _, d := range []time.Duration{0, 90 * time.Second, 3 * time.Hour} {
			s.backdate(key, d)
			backdated += d
			locked := s.locked(key, 2)
			if most := backdated + time.Since(before) + tick; locked.Age < backdated || locked.Age > most {
				s.Fatalf("lock age is %v, want %v to %v", locked.Age, backdated, most)
			}
			if off := (time.Since(locked.Since) - locked.Age).Abs(); off > 2*tick {
				s.Fatalf("the lock is %v old and its date %v: %v apart", locked.Age, locked.Since, off)
			}
		}
	}},
	{"is reported alike by every refusal, and refusals and renewals leave it alone", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.backdate(key, 5*minute)
		refusals := map[string]func() error{
			"Get": func() error {
				_, err := s.Store.Get(s.ctx, key, newToken())
				return err
			},
			"GetExclusive": func() error {
				_, err := s.Store.GetExclusive(s.ctx, key, newToken())
				return err
			},
			"Release": func() error {
				_, err := s.Store.Release(s.ctx, key, newToken(), 7, backends.IfUnlocked)
				return err
			},
			"Set": func() error {
				return s.Store.Set(s.ctx, key, newToken(), write(timeout))
			},
			"Remove": func() error {
				return s.Store.Remove(s.ctx, key, newToken(), 7, backends.IfUnlocked)
			},
		}
		for range 2 {
			for name, refuse := range refusals {
				s.resetTimeout(key)
				locked := s.isLocked(name, refuse(), 2)
				if locked.Age < 5*minute || locked.Age > 5*minute+margin {
					s.Fatalf("%s: lock age is %v, want %v", name, locked.Age, 5*minute)
				}
				if off := (time.Since(locked.Since) - locked.Age).Abs(); off > 2*tick {
					s.Fatalf("%s: the lock is %v old and its date %v: %v apart", name, locked.Age, locked.Since, off)
				}
			}
		}
	}},
	{"is told of an unlocked session as of its last lock, or of its creation", func(s *suite) {
		key := s.key()
		s.create(key)
		aged := func(what string, want time.Duration) {
			s.Helper()
			if age := s.get(key).LockAge; age < want || age > want+margin {
				s.Fatalf("%s: lock age is %v, want %v", what, age, want)
			}
		}
		aged("created", 0)
		s.backdate(key, 5*minute)
		aged("never locked", 5*minute)
		if age := s.getExclusive(key).LockAge; age != 0 {
			s.Fatalf("the lock just taken is %v old", age)
		}
		s.backdate(key, 3*minute)
		s.release(key, 2)
		aged("released", 3*minute)
		w := write(2 * timeout)
		s.set(key, w)
		s.resetTimeout(key)
		aged("written", 3*minute)
		s.backdate(key, 7*minute)
		aged("released long ago", 10*minute)
	}},
	{"begins anew with each lock", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.backdate(key, 5*minute)
		s.release(key, 2)
		s.lock(key)
		if age := s.locked(key, 3).Age; age > margin {
			s.Fatalf("a new lock is %v old", age)
		}
	}},
	{"has no limit: a renewed session stays locked", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		for range 10 {
			s.backdate(key, timeout*3/5)
			s.resetTimeout(key)
		}
		if age := s.locked(key, 2).Age; age < 6*timeout {
			s.Fatalf("lock age is %v, want at least %v", age, 6*timeout)
		}
	}},
}
