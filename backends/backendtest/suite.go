package backendtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
)

const (
	minute = time.Minute
	// timeout is what sessions of the suite live for unless a case is about timeouts.
	timeout = 20 * minute
	// margin is longer than any case runs, so that what must be alive is not killed by a
	// slow machine.
	margin = 10 * time.Second
	// tick is more than the coarsest clock that a store may keep time by.
	tick = time.Second
	// hang is when a call that ought to have come back is given up.
	hang = 10 * time.Second
	// patience ends a case whose sessions are never unlocked.
	patience = 4 * minute
)

// suite is one case at work: a fresh store, and one registered application.
type suite struct {
	*testing.T
	Fixture
	ctx    context.Context
	app    backends.AppID
	keys   *atomic.Int64 // how many key has made
	worker bool          // this one's goroutine is not the test's own
	open   func(t *testing.T) Fixture
}

func newSuite(t *testing.T, open func(t *testing.T) Fixture) *suite {
	t.Helper()
	f := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	s := &suite{T: t, Fixture: f, ctx: ctx, keys: new(atomic.Int64), open: open}
	s.app = s.application("/lm/w3svc/1/root")
	return s
}

// another is the suite on another store, for moves between the two.
func (s *suite) another() *suite {
	s.Helper()
	return newSuite(s.T, s.open)
}

// movable is the store as what all cases about moves need.
func (s *suite) movable() backends.Movable { return s.Store.(backends.Movable) }

func (s *suite) application(name string) backends.AppID {
	s.Helper()
	id, err := s.Store.Application(s.ctx, name, true)
	if err != nil {
		s.Fatalf("Application(%q, create): %v", name, err)
	}
	return id
}

// key returns the key of a session that no other call of key has returned.
func (s *suite) key() backends.Key {
	return backends.Key{App: s.app, ID: fmt.Sprintf("session%017d", s.keys.Add(1))}
}

func newToken() (tok backends.Token) {
	rand.Read(tok[:])
	return tok
}

func randomData(n int) []byte {
	data := make([]byte, n)
	rand.Read(data)
	return data
}

// write is a Write of random data under IfUnlocked without a cookie.
func write(timeout time.Duration) backends.Write {
	return backends.Write{Data: randomData(32), Timeout: timeout, LockCookie: backends.NoCookie}
}

// forWorker is the suite for another goroutine, where a failed check ends that goroutine.
func (s *suite) forWorker() *suite {
	w := *s
	w.worker = true
	return &w
}

// Fatalf ends the goroutine that it is called in.
func (s *suite) Fatalf(format string, args ...any) {
	s.Helper()
	if !s.worker {
		s.T.Fatalf(format, args...)
	}
	s.Errorf(format, args...)
	runtime.Goexit()
}

// Fatal is Fatalf for a message without arguments.
func (s *suite) Fatal(message string) {
	s.Helper()
	s.Fatalf("%s", message)
}

// create makes an unlocked session and returns what was written.
func (s *suite) create(key backends.Key) backends.Write {
	s.Helper()
	w := write(timeout)
	s.set(key, w)
	return w
}

// createUninitialized makes a session that carries the uninitialized mark.
func (s *suite) createUninitialized(key backends.Key) backends.Write {
	s.Helper()
	w := write(timeout)
	w.Uninitialized = true
	w.Condition = backends.IfMissing
	s.set(key, w)
	return w
}

// createLocked makes a session and locks it, with cookie 2.
func (s *suite) createLocked(key backends.Key) backends.Write {
	s.Helper()
	w := s.create(key)
	if c := s.lock(key); c != 2 {
		s.Fatalf("the first lock's cookie is %d, want 2", c)
	}
	return w
}

func (s *suite) set(key backends.Key, w backends.Write) {
	s.Helper()
	if err := s.Store.Set(s.ctx, key, newToken(), w); err != nil {
		s.Fatalf("Set: %v", err)
	}
}

func (s *suite) get(key backends.Key) backends.Item {
	s.Helper()
	item, err := s.Store.Get(s.ctx, key, newToken())
	if err != nil {
		s.Fatalf("Get: %v", err)
	}
	return item
}

func (s *suite) getExclusive(key backends.Key) backends.Item {
	s.Helper()
	item, err := s.Store.GetExclusive(s.ctx, key, newToken())
	if err != nil {
		s.Fatalf("GetExclusive: %v", err)
	}
	return item
}

