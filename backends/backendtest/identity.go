package backendtest

import (
	"fmt"
	"strings"

	"aspstate/backends"
)

var applicationCases = []testCase{
	{"that is unknown is ErrUnknownApplication and is not registered by asking", func(s *suite) {
		for range 2 {
			_, err := s.Store.Application(s.ctx, "/lm/w3svc/9/root", false)
			s.is("Application", err, backends.ErrUnknownApplication)
		}
		// A number that collides shows whether the first name is there.
		_, err := s.Store.Application(s.ctx, "/lm/w3svc/1/root/ozbyjek", false)
		s.is("Application", err, backends.ErrUnknownApplication)
		if id := s.application("/lm/w3svc/1/root/vewemtr"); uint32(id) != 0xf197a8d4 {
			s.Fatalf("AppID is %08x, want f197a8d4", uint32(id))
		}
	}},
	{"has ASPState's number", func(s *suite) {
		vectors := map[string]string{
			"/lm/w3svc/1/root":             "2014c0f1",
			"/lm/w3svc/2/root":             "2b7731d2",
			"/lm/w3svc/5/root":             "28d8c075",
			"/lm/w3svc/1/root/sessiontest": "a30e2956",
		}
		for name, suffix := range vectors {
			if id := s.application(name); id.Suffix() != suffix {
				s.Fatalf("application %s has suffix %s, want %s", name, id.Suffix(), suffix)
			}
		}
	}},
	{"keeps its number, whether asked to create or not", func(s *suite) {
		id := s.application("/lm/w3svc/3/root")
		for range 3 {
			if again := s.application("/lm/w3svc/3/root"); again != id {
				s.Fatalf("AppID was %d and is now %d", id, again)
			}
			again, err := s.Store.Application(s.ctx, "/lm/w3svc/3/root", false)
			s.is("Application", err, nil)
			if again != id {
				s.Fatalf("AppID was %d and is now %d", id, again)
			}
		}
	}},
	{"shares no number with another name", func(s *suite) {
		const one, two = "/lm/w3svc/1/root/ozbyjek", "/lm/w3svc/1/root/vewemtr"
		if s.Collides {
			s.collide(one, two)
			return
		}
		first, second := s.application(one), s.application(two)
		if uint32(first) != 0xf197a8d4 || uint32(second) != 0xf197a8d5 {
			s.Fatalf("AppIDs are %08x and %08x, want f197a8d4 and the next free, f197a8d5", uint32(first), uint32(second))
		}
		for range 3 {
			if a, b := s.application(one), s.application(two); a != first || b != second {
				s.Fatalf("AppIDs were %d and %d and are now %d and %d", first, second, a, b)
			}
		}
		key := s.key()
		key.App = first
		s.create(key)
		key.App = second
		s.missing(key)
	}},
	{"takes the next free number past a taken one", func(s *suite) {
		if s.Collides {
			s.Skip("this store refuses names whose number is taken")
		}
		want := []struct {
			name string
			id   uint32
		}{
			{"/lm/w3svc/1/root/ozbyjej", 0xf197a8d5}, // its own hash is the number after the pair's
			{"/lm/w3svc/1/root/ozbyjek", 0xf197a8d4},
			{"/lm/w3svc/1/root/vewemtr", 0xf197a8d6},
			{"/lm/w3svc/1/root/vewemts", 0xf197a8d7}, // its hash is f197a8d5
		}
		for range 2 {
			for _, w := range want {
				if id := s.application(w.name); uint32(id) != w.id {
					s.Fatalf("%s has AppID %08x, want %08x", w.name, uint32(id), w.id)
				}
			}
		}
	}},
	{"is found by its exact name", func(s *suite) {
		names := []string{
			"/LM/W3SVC/1/ROOT/Shop", "/lm/w3svc/1/root/shop", "/LM/W3SVC/1/ROOT/Shop ", " /LM/W3SVC/1/ROOT/Shop",
			"/lm/w3svc/1/root/caf\u00e9", "/lm/w3svc/1/root/cafe\u0301", "/lm/w3svc/1/root/CAF\u00c9",
			"/lm/w3svc/1/root/stra\u00dfe", "/lm/w3svc/1/root/strasse", "/lm/w3svc/1/root/\U0001F600", "",
			"/LM/W3SVC/1/ROOT(NDbkwGi0191wFdDv0yOUOobtHns=)/", strings.Repeat("/long", 400), strings.Repeat("/long", 400) + "!",
			"'; drop table applications; --", "%_[a]\\",
		}
		ids := map[backends.AppID]string{}
		for _, name := range names {
			_, err := s.Store.Application(s.ctx, name, false)
			s.is(fmt.Sprintf("Application(%.40q) before it is created", name), err, backends.ErrUnknownApplication)
			id := s.application(name)
			if other, taken := ids[id]; taken {
				s.Fatalf("%.40q and %.40q share AppID %d", name, other, id)
			}
			ids[id] = name
		}
		for id, name := range ids {
			if again := s.application(name); again != id {
				s.Fatalf("%.40q had AppID %d and has now %d", name, id, again)
			}
		}
	}},
}

