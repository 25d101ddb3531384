package sqlite

import (
	"bytes"
	"context"
	"testing"

	"aspstate/backends"
)

// An operator's shell may change the file beside the store, whose next lock must not go by what it remembers.
func TestCacheSeesWhatOthersWrite(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	execute(t, s, `UPDATE sessions SET lock_cookie = 40, item = zeroblob(3)`)
	item, err := s.GetExclusive(t.Context(), key(1), newToken())
	if err != nil || item.LockCookie != 41 || !bytes.Equal(item.Data, make([]byte, 3)) {
		t.Errorf("the lock has cookie %d and the item %x, error %v; want what was written beside the store", item.LockCookie, item.Data, err)
	}
	execute(t, s, `DELETE FROM sessions`)
	_, err = s.GetExclusive(t.Context(), key(1), newToken())
	wantIs(t, err, backends.ErrNotFound)
}

// SQLite gives the row of a deleted session to the next one.
func TestRowsThatWereSweptAreForgotten(t *testing.T) {
	s := newStore(t)
	expired := write(data(1))
	expired.Timeout = -1
	set(t, s, key(1), expired)
	if n, err := s.DeleteExpired(t.Context(), 10); n != 1 || err != nil {
		t.Fatalf("swept %d sessions, error %v", n, err)
	}
	set(t, s, key(2), write(data(2)))
	set(t, s, key(1), write(data(3)))
	holds(t, s, key(2), data(2), 1)
	holds(t, s, key(1), data(3), 1)
}

func TestLongItemsAreReadFromTheFile(t *testing.T) {
	s := newStore(t)
	long := bytes.Repeat([]byte("long"), cacheItem)
	set(t, s, key(1), write(long))
	for cookie := backends.Cookie(2); cookie < 5; cookie++ {
		item, err := s.GetExclusive(t.Context(), key(1), newToken())
		if err != nil || item.LockCookie != cookie || !bytes.Equal(item.Data, long) {
			t.Fatalf("%d bytes with cookie %d, error %v; want %d with %d", len(item.Data), item.LockCookie, err, len(long), cookie)
		}
		if _, err := s.Release(t.Context(), key(1), newToken(), cookie, backends.IfCookie); err != nil {
			t.Fatal(err)
		}
	}
}

// What a slow reader of an answer has is not what later writes put in its place.
func TestItemsGivenOutStay(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	item, err := s.GetExclusive(t.Context(), key(1), newToken())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		w := write(data(n))
		w.LockCookie = item.LockCookie
		set(t, s, key(1), w)
	}
	if !bytes.Equal(item.Data, data(1)) {
		t.Errorf("the item given out has become %x", item.Data)
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c cache
	c.clear()
	held := func() (bytes int) {
		for _, sessions := range []map[backends.Key]*session{c.young, c.old} {
			for key, se := range sessions {
				bytes += weight(key, se)
			}
		}
		return bytes
	}
	const most = 2 * (cacheBytes + cacheEntry + cacheItem + 100)
	for n := range 3000 {
		se := &session{row: int64(n)}
		c.put(key(n), se)
		c.keep(se, make([]byte, cacheItem+n%2)) // half of them are too long
		if n%3 == 0 {
			c.drop(key(n / 2))
		}
		if found := c.get(key(max(0, n-200))); found != nil && found.row != int64(max(0, n-200)) {
			t.Fatalf("session %d has row %d", n-200, found.row)
		}
		if n%100 == 0 && held() > most {
			t.Fatalf("%d bytes are held after %d sessions, want at most %d", held(), n, most)
		}
	}
	if c.get(key(2999)) == nil || c.get(key(1)) != nil || held() < cacheBytes {
		t.Errorf("of 3000 sessions the last is here: %t, one of the first: %t; %d bytes", c.get(key(2999)) != nil, c.get(key(1)) != nil, held())
	}
	young := 0
	for key, se := range c.young {
		young += weight(key, se)
	}
	if young != c.bytes {
		t.Errorf("%d bytes are counted, %d are there", c.bytes, young)
	}
}

// Sessions that fit become longer, all of them.
func TestCacheIsBoundedWhereItemsGrow(t *testing.T) {
	var c cache
	c.clear()
	for n := range 2000 {
		c.put(key(n), &session{})
	}
	for n := range 2000 {
		if se := c.get(key(n)); se != nil {
			c.keep(se, make([]byte, cacheItem))
		}
	}
	held := 0
	for _, sessions := range []map[backends.Key]*session{c.young, c.old} {
		for key, se := range sessions {
			held += weight(key, se)
		}
	}
	if held > 2*(cacheBytes+cacheItem) {
		t.Errorf("%d bytes are held, want at most twice %d", held, cacheBytes)
	}
}

// A lock that a transaction took which was rolled back is not held.
func TestRolledBackLockIsForgotten(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	broken := newOp("test", func(w *writer, _ *op) error {
		if err := w.getExclusive(&op{key: key(1)}); err != nil {
			return err
		}
		return &resultError{message: "planted"}
	}, backends.Key{}, backends.Token{})
	if err := s.finish(context.Background(), broken); err == nil {
		t.Fatal("the planted failure did not come back")
	}
	item, err := s.GetExclusive(t.Context(), key(1), newToken())
	if err != nil || item.LockCookie != 2 {
		t.Errorf("cookie %d, error %v; want the session's first lock", item.LockCookie, err)
	}
}
