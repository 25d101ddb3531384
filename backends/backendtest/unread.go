package backendtest

import (
	"fmt"
	"slices"
	"time"

	"aspstate/backends"
)

// unread takes back that the item was found.
func (s *suite) unread(key backends.Key, item backends.Item) {
	s.Helper()
	s.is("Unread", s.Store.Unread(s.ctx, key, item), nil)
}

// lives asserts that sessions as make makes them, locked or not, expire when so much has gone by, and Slack at most.
func (s *suite) lives(left time.Duration, make func(key backends.Key)) {
	s.Helper()
	key := s.key()
	make(key)
	s.backdate(key, left-margin)
	s.exists(key)
	key = s.key()
	make(key)
	s.backdate(key, left+backends.Slack(timeout)+tick)
	s.missing(key)
}

// findings are the ways to find an item.
var findings = []struct {
	name string
	do   func(s *suite, key backends.Key) backends.Item
}{
	{"Get", func(s *suite, key backends.Key) backends.Item { return s.get(key) }},
	{"GetExclusive", func(s *suite, key backends.Key) backends.Item { return s.getExclusive(key) }},
}

// half is how much is left of a session that is found to be unreadable.
const half = timeout / 2

// found makes a session of which half is left, and finds it.
func (s *suite) found(key backends.Key, size int, find func(s *suite, key backends.Key) backends.Item) backends.Item {
	s.Helper()
	w := write(timeout)
	w.Data = randomData(size)
	s.set(key, w)
	s.backdate(key, half)
	item := find(s, key)
	if item.Unrenewed == 0 {
		s.Fatalf("half of its life was left, and it was not renewed")
	}
	return item
}

var unreadCases = []testCase{
	{"takes back that a session was found, and again does no harm", func(s *suite) {
		for _, find := range findings {
			for _, size := range []int{32, 7000, 7001, 100_000} {
				s.sub(fmt.Sprintf("%s of %d bytes", find.name, size), func(s *suite) {
					s.lives(half, func(key backends.Key) {
						item := s.found(key, size, find.do)
						s.unread(key, item)
						s.unread(key, item)
					})
				})
			}
		}
	}},
	{"takes back what renewed the same item meanwhile, in any order", func(s *suite) {
		for _, second := range findings {
			for _, reversed := range []bool{false, true} {
				s.sub(fmt.Sprintf("%s, reversed %t", second.name, reversed), func(s *suite) {
					s.lives(half, func(key backends.Key) {
						items := []backends.Item{s.found(key, 32, findings[0].do)}
						s.backdate(key, half/2) // or the others would not renew it in stores that coalesce
						items = append(items, second.do(s, key))
						s.resetTimeout(key)
						if reversed {
							slices.Reverse(items)
						}
						for _, item := range items {
							s.unread(key, item)
						}
					})
				})
			}
		}
	}},
	{"is as if it had not been found: the next one renews", func(s *suite) {
		s.lives(timeout, func(key backends.Key) {
			s.unread(key, s.found(key, 32, findings[1].do))
			s.get(key)
		})
	}},
	{"takes back what those renewed who met the lock", func(s *suite) {
		s.lives(half, func(key backends.Key) {
			item := s.found(key, 32, findings[1].do)
			for range 3 { // each of them waits for the one before
				s.locked(key, item.LockCookie)
				s.unread(key, item)
				item = s.getExclusive(key)
			}
			s.unread(key, item)
		})
	}},
	{"ends the lock, and no other", func(s *suite) {
		key := s.key()
		w := s.create(key)
		plain, exclusive := s.get(key), s.getExclusive(key)
		s.unread(key, plain)
		s.locked(key, 2)
		s.unread(key, exclusive)
		s.holds(key, w, 2)
		if c := s.lock(key); c != 3 {
			s.Fatalf("the next lock's cookie is %d, want 3", c)
		}
		s.unread(key, exclusive)
		s.locked(key, 3)
		plain.LockCookie = backends.NoCookie
		s.unread(key, plain)
		s.locked(key, 3)
	}},
	{"leaves a session alone that was written meanwhile", func(s *suite) {
		for name, data := range map[string]func(old []byte) []byte{
			"other data":     func(old []byte) []byte { return randomData(len(old)) },
			"a zero more":    func(old []byte) []byte { return append(slices.Clone(old), 0) },
			"a byte less":    func(old []byte) []byte { return old[:len(old)-1] },
			"a changed byte": func(old []byte) []byte { return append([]byte{old[0] ^ 1}, old[1:]...) },
		} {
			for _, find := range findings {
				s.sub(name+", "+find.name, func(s *suite) {
					s.lives(timeout, func(key backends.Key) {
						item := s.found(key, 32, find.do)
						w := write(timeout)
						w.Data, w.LockCookie = data(item.Data), item.LockCookie
						s.set(key, w)
						s.unread(key, item)
					})
				})
			}
		}
	}},
	{"leaves a new session alone", func(s *suite) {
		s.lives(timeout, func(key backends.Key) {
			item := s.found(key, 32, findings[0].do)
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 1, backends.IfUnlocked), nil)
			s.create(key)
			s.unread(key, item)
		})
	}},
	{"leaves other sessions alone", func(s *suite) {
		s.lives(timeout, func(key backends.Key) {
			one := s.key()
			item := s.found(one, 32, findings[0].do)
			s.set(key, backends.Write{Data: item.Data, Timeout: timeout, LockCookie: backends.NoCookie})
			s.unread(one, item)
		})
	}},
	{"brings no session back", func(s *suite) {
		key := s.key()
		item := s.found(key, 32, findings[0].do)
		s.expire(key, timeout)
		s.unread(key, item)
		s.missing(key)
		s.unread(key, item)
		s.missing(key)
	}},
	{"makes no session live longer", func(s *suite) {
		key := s.key()
		item := s.found(key, 32, findings[0].do)
		s.set(key, backends.Write{Data: item.Data, Timeout: minute, LockCookie: backends.NoCookie})
		s.unread(key, item)
		s.expire(key, minute)
		s.missing(key)
	}},
	{"does nothing where nothing was renewed", func(s *suite) {
		s.lives(timeout, func(key backends.Key) {
			w := s.create(key)
			s.backdate(key, half)
			item := s.getExclusive(key)
			item.Unrenewed = 0
			s.unread(key, item)
			s.holds(key, w, 2)
		})
		key := s.key()
		w := write(backends.NeverExpires)
		s.set(key, w)
		s.backdate(key, 10000*time.Hour)
		for _, find := range findings {
			item := find.do(s, key)
			if item.Unrenewed != 0 {
				s.Fatalf("%s of a session that does not expire says that it renewed it (%d)", find.name, item.Unrenewed)
			}
			s.unread(key, item)
			s.holds(key, w, item.LockCookie)
		}
	}},
	{"keeps the content, and that the mark was reported", func(s *suite) {
		key := s.key()
		w := s.createUninitialized(key)
		s.backdate(key, half)
		item := s.getExclusive(key)
		s.unread(key, item)
		if again := s.getExclusive(key); again.Uninitialized || !item.Uninitialized {
			s.Fatal("the mark was not reported once")
		}
		s.release(key, 3)
		s.holds(key, w, 3)
	}},
}
