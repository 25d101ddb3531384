//go:build unix

package postgres

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

func newToken() (tok backends.Token) {
	rand.Read(tok[:])
	return tok
}

func item(size int) []byte {
	data := make([]byte, size)
	rand.Read(data)
	return data
}

// through is the connection string with another port.
func through(t testing.TB, connectionString string, port int) string {
	t.Helper()
	u, err := url.Parse(connectionString)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return u.String()
}

// unreliable is a store behind a proxy, and another store on the same database that sees what is there.
type unreliable struct {
	*testing.T
	proxy       *proxy
	store, seer *Store
	app         backends.AppID
	keys        int
}

func newUnreliable(t *testing.T) *unreliable {
	server := pgtest.Shared(t)
	connectionString := migrated(t, server.Database(t))
	u := &unreliable{T: t, proxy: newProxy(t, fmt.Sprintf("127.0.0.1:%d", server.Port))}
	u.store = open(t, through(t, connectionString, u.proxy.port()))
	u.seer = open(t, connectionString)
	var err error
	if u.app, err = u.seer.Application(t.Context(), "app", true); err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *unreliable) key() backends.Key {
	u.keys++
	return backends.Key{App: u.app, ID: fmt.Sprintf("session%d", u.keys)}
}

// create makes a session with the mark, with a seer's hands.
func (u *unreliable) create(key backends.Key) []byte {
	u.Helper()
	w := backends.Write{Data: item(32), Timeout: time.Hour, LockCookie: backends.NoCookie, Uninitialized: true}
	u.must(u.seer.Set(u.Context(), key, newToken(), w))
	return w.Data
}

func (u *unreliable) must(err error) {
	u.Helper()
	if err != nil {
		u.Fatal(err)
	}
}

func (u *unreliable) locked(key backends.Key, cookie backends.Cookie) {
	u.Helper()
	_, err := u.seer.Get(u.Context(), key, newToken())
	if l, ok := errors.AsType[*backends.LockedError](err); !ok || l.Cookie != cookie {
		u.Fatalf("%v, want a lock with cookie %d", err, cookie)
	}
}

func (u *unreliable) holds(key backends.Key, data []byte, cookie backends.Cookie) backends.Item {
	u.Helper()
	got, err := u.seer.Get(u.Context(), key, newToken())
	u.must(err)
	if string(got.Data) != string(data) || got.LockCookie != cookie {
		u.Fatalf("the session has cookie %d and %x, want %d and %x", got.LockCookie, got.Data, cookie, data)
	}
	return got
}

// try runs an operation that meets the fault, which must fail with an unknown outcome.
func (u *unreliable) try(f fault, tok backends.Token, op func() error) {
	u.Helper()
	met := u.proxy.next(f, tok[:])
	err := op()
	select {
	case <-met:
	default:
		u.Fatalf("the fault was not met: %v", err)
	}
	if backends.IsAnswer(err) || errors.Is(err, backends.ErrNotApplied) || errors.Is(err, backends.ErrPermanent) {
		u.Fatalf("%v, want a failure with an unknown outcome", err)
	}
}