// collide asserts that only the first of two names that have the same number is registered.
func (s *suite) collide(one, two string) {
	s.Helper()
	first := s.application(one)
	for _, create := range []bool{true, false, true} {
		_, err := s.Store.Application(s.ctx, two, create)
		if create {
			s.is("Application of a name whose number is taken", err, backends.ErrPermanent)
			if backends.IsAnswer(err) || !strings.Contains(err.Error(), one) || !strings.Contains(err.Error(), two) {
				s.Fatalf("Application of a name whose number is taken: %v, want a failure that names both", err)
			}
		} else {
			s.is("Application", err, backends.ErrUnknownApplication)
		}
		if again := s.application(one); again != first {
			s.Fatalf("AppID was %d and is now %d", first, again)
		}
	}
}

var identityCases = []testCase{
	{"sessions of different applications never meet", func(s *suite) {
		one := s.key()
		two := one
		two.App = s.application("/lm/w3svc/2/root")
		w1, w2 := s.create(one), s.create(two)
		s.lock(one)
		s.holds(two, w2, 1)
		s.is("Remove", s.Store.Remove(s.ctx, two, newToken(), 1, backends.IfUnlocked), nil)
		s.locked(one, 2)
		s.release(one, 2)
		s.holds(one, w1, 2)
		s.missing(two)
	}},
	{"negative AppIDs are as good as others", func(s *suite) {
		key := s.key()
		key.App = s.application("/lm/w3svc/1/root/sessiontest")
		if key.App >= 0 {
			s.Fatalf("AppID is %d, want the negative one of ASPState", key.App)
		}
		w := s.create(key)
		s.lock(key)
		s.locked(key, 2)
		s.release(key, 2)
		s.holds(key, w, 2)
	}},
	{"IDs compare byte by byte", func(s *suite) {
		ids := []string{
			"", " ", "  ", "a", "a ", "a  ", " a", "A", "a\t", "a\n", "\u00e1", "a\u0301", "\u00c1", "\u00e4", "ae", "\u00df", "ss", "i", "I", "\u0131", "\u0130",
			"\u212a", "k", "K", "\uff41", "\u200b", "a\u200b", "\ufeff", "\ufffd", "\U0001F600", "\U0001F601", "%", "_", "%61", "a%", "'", "\"", "\\", "\\'", "0x61", "61", "null", "NULL",
			strings.Repeat("x", 80), strings.Repeat("x", 79), strings.Repeat("x", 79) + "X", strings.Repeat("\u20ac", 80), strings.Repeat("\U0001F600", 40),
			"bpr4mimb2vjnvtn2jc4yp3uo", "BPR4MIMB2VJNVTN2JC4YP3UO", "bpr4mimb2vjnvtn2jc4yp3uo2014c0f1", "\x01", "\x7f", "{}[]()/*?:;,",
		}
		written := map[string]backends.Write{}
		for _, id := range ids {
			key := backends.Key{App: s.app, ID: id}
			w := write(timeout)
			w.Condition = backends.IfMissing
			if _, twice := written[id]; twice {
				s.Fatalf("the ID %q stands in the list twice", id)
			}
			if err := s.Store.Set(s.ctx, key, newToken(), w); err != nil {
				s.Fatalf("Set of the ID %q: %v", id, err)
			}
			written[id] = w
		}
		for id, w := range written {
			key := backends.Key{App: s.app, ID: id}
			s.holds(key, w, 1)
			s.lock(key)
			s.resetTimeout(key)
			s.release(key, 2)
			s.holds(key, w, 2)
		}
		for id := range written {
			key := backends.Key{App: s.app, ID: id}
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 2, backends.IfUnlocked), nil)
			s.missing(key)
			delete(written, id)
			for other, w := range written {
				s.holds(backends.Key{App: s.app, ID: other}, w, 2)
				break
			}
		}
	}},
}
