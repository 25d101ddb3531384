package server

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
)

// failing puts a store that can fail in front of the vault's.
func (v *vault) failing() *backendtest.Failing {
	store := &backendtest.Failing{Store: v.store}
	v.setRoute(newRoute(store))
	return store
}

// newPlanted is a vault with an item that somebody planted, in a store that can fail.
func newPlanted(t *testing.T) (*vault, *backendtest.Failing) {
	v := newVault(t)
	v.write("shop", "1", "mine")
	v.plant("shop", "1", []byte("planted"))
	return v, v.failing()
}

// A session whose item cannot be opened times out, however often pages ask for it; with a key that is only missing it does not.
func TestDamagedSessionIsNotRenewed(t *testing.T) {
	for why, renewed := range map[Unreadable]bool{UnreadableDamaged: false, UnreadableUnencrypted: false, UnreadableUnknownKey: true} {
		t.Run(why.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVault(t)
				v.write("shop", "1", "mine")
				data := bytes.Clone(v.kept("shop", "1").Data)
				switch why {
				case UnreadableDamaged:
					data[len(data)-1] ^= 1
				case UnreadableUnencrypted:
					data = []byte("planted")
				case UnreadableUnknownKey:
					data = newSealKey(t).Seal("shop", "1", []byte("mine"))
				}
				v.plant("shop", "1", data)
				left := v.kept("shop", "1").Left
				for range 5 {
					v.unreadable("shop", "1", why)
					if now := v.kept("shop", "1").Left; (now > left) != (renewed && left < 20*time.Minute) {
						t.Errorf("%v were left, and %v are after its requests, want that it was renewed: %v", left, now, renewed)
					}
					time.Sleep(4 * time.Minute)
					left = v.kept("shop", "1").Left
				}
				time.Sleep(time.Second)
				_, err := v.Get(t.Context(), now(), v.session("shop", "1"))
				if is := !errors.Is(err, backends.ErrNotFound); is != renewed {
					t.Errorf("after its 20 minutes: %v, want that it lives: %v", err, renewed)
				}
			})
		})
	}
}

// Two pages that ask for it at the same time do not renew it either, whatever comes first; and none waits for the other's lock in vain.
func TestDamagedSessionIsNotRenewedByTwoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVault(t)
		v.SetLockWait(5 * time.Second)
		v.write("shop", "1", "mine")
		v.plant("shop", "1", []byte("planted"))
		time.Sleep(15 * time.Minute)
		store := v.failing()
		store.Fail(func(_ context.Context, op string, apply func() error) error { // it takes its time before and after
			time.Sleep(time.Millisecond)
			defer time.Sleep(time.Millisecond)
			return apply()
		})
		begun, left := time.Now(), v.kept("shop", "1").Left
		asks := map[string]func(context.Context, Request, Session) (backends.Item, error){"get": v.Get, "exclusive": v.GetExclusive}
		for one, first := range asks {
			for other, second := range asks {
				for after := time.Duration(0); after < 6*time.Millisecond; after += 300 * time.Microsecond {
					var pages sync.WaitGroup
					page := func(ask func(context.Context, Request, Session) (backends.Item, error)) {
						if _, err := ask(t.Context(), now(), v.session("shop", "1")); !errors.Is(err, ErrUnreadable) {
							t.Errorf("%v, want that it cannot be read", err)
						}
					}
					pages.Go(func() { page(first) })
					time.Sleep(after)
					pages.Go(func() { page(second) })
					pages.Wait()
					is, want := v.kept("shop", "1"), left-time.Since(begun)
					if is.Left != want || is.Locked {
						t.Fatalf("%s, %v after %s: %v are left and it is locked: %v; want %v", other, after, one, is.Left, is.Locked, want)
					}
				}
			}
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("they took %v", took)
		}
		if n := count(&v.Metrics.LockWait[WaitFailed]); n == 0 {
			t.Error("none of them waited for a lock")
		}
	})
}

// A page that writes the session while another one fails has it for all of its timeout.
func TestWrittenSessionIsRenewedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, store := newPlanted(t)
		time.Sleep(15 * time.Minute)
		written := false
		store.Fail(func(_ context.Context, op string, apply func() error) error {
			if op == "unread" && !written {
				written = true
				v.write("shop", "1", "written")
			}
			return apply()
		})
		if _, err := v.Get(t.Context(), now(), v.session("shop", "1")); !errors.Is(err, ErrUnreadable) {
			t.Fatal(err)
		}
		if left := v.kept("shop", "1").Left; !written || left != 20*time.Minute {
			t.Errorf("written: %v; it has %v left, want 20m", written, left)
		}
		v.reads("shop", "1", "written")
	})
}

// What is taken back is what this page did: a lock with the same number, of a session that came in the place of the one it found, stays.
func TestLockOfAnotherSessionIsLeftAlone(t *testing.T) {
	v := newVault(t)
	v.write("shop", "1", "mine")
	item, err := v.GetExclusive(t.Context(), now(), v.session("shop", "1"))
	if err != nil {
		t.Fatal(err)
	}
	v.plant("shop", "1", []byte("planted"))
	store := v.failing()
	store.Fail(func(_ context.Context, op string, apply func() error) error {
		if op == "unread" {
			store.Fail(nil)
			if err := v.Remove(t.Context(), now(), v.session("shop", "1"), item.LockCookie, backends.IfUnlocked); err != nil {
				t.Errorf("remove: %v", err)
			}
			v.write("shop", "1", "new")
			if again, err := v.GetExclusive(t.Context(), now(), v.session("shop", "1")); err != nil || again.LockCookie != item.LockCookie {
				t.Errorf("the new session's lock has cookie %d, %v; the other one's had %d", again.LockCookie, err, item.LockCookie)
			}
		}
		return apply()
	})
	if _, err := v.Get(t.Context(), now(), v.session("shop", "1")); !errors.Is(err, ErrUnreadable) {
		t.Fatal(err)
	}
	if !v.kept("shop", "1").Locked {
		t.Error("the new session is unlocked under the page that has it")
	}
}

// Where the store fails or is left at that moment, the page fails all the same, and the lock is released when that is possible.
func TestUnreadableSessionIsUnlockedLater(t *testing.T) {
	for name, fault := range map[string]error{"failing": backendtest.ErrDown, "left": backends.ErrMoved} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, store := newPlanted(t)
				store.Fail(func(_ context.Context, op string, apply func() error) error {
					if op == "unread" {
						return fault
					}
					return apply()
				})
				begun := time.Now()
				if _, err := v.GetExclusive(t.Context(), now(), v.session("shop", "1")); !errors.Is(err, ErrUnreadable) {
					t.Fatal(err)
				}
				if took := time.Since(begun); took > budget || took > 0 && fault == backends.ErrMoved {
					t.Errorf("it took %v", took)
				}
				v.Settle(t.Context())
				if v.kept("shop", "1").Locked {
					t.Error("it stays locked")
				}
			})
		})
	}
}
