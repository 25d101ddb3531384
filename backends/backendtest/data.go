package backendtest

import (
	"bytes"
	"fmt"
	"slices"

	"aspstate/backends"
)

var dataCases = []testCase{
	{"of every size come back as they went in", func(s *suite) {
		for _, size := range []int{1, 2, 7, 255, 256, 1024, 4096, 6999, 7000, 7001, 8000, 8001, 65535, 65536, 1 << 20, 8 << 20} {
			s.sub(fmt.Sprintf("%d bytes", size), func(s *suite) {
				key := s.key()
				w := write(timeout)
				w.Data = randomData(size)
				s.set(key, w)
				s.holds(key, w, 1)
				s.sameItem(s.getExclusive(key), w, 2)
				w.Data = randomData(size)
				w.LockCookie = 2
				s.set(key, w)
				s.holds(key, w, 2)
			})
		}
	}},
	{"grow and shrink", func(s *suite) {
		key := s.key()
		for _, size := range []int{7, 7000, 7001, 7, 1 << 20, 1, 100000, 7000} {
			w := write(timeout)
			w.Data = randomData(size)
			s.set(key, w)
			s.holds(key, w, 1)
		}
	}},
	{"are opaque", func(s *suite) {
		for _, data := range [][]byte{
			{0}, make([]byte, 4096), []byte("\x14\x00\x00\x00\x00\x00\xff"), []byte("text \r\n\x00 text "), {0xff, 0xfe}, []byte("'\\\""),
		} {
			key := s.key()
			w := write(timeout)
			w.Data = data
			s.set(key, w)
			s.holds(key, w, 1)
		}
	}},
	{"are not kept by the store", func(s *suite) {
		for _, size := range []int{7, 7000, 100000} {
			key := s.key()
			w := write(timeout)
			w.Data = randomData(size)
			kept := slices.Clone(w.Data)
			for _, cookie := range []backends.Cookie{1, 2} { // a create, then a replacement
				s.set(key, w)
				clear(w.Data)
				w.Data = kept
				s.holds(key, w, cookie)
				s.release(key, s.lock(key))
				w.Data = slices.Clone(kept)
			}
		}
	}},
	{"are not kept by the store after a refusal", func(s *suite) {
		key := s.key()
		before := s.createLocked(key)
		w := write(timeout)
		s.isLocked("Set", s.Store.Set(s.ctx, key, newToken(), w), 2)
		clear(w.Data)
		s.release(key, 2)
		s.holds(key, before, 2)
	}},
	{"stay as they were read while the session changes", func(s *suite) {
		for _, size := range []int{7, 7000, 100000} {
			key := s.key()
			w := write(timeout)
			w.Data = randomData(size)
			s.set(key, w)
			read, locked := s.get(key).Data, s.getExclusive(key).Data
			for range 20 {
				next := write(timeout)
				next.Data = randomData(size)
				next.LockCookie = 2
				s.set(key, next)
			}
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 2, backends.IfUnlocked), nil)
			for range 20 {
				other := write(timeout)
				other.Data = randomData(size)
				s.set(s.key(), other)
			}
			if !bytes.Equal(read, w.Data) {
				s.Fatal("what Get returned has changed")
			}
			if !bytes.Equal(locked, w.Data) {
				s.Fatal("what GetExclusive returned has changed")
			}
		}
	}},
	{"of many sessions stay apart", func(s *suite) {
		const n = 300
		var keys [n]backends.Key
		var writes [n]backends.Write
		for i := range keys {
			keys[i] = s.key()
			writes[i] = s.create(keys[i])
		}
		for i := range keys {
			s.holds(keys[i], writes[i], 1)
		}
	}},
}
