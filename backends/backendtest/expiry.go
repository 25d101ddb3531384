package backendtest

import (
	"context"
	"fmt"
	"time"

	"aspstate/backends"
)

// onMissing are the operations that a missing session refuses.
var onMissing = []struct {
	name string
	do   func(ctx context.Context, store backends.Store, key backends.Key) error
}{
	{"Get", func(ctx context.Context, store backends.Store, key backends.Key) error {
		_, err := store.Get(ctx, key, newToken())
		return err
	}},
	{"GetExclusive", func(ctx context.Context, store backends.Store, key backends.Key) error {
		_, err := store.GetExclusive(ctx, key, newToken())
		return err
	}},
	{"Release", func(ctx context.Context, store backends.Store, key backends.Key) error {
		_, err := store.Release(ctx, key, newToken(), 2, backends.IfUnlocked)
		return err
	}},
	{"Release IfCookie", func(ctx context.Context, store backends.Store, key backends.Key) error {
		_, err := store.Release(ctx, key, newToken(), 2, backends.IfCookie)
		return err
	}},
	{"Set IfCookie", func(ctx context.Context, store backends.Store, key backends.Key) error {
		w := write(timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 2
		return store.Set(ctx, key, newToken(), w)
	}},
	{"Remove", func(ctx context.Context, store backends.Store, key backends.Key) error {
		return store.Remove(ctx, key, newToken(), 2, backends.IfUnlocked)
	}},
	{"Remove IfCookie", func(ctx context.Context, store backends.Store, key backends.Key) error {
		return store.Remove(ctx, key, newToken(), 2, backends.IfCookie)
	}},
	{"ResetTimeout", func(ctx context.Context, store backends.Store, key backends.Key) error {
		return store.ResetTimeout(ctx, key)
	}},
}

// dead are the ways a session can be missing.
var dead = []struct {
	name string
	make func(s *suite, key backends.Key)
}{
	{"never created", func(s *suite, key backends.Key) {}},
	{"expired", func(s *suite, key backends.Key) {
		w := s.createLocked(key)
		s.release(key, 2)
		s.expire(key, w.Timeout)
	}},
	{"expired while locked", func(s *suite, key backends.Key) {
		w := s.createLocked(key)
		s.expire(key, w.Timeout)
	}},
	{"expired uninitialized", func(s *suite, key backends.Key) {
		w := s.createUninitialized(key)
		s.expire(key, w.Timeout)
	}},
	{"created expired", func(s *suite, key backends.Key) { s.set(key, write(-minute)) }},
	{"created expired, a nanosecond", func(s *suite, key backends.Key) { s.set(key, write(-1)) }},
	{"overwritten expired", func(s *suite, key backends.Key) {
		s.createLocked(key)
		w := write(-minute)
		w.LockCookie = 2
		s.set(key, w)
	}},
}

var expiryCases = []testCase{
	{"makes a session missing at once for every operation, and none brings it back", func(s *suite) {
		for _, d := range dead {
			for _, op := range onMissing {
				s.sub(d.name+", "+op.name, func(s *suite) {
					key := s.key()
					d.make(s, key)
					s.is(op.name, op.do(s.ctx, s.Store, key), backends.ErrNotFound)
					s.missing(key)
				})
			}
		}
	}},
	{"leaves room for a new session, with cookie 1 and a mark of its own", func(s *suite) {
		for _, d := range dead {
			for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfMissing} {
				for _, mark := range []bool{false, true} {
					s.sub(fmt.Sprintf("%s, condition %d, uninitialized %t", d.name, cond, mark), func(s *suite) {
						key := s.key()
						d.make(s, key)
						w := write(timeout)
						w.Condition, w.LockCookie, w.Uninitialized = cond, 7, mark
						s.set(key, w)
						item := s.get(key)
						s.sameItem(item, w, 1)
						if item.Uninitialized != mark {
							s.Fatalf("uninitialized is %t, want %t", item.Uninitialized, mark)
						}
						if c := s.lock(key); c != 2 {
							s.Fatalf("the first lock's cookie is %d, want 2", c)
						}
						if age := s.locked(key, 2).Age; age > margin {
							s.Fatalf("the first lock is %v old", age)
						}
					})
				}
			}
		}
	}},
	{"comes after the timeout, never early and at most Slack late", func(s *suite) {
		for _, timeout := range []time.Duration{minute, timeout, 24 * time.Hour, 525600 * minute} {
			s.sub(timeout.String(), func(s *suite) {
				key := s.key()
				s.set(key, write(timeout))
				s.backdate(key, timeout-margin)
				s.exists(key)
				key = s.key()
				s.set(key, write(timeout))
				s.expire(key, timeout)
				s.missing(key)
			})
		}
	}},
	{"never comes with NeverExpires", func(s *suite) {
		key := s.key()
		w := write(backends.NeverExpires)
		s.set(key, w)
		s.backdate(key, 10000*time.Hour)
		s.holds(key, w, 1)
		s.lock(key)
		s.backdate(key, 10000*time.Hour)
		if age := s.locked(key, 2).Age; age < 10000*time.Hour {
			s.Fatalf("lock age is %v", age)
		}
	}},
	{"is a long way off with a long timeout", func(s *suite) {
		key := s.key()
		w := write(100 * 365 * 24 * time.Hour)
		s.set(key, w)
		s.backdate(key, 10000*time.Hour)
		s.holds(key, w, 1)
	}},
	{"follows the timeout that the last Set brought", func(s *suite) {
		changes := []struct{ from, to time.Duration }{
			{timeout, minute}, {minute, timeout},
			{backends.NeverExpires, minute}, {24 * time.Hour, 23 * time.Hour},
			{timeout, timeout + minute}, {timeout, timeout - minute},
		}
		for _, c := range changes {
			for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfCookie} {
				s.sub(fmt.Sprintf("%v to %v, condition %d", c.from, c.to, cond), func(s *suite) {
					again := func() backends.Key {
						key := s.key()
						s.set(key, write(c.from))
						w := write(c.to)
						w.Condition, w.LockCookie = cond, 1
						s.set(key, w)
						return key
					}
					key := again()
					s.backdate(key, c.to-margin)
					s.exists(key)
					key = again()
					s.expire(key, c.to)
					s.missing(key)
				})
			}
		}
		key := s.key()
		s.set(key, write(minute))
		s.set(key, write(backends.NeverExpires))
		s.backdate(key, 10000*time.Hour)
		s.exists(key)
	}},
	{"does not follow the timeout of a refused Set", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		s.isLocked("Set", s.Store.Set(s.ctx, key, newToken(), write(minute)), 2)
		s.isLocked("Set", s.Store.Set(s.ctx, key, newToken(), write(-minute)), 2)
		w := write(minute)
		w.Condition = backends.IfMissing
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
		s.backdate(key, timeout-margin)
		s.exists(key)
		key = s.key()
		s.create(key)
		w = write(backends.NeverExpires)
		w.Condition = backends.IfMissing
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
		s.expire(key, timeout)
		s.missing(key)
	}},
}