func TestAnswerLost(t *testing.T) {
	u := newUnreliable(t)
	ctx := t.Context()
	hour := func(data []byte, cookie backends.Cookie) backends.Write {
		return backends.Write{Data: data, Timeout: time.Hour, LockCookie: cookie}
	}
	for _, f := range []fault{loseAnswer, loseStatement} {
		applied := f == loseAnswer
		t.Run(fmt.Sprintf("fault %d", f), func(t *testing.T) {
			u.T = t
			t.Run("GetExclusive repeats cookie, mark and item", func(t *testing.T) {
				u.T = t
				key, tok := u.key(), newToken()
				data := u.create(key)
				u.try(f, tok, func() error { _, err := u.store.GetExclusive(ctx, key, tok); return err })
				if applied {
					u.locked(key, 2)
				} else if _, err := u.seer.Release(ctx, key, newToken(), 7, backends.IfUnlocked); err != nil { // takes the mark
					t.Fatal(err)
				}
				for range 2 {
					got, err := u.store.GetExclusive(ctx, key, tok)
					u.must(err)
					if got.LockCookie != 2 || string(got.Data) != string(data) || got.Uninitialized != applied {
						t.Fatalf("the retry gives %+v", got)
					}
					u.locked(key, 2)
				}
			})
			t.Run("Get repeats the mark, once", func(t *testing.T) {
				u.T = t
				key, tok := u.key(), newToken()
				data := u.create(key)
				u.try(f, tok, func() error { _, err := u.store.Get(ctx, key, tok); return err })
				got, err := u.store.Get(ctx, key, tok)
				u.must(err)
				if !got.Uninitialized {
					t.Fatal("the mark is lost")
				}
				if u.holds(key, data, 1).Uninitialized {
					t.Fatal("the mark is reported twice")
				}
			})
			t.Run("Release leaves the next lock alone", func(t *testing.T) {
				u.T = t
				key, tok := u.key(), newToken()
				u.create(key)
				_, err := u.seer.GetExclusive(ctx, key, newToken())
				u.must(err)
				u.try(f, tok, func() error { _, err := u.store.Release(ctx, key, tok, 2, backends.IfUnlocked); return err })
				if applied {
					_, err = u.seer.GetExclusive(ctx, key, newToken())
					u.must(err)
				}
				_, err = u.store.Release(ctx, key, tok, 2, backends.IfUnlocked)
				u.must(err)
				if applied {
					u.locked(key, 3)
				}
			})
			t.Run("Set never overwrites what came after it", func(t *testing.T) {
				u.T = t
				for _, others := range []int{0, 1, 20} {
					key, tok := u.key(), newToken()
					u.create(key)
					data := item(100)
					u.try(f, tok, func() error { return u.store.Set(ctx, key, tok, hour(data, 1)) })
					if !applied {
						u.must(u.store.Set(ctx, key, tok, hour(data, 1)))
					}
					for range others { // unlocked writes, from both sides
						data = item(200)
						u.must(u.seer.Set(ctx, key, newToken(), hour(data, 1)))
						u.must(u.store.Set(ctx, key, newToken(), hour(data, 1)))
					}
					u.must(u.store.Set(ctx, key, tok, hour(item(300), 1)))
					if applied {
						u.holds(key, data, 1)
					}
				}
			})
			t.Run("Set of a large item", func(t *testing.T) {
				u.T = t
				key, tok := u.key(), newToken()
				u.create(key)
				data, later := item(largeItem), item(50)
				u.try(f, tok, func() error { return u.store.Set(ctx, key, tok, hour(data, 1)) })
				u.must(u.store.Set(ctx, key, tok, hour(data, 1)))
				u.holds(key, data, 1)
				u.must(u.seer.Set(ctx, key, newToken(), hour(later, 1)))
				u.must(u.store.Set(ctx, key, tok, hour(data, 1)))
				u.holds(key, later, 1)
			})
			t.Run("Remove leaves the next session alone", func(t *testing.T) {
				u.T = t
				key, tok := u.key(), newToken()
				u.create(key)
				u.try(f, tok, func() error { return u.store.Remove(ctx, key, tok, 1, backends.IfUnlocked) })
				if !applied {
					u.must(u.store.Remove(ctx, key, tok, 1, backends.IfUnlocked))
				}
				_, err := u.seer.Get(ctx, key, newToken())
				if !errors.Is(err, backends.ErrNotFound) {
					t.Fatal(err)
				}
				u.must(u.store.Remove(ctx, key, tok, 1, backends.IfUnlocked))
				data := u.create(key)
				u.must(u.store.Remove(ctx, key, tok, 1, backends.IfUnlocked))
				if !u.holds(key, data, 1).Uninitialized {
					t.Fatal("the new session has lost its mark")
				}
			})
		})
	}
}

