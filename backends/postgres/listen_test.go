//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

// listening starts Listen on a store and returns where it tells.
func listening(t *testing.T, s *Store) <-chan backends.Key {
	t.Helper()
	ready, told := make(chan struct{}), make(chan backends.Key, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Listen(ctx, func() { close(ready) }, func(k backends.Key) { told <- k }) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("listen: %v", err)
	}
	return told
}

func wantTold(t *testing.T, told <-chan backends.Key, want backends.Key) {
	t.Helper()
	select {
	case got := <-told:
		if got != want {
			t.Fatalf("told of %v, want %v", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("not told of %v", want)
	}
}

// A release is told to every server if, and only if, one of them expects it.
func TestExpectedReleasesAreTold(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	a, b := open(t, url), open(t, url)
	told := listening(t, b)
	ctx := t.Context()
	ends := map[string]func(key backends.Key, cookie backends.Cookie) error{
		"release": func(key backends.Key, cookie backends.Cookie) error {
			_, err := a.Release(ctx, key, newToken(), cookie, backends.IfUnlocked)
			return err
		},
		"unread": func(key backends.Key, cookie backends.Cookie) error {
			return a.Unread(ctx, key, backends.Item{Data: []byte("x"), LockCookie: cookie})
		},
		"set": func(key backends.Key, cookie backends.Cookie) error {
			return a.Set(ctx, key, newToken(), backends.Write{Data: []byte("y"), Timeout: time.Hour, LockCookie: cookie})
		},
		"set with another timeout": func(key backends.Key, cookie backends.Cookie) error {
			return a.Set(ctx, key, newToken(), backends.Write{Data: []byte("y"), Timeout: time.Minute, LockCookie: cookie})
		},
		"remove": func(key backends.Key, cookie backends.Cookie) error {
			return a.Remove(ctx, key, newToken(), cookie, backends.IfUnlocked)
		},
	}
	for name, end := range ends {
		key := backends.Key{App: -7, ID: "session é " + name}
		if locked, err := b.Expect(ctx, key); locked || err != nil {
			t.Fatalf("%s: a missing session is locked: %v, %v", name, locked, err)
		}
		create := backends.Write{Data: []byte("x"), Timeout: time.Hour, Condition: backends.IfMissing, Uninitialized: true}
		if err := a.Set(ctx, key, newToken(), create); err != nil {
			t.Fatal(err)
		}
		if locked, err := b.Expect(ctx, key); locked || err != nil {
			t.Fatalf("%s: an unlocked session is locked: %v, %v", name, locked, err)
		}
		// Nobody expects this release: the next word is of the next one.
		item, err := a.GetExclusive(ctx, key, newToken())
		if err == nil {
			_, err = a.Release(ctx, key, newToken(), item.LockCookie, backends.IfUnlocked)
		}
		if err != nil || !item.Uninitialized {
			t.Fatalf("%s: %+v, %v", name, item, err)
		}
		if item, err = a.GetExclusive(ctx, key, newToken()); err != nil || item.Uninitialized {
			t.Fatalf("%s: %+v, %v", name, item, err)
		}
		for range 2 {
			if locked, err := b.Expect(ctx, key); !locked || err != nil {
				t.Fatalf("%s: a locked session is not: %v", name, err)
			}
		}
		if _, err := a.Release(ctx, key, newToken(), item.LockCookie+1, backends.IfUnlocked); err == nil {
			t.Fatalf("%s: released with a wrong cookie", name)
		}
		other := backends.Key{App: -7, ID: "other " + name}
		for _, k := range []backends.Key{other, key} { // the order of words is that of commits
			if k == other {
				if err := a.Set(ctx, other, newToken(), create); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := end(key, item.LockCookie); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		wantTold(t, told, key)
		// The mark went with the lock.
		if name != "remove" {
			if item, err = a.GetExclusive(ctx, key, newToken()); err != nil || item.Uninitialized {
				t.Fatalf("%s: %+v, %v", name, item, err)
			}
			if _, err := a.Release(ctx, key, newToken(), item.LockCookie, backends.IfUnlocked); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case key := <-told:
		t.Errorf("told of %v, which nobody expected", key)
	default:
	}
}

// A release of one schema's session is none of another's.
func TestReleasesOfAnotherSchemaAreNotTold(t *testing.T) {
	server := pgtest.Shared(t)
	url := server.Database(t)
	server.Exec(t, url, "CREATE SCHEMA one; CREATE SCHEMA two")
	one, two := open(t, migrated(t, url+"&search_path=one")), open(t, migrated(t, url+"&search_path=two"))
	told := listening(t, two)
	ctx, key := t.Context(), backends.Key{App: 1, ID: "1"}
	for _, s := range []*Store{one, two} {
		if err := s.Set(ctx, key, newToken(), backends.Write{Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		item, err := s.GetExclusive(ctx, key, newToken())
		if err != nil {
			t.Fatal(err)
		}
		if locked, err := s.Expect(ctx, key); !locked || err != nil {
			t.Fatalf("expect: %v, %v", locked, err)
		}
		if _, err := s.Release(ctx, key, newToken(), item.LockCookie, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
	}
	wantTold(t, told, key)
	select {
	case <-told:
		t.Error("told twice")
	default:
	}
}

// Behind a pooler nothing is told, and Listen says so.
func TestListenBehindAPooler(t *testing.T) {
	server := pgtest.Shared(t)
	url := through(t, migrated(t, server.Database(t)), server.Bouncer(t))
	if err := open(t, url).Listen(t.Context(), func() { t.Error("ready") }, func(backends.Key) {}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("listen: %v", err)
	}
}

func TestListenEndsWithItsConnection(t *testing.T) {
	server := pgtest.New(t)
	s := open(t, migrated(t, server.Database(t)))
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Listen(context.Background(), func() { close(ready) }, func(backends.Key) {}) }()
	<-ready
	server.StopImmediately()
	if err := <-ended; err == nil || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("listen: %v", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("1:616263")
	f.Add("-7:")
	f.Add(greeting)
	f.Fuzz(func(t *testing.T, payload string) {
		key, ok := parseKey(payload)
		if again, ok2 := parseKey(fmt.Sprintf("%d:%x", key.App, key.ID)); ok && (!ok2 || again != key) {
			t.Fatalf("%q is %v, and that is %v", payload, key, again)
		}
	})
}