// touches are all the ways to find a session and leave it there. The session is unlocked
// with cookie 1, or locked with cookie 2.
var touches = []struct {
	name   string
	locked bool
	do     func(s *suite, key backends.Key)
}{
	{"Get", false, func(s *suite, key backends.Key) { s.get(key) }},
	{"GetExclusive", false, func(s *suite, key backends.Key) { s.getExclusive(key) }},
	{"Release of an unlocked session", false, func(s *suite, key backends.Key) { s.release(key, 1) }},
	{"Release IfCookie of an unlocked session", false, func(s *suite, key backends.Key) { s.releaseIfCookie(key, 1) }},
	{"Set", false, func(s *suite, key backends.Key) { s.set(key, write(timeout)) }},
	{"Set IfCookie", false, func(s *suite, key backends.Key) {
		w := write(timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 1
		s.set(key, w)
	}},
	{"Set IfMissing, ErrExists", false, func(s *suite, key backends.Key) {
		w := write(timeout)
		w.Condition = backends.IfMissing
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
	}},
	{"ResetTimeout", false, func(s *suite, key backends.Key) { s.resetTimeout(key) }},
	{"locked Get", true, func(s *suite, key backends.Key) { s.locked(key, 2) }},
	{"locked GetExclusive", true, func(s *suite, key backends.Key) {
		_, err := s.Store.GetExclusive(s.ctx, key, newToken())
		s.isLocked("GetExclusive", err, 2)
	}},
	{"locked Release", true, func(s *suite, key backends.Key) { s.release(key, 2) }},
	{"locked Release IfCookie", true, func(s *suite, key backends.Key) { s.releaseIfCookie(key, 2) }},
	{"locked Release with another cookie", true, func(s *suite, key backends.Key) {
		_, err := s.Store.Release(s.ctx, key, newToken(), 9, backends.IfUnlocked)
		s.isLocked("Release", err, 2)
	}},
	{"locked Set", true, func(s *suite, key backends.Key) {
		w := write(timeout)
		w.LockCookie = 2
		s.set(key, w)
	}},
	{"locked Set with another cookie", true, func(s *suite, key backends.Key) {
		s.isLocked("Set", s.Store.Set(s.ctx, key, newToken(), write(timeout)), 2)
	}},
	{"locked Set IfMissing", true, func(s *suite, key backends.Key) {
		w := write(timeout)
		w.Condition = backends.IfMissing
		s.is("Set", s.Store.Set(s.ctx, key, newToken(), w), backends.ErrExists)
	}},
	{"locked Remove with another cookie", true, func(s *suite, key backends.Key) {
		s.isLocked("Remove", s.Store.Remove(s.ctx, key, newToken(), 9, backends.IfUnlocked), 2)
	}},
	{"locked ResetTimeout", true, func(s *suite, key backends.Key) { s.resetTimeout(key) }},
}

// renewalCases prove rule 3 from both sides: the session is touched when it is idle old,
// and must then live for its timeout from the touch on, and Slack more at most. Ages just
// within and just beyond Slack are where a store that coalesces goes wrong.
var renewalCases = []testCase{
	{"by every touch", func(s *suite) {
		slack := backends.Slack(timeout)
		idles := []time.Duration{slack / 2, slack - tick, slack + tick, 2 * slack, timeout * 3 / 5, timeout - margin}
		for _, touch := range touches {
			s.sub(touch.name, func(s *suite) {
				touched := func(idle time.Duration) backends.Key {
					key := s.key()
					if touch.locked {
						s.createLocked(key)
					} else {
						s.create(key)
					}
					s.backdate(key, idle)
					touch.do(s, key)
					return key
				}
				for _, idle := range idles {
					key := touched(idle)
					s.backdate(key, timeout-margin)
					_, err := s.Store.Get(s.ctx, key, newToken())
					if !backends.IsAnswer(err) || err == backends.ErrNotFound {
						s.Fatalf("touched when %v idle, the session did not live %v from then: %v", idle, timeout-margin, err)
					}
					key = touched(idle)
					s.expire(key, timeout)
					_, err = s.Store.Get(s.ctx, key, newToken())
					s.is(fmt.Sprintf("touched when %v idle, the session is %v overdue", idle, slack+tick), err, backends.ErrNotFound)
				}
			})
		}
	}},
	{"never by an ErrConflict", func(s *suite) {
		conflicts := map[string]func(key backends.Key) error{
			"Release": func(key backends.Key) error {
				_, err := s.Store.Release(s.ctx, key, newToken(), 9, backends.IfCookie)
				return err
			},
			"Set": func(key backends.Key) error {
				w := write(2 * timeout)
				w.Condition, w.LockCookie = backends.IfCookie, 9
				return s.Store.Set(s.ctx, key, newToken(), w)
			},
			"Remove": func(key backends.Key) error { return s.Store.Remove(s.ctx, key, newToken(), 9, backends.IfCookie) },
		}
		for name, conflict := range conflicts {
			for _, create := range []func(backends.Key) backends.Write{s.create, s.createLocked} {
				key := s.key()
				create(key)
				s.backdate(key, timeout-margin)
				s.is(name, conflict(key), backends.ErrConflict)
				s.backdate(key, backends.Slack(timeout)+margin+tick)
				s.is(name, conflict(key), backends.ErrNotFound)
				s.missing(key)
			}
		}
	}},
	{"again and again", func(s *suite) {
		key := s.key()
		w := s.create(key)
		for range 20 {
			s.backdate(key, timeout*4/5)
			s.holds(key, w, 1)
		}
	}},
	{"does not change the timeout", func(s *suite) {
		key := s.key()
		w := s.create(key)
		s.backdate(key, timeout/2)
		s.resetTimeout(key)
		s.holds(key, w, 1)
		s.resetTimeout(key)
		s.holds(key, w, 1)
	}},
	{"of a locked session keeps content, cookie and lock", func(s *suite) {
		key := s.key()
		w := s.createLocked(key)
		for range 3 {
			s.backdate(key, timeout*3/5)
			s.resetTimeout(key)
			s.locked(key, 2)
		}
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"of one session leaves others alone", func(s *suite) {
		one, other := s.key(), s.key()
		s.create(one)
		s.create(other)
		s.backdate(one, timeout*3/5)
		s.backdate(other, timeout*3/5)
		s.resetTimeout(one)
		s.backdate(one, timeout*3/5)
		s.backdate(other, timeout*3/5)
		s.exists(one)
		s.missing(other)
	}},
	{"of a session that never expires leaves it so", func(s *suite) {
		key := s.key()
		w := write(backends.NeverExpires)
		s.set(key, w)
		s.resetTimeout(key)
		s.backdate(key, 10000*time.Hour)
		s.holds(key, w, 1)
		s.backdate(key, 10000*time.Hour)
		s.holds(key, w, 1)
	}},
}