// A statement that was cut off reaches the database after its retry was answered, and after others wrote.
func TestStatementArrivesLate(t *testing.T) {
	u := newUnreliable(t)
	ctx := t.Context()
	w := func(data []byte) backends.Write {
		return backends.Write{Data: data, Timeout: time.Hour, LockCookie: backends.NoCookie}
	}
	t.Run("Set", func(t *testing.T) {
		u.T = t
		key, tok := u.key(), newToken()
		u.create(key)
		data := item(100)
		u.try(holdStatement, tok, func() error { return u.store.Set(ctx, key, tok, w(data)) })
		u.must(u.store.Set(ctx, key, tok, w(data)))
		for range 3 {
			data = item(200)
			u.must(u.store.Set(ctx, key, newToken(), w(data)))
			u.must(u.seer.Set(ctx, key, newToken(), w(data)))
		}
		u.proxy.letGo()
		u.holds(key, data, 1)
	})
	t.Run("Set IfMissing of a session that is gone", func(t *testing.T) {
		u.T = t
		key, tok := u.key(), newToken()
		create := w(item(100))
		create.Condition = backends.IfMissing
		u.try(holdStatement, tok, func() error { return u.store.Set(ctx, key, tok, create) })
		u.must(u.store.Set(ctx, key, tok, create))
		u.must(u.store.Remove(ctx, key, newToken(), 1, backends.IfUnlocked))
		u.proxy.letGo()
		if _, err := u.seer.Get(ctx, key, newToken()); !errors.Is(err, backends.ErrNotFound) {
			t.Fatalf("%v, want the session to stay removed", err)
		}
	})
	t.Run("GetExclusive", func(t *testing.T) {
		u.T = t
		key, tok := u.key(), newToken()
		u.create(key)
		u.try(holdStatement, tok, func() error { _, err := u.store.GetExclusive(ctx, key, tok); return err })
		got, err := u.store.GetExclusive(ctx, key, tok)
		u.must(err)
		data := item(200)
		next := w(data)
		next.LockCookie = got.LockCookie
		u.must(u.store.Set(ctx, key, newToken(), next))
		for range 3 { // other locks of the same connection
			_, err := u.store.GetExclusive(ctx, key, newToken())
			u.must(err)
			got, err := u.store.GetExclusive(ctx, key, tok)
			u.must(err)
			_, err = u.store.Release(ctx, key, newToken(), got.LockCookie, backends.IfUnlocked)
			if _, ok := errors.AsType[*backends.LockedError](err); !ok {
				t.Fatalf("%v: the retry was given the lock of another", err)
			}
			u.unlock(key)
		}
		u.proxy.letGo()
		u.holds(key, data, 5)
	})
	t.Run("Remove", func(t *testing.T) {
		u.T = t
		key, tok := u.key(), newToken()
		u.create(key)
		u.try(holdStatement, tok, func() error { return u.store.Remove(ctx, key, tok, 1, backends.IfUnlocked) })
		u.must(u.store.Remove(ctx, key, tok, 1, backends.IfUnlocked))
		data := u.create(key)
		u.must(u.store.Set(ctx, key, newToken(), w(data)))
		u.proxy.letGo()
		u.holds(key, data, 1)
	})
	t.Run("after its deadline, though it was never tried again", func(t *testing.T) {
		if !long(t) {
			return
		}
		u.T = t
		for _, create := range []bool{false, true} {
			key, tok := u.key(), newToken()
			var data []byte
			if !create {
				data = u.create(key)
			}
			u.try(holdStatement, tok, func() error { return u.store.Set(ctx, key, tok, w(item(100))) })
			time.Sleep(patience + time.Second)
			u.proxy.letGo()
			if _, err := u.seer.Get(ctx, key, newToken()); create && !errors.Is(err, backends.ErrNotFound) {
				t.Fatalf("%v: the statement has created a session after its deadline", err)
			}
			if !create {
				u.holds(key, data, 1)
			}
		}
	})
}

// unlock breaks the lock that the session has.
func (u *unreliable) unlock(key backends.Key) {
	u.Helper()
	_, err := u.seer.Get(u.Context(), key, newToken())
	if locked, ok := errors.AsType[*backends.LockedError](err); ok {
		_, err = u.seer.Release(u.Context(), key, newToken(), locked.Cookie, backends.IfUnlocked)
	}
	u.must(err)
}