func (s *suite) lock(key backends.Key) backends.Cookie {
	s.Helper()
	return s.getExclusive(key).LockCookie
}

func (s *suite) release(key backends.Key, cookie backends.Cookie) (uninitialized bool) {
	s.Helper()
	uninitialized, err := s.Store.Release(s.ctx, key, newToken(), cookie, backends.IfUnlocked)
	if err != nil {
		s.Fatalf("Release with cookie %d: %v", cookie, err)
	}
	return uninitialized
}

func (s *suite) releaseIfCookie(key backends.Key, cookie backends.Cookie) (uninitialized bool) {
	s.Helper()
	uninitialized, err := s.Store.Release(s.ctx, key, newToken(), cookie, backends.IfCookie)
	if err != nil {
		s.Fatalf("Release IfCookie with cookie %d: %v", cookie, err)
	}
	return uninitialized
}

func (s *suite) resetTimeout(key backends.Key) {
	s.Helper()
	if err := s.Store.ResetTimeout(s.ctx, key); err != nil {
		s.Fatalf("ResetTimeout: %v", err)
	}
}

func (s *suite) backdate(key backends.Key, d time.Duration) {
	s.Helper()
	s.Backdate(s.T, key, d)
}

// expire makes a session of the given timeout as old as no renewal allows it to get.
func (s *suite) expire(key backends.Key, timeout time.Duration) {
	s.Helper()
	s.backdate(key, timeout+backends.Slack(timeout)+tick)
}

// is fails the case unless err is (wraps) want; nil means success.
func (s *suite) is(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: %v, want %v", what, err, want)
	}
}

// isLocked fails the case unless err is a LockedError with this cookie.
func (s *suite) isLocked(what string, err error, cookie backends.Cookie) *backends.LockedError {
	s.Helper()
	locked, ok := errors.AsType[*backends.LockedError](err)
	if !ok {
		s.Fatalf("%s: %v, want a LockedError", what, err)
	}
	if locked.Cookie != cookie {
		s.Fatalf("%s: locked with cookie %d, want %d", what, locked.Cookie, cookie)
	}
	if locked.Age < 0 {
		s.Fatalf("%s: lock age %v is negative", what, locked.Age)
	}
	return locked
}

// locked asserts that the session is locked, without taking a lock.
func (s *suite) locked(key backends.Key, cookie backends.Cookie) *backends.LockedError {
	s.Helper()
	_, err := s.Store.Get(s.ctx, key, newToken())
	return s.isLocked("Get", err, cookie)
}

// missing asserts that there is no session.
func (s *suite) missing(key backends.Key) {
	s.Helper()
	_, err := s.Store.Get(s.ctx, key, newToken())
	s.is("Get", err, backends.ErrNotFound)
}

// exists asserts that there is a session, locked or not.
func (s *suite) exists(key backends.Key) {
	s.Helper()
	_, err := s.Store.Get(s.ctx, key, newToken())
	if _, locked := errors.AsType[*backends.LockedError](err); err != nil && !locked {
		s.Fatalf("Get: %v, want a session", err)
	}
}

// holds asserts that the session is unlocked, and what Get says of it.
func (s *suite) holds(key backends.Key, w backends.Write, cookie backends.Cookie) {
	s.Helper()
	s.sameItem(s.get(key), w, cookie)
}

func (s *suite) sameItem(item backends.Item, w backends.Write, cookie backends.Cookie) {
	s.Helper()
	if !bytes.Equal(item.Data, w.Data) {
		s.Fatalf("data are %s, want %s", brief(item.Data), brief(w.Data))
	}
	if item.Timeout != w.Timeout {
		s.Fatalf("timeout is %v, want %v", item.Timeout, w.Timeout)
	}
	if item.LockCookie != cookie {
		s.Fatalf("lock cookie is %d, want %d", item.LockCookie, cookie)
	}
}

func brief(data []byte) string {
	if len(data) > 16 {
		return fmt.Sprintf("%x… (%d bytes)", data[:16], len(data))
	}
	return fmt.Sprintf("%x", data)
}

// sub runs f as a subtest on the same store.
func (s *suite) sub(name string, f func(s *suite)) {
	s.Helper()
	s.Run(name, func(t *testing.T) {
		sub := *s
		sub.T = t
		f(&sub)
	})
}
