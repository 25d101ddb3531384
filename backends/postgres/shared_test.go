//go:build unix

package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/postgres/pgtest"
)

// long reports whether tests that take minutes are wanted, and says in the log that this one is left out.
func long(t *testing.T) bool {
	t.Helper()
	if os.Getenv("ASPSTATE_TEST_LONG") != "" {
		return true
	}
	t.Log("only with ASPSTATE_TEST_LONG=1:", t.Name())
	return false
}

// farm is several stores on one database, used as one: a request stays with its store, as requests do with their server.
type farm []*Store

func (f farm) of(tok backends.Token) *Store { return f[int(tok[3])%len(f)] }
func (f farm) any() *Store                  { return f[rand.IntN(len(f))] }

func (f farm) Application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	return f.any().Application(ctx, name, create)
}
func (f farm) Get(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	return f.of(tok).Get(ctx, key, tok)
}
func (f farm) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	return f.of(tok).GetExclusive(ctx, key, tok)
}
func (f farm) Release(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (bool, error) {
	return f.of(tok).Release(ctx, key, tok, cookie, cond)
}
func (f farm) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	return f.of(tok).Set(ctx, key, tok, w)
}
func (f farm) Remove(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) error {
	return f.of(tok).Remove(ctx, key, tok, cookie, cond)
}
func (f farm) ResetTimeout(ctx context.Context, key backends.Key) error {
	return f.any().ResetTimeout(ctx, key)
}
func (f farm) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	return f.any().Unread(ctx, key, item)
}
func (f farm) DeleteExpired(ctx context.Context, limit int) (int, error) {
	return f.any().DeleteExpired(ctx, limit)
}
func (f farm) Ping(ctx context.Context) error { return f.any().Ping(ctx) }
func (f farm) Close() (err error) {
	for _, s := range f {
		err = errors.Join(err, s.Close())
	}
	return err
}

func TestThreeStoresOnOneDatabase(t *testing.T) {
	if !long(t) {
		return
	}
	server := pgtest.Shared(t)
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		f := fixture(t, migrated(t, server.Database(t)))
		url := server.URL(databaseOf(f.Store.(*Store)))
		f.Store = farm{f.Store.(*Store), open(t, url), open(t, url)}
		return f
	})
}

func databaseOf(s *Store) string { return s.db.config.Database }

func TestThroughPgBouncer(t *testing.T) {
	if !long(t) {
		return
	}
	server := pgtest.Shared(t)
	port := server.Bouncer(t)
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		return fixture(t, through(t, migrated(t, server.Database(t)), port))
	})
}

// counters is the lost-update test over several stores: every page adds one under the lock.
func counters(t *testing.T, stores []*Store, sessions, workers, rounds int) {
	t.Helper()
	ctx := t.Context()
	app, err := stores[0].Application(ctx, "app", true)
	if err != nil {
		t.Fatal(err)
	}
	key := func(i int) backends.Key { return backends.Key{App: app, ID: fmt.Sprintf("counter%d", i%sessions)} }
	for i := range sessions {
		err := stores[0].Set(ctx, key(i), newToken(), backends.Write{Data: make([]byte, 3000), Timeout: time.Hour, LockCookie: backends.NoCookie})
		if err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			store := stores[worker%len(stores)]
			for i := range rounds {
				key := key(worker + i)
				got, err := store.GetExclusive(ctx, key, newToken())
				for {
					if _, locked := errors.AsType[*backends.LockedError](err); !locked {
						break
					}
					got, err = store.GetExclusive(ctx, key, newToken())
				}
				if err == nil {
					data := item(3000)
					binary.BigEndian.PutUint64(data, binary.BigEndian.Uint64(got.Data)+1)
					err = store.Set(ctx, key, newToken(), backends.Write{Data: data, Timeout: time.Hour, LockCookie: got.LockCookie})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	sum := uint64(0)
	for i := range sessions {
		got, err := stores[i%len(stores)].Get(ctx, key(i), newToken())
		if err != nil {
			t.Fatal(err)
		}
		n := binary.BigEndian.Uint64(got.Data)
		if uint64(got.LockCookie) != n+1 {
			t.Errorf("session %d counts %d and its cookie is %d", i, n, got.LockCookie)
		}
		sum += n
	}
	if want := uint64(workers * rounds); sum != want {
		t.Errorf("the counters add up to %d, want %d: updates are lost", sum, want)
	}
}

func TestNoLostUpdatesAndNoDeadlocks(t *testing.T) {
	server := pgtest.Shared(t)
	url := migrated(t, server.Database(t))
	a, b := open(t, url), open(t, url)
	counters(t, []*Store{a, b}, 40, 48, 40)

	// Batches of sets over the same keys, in every order, creating and replacing.
	var wg sync.WaitGroup
	app, _ := a.Application(t.Context(), "app", true)
	for worker := range 64 {
		wg.Go(func() {
			store := []*Store{a, b}[worker%2]
			for range 25 {
				key := backends.Key{App: app, ID: fmt.Sprintf("overlap%d", rand.IntN(100))}
				w := backends.Write{Data: item(100), Timeout: time.Hour, LockCookie: backends.NoCookie}
				if err := store.Set(t.Context(), key, newToken(), w); err != nil {
					t.Error(err)
				}
				if err := store.Remove(t.Context(), key, newToken(), 1, backends.IfUnlocked); err != nil && !errors.Is(err, backends.ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if log := server.Log(); strings.Contains(log, "deadlock detected") {
		t.Error("deadlocks")
	}
}

func TestOneCreatorWinsOverTwoStores(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	stores := []*Store{open(t, url), open(t, url)}
	app, err := stores[0].Application(t.Context(), "app", true)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 50 {
		key := backends.Key{App: app, ID: fmt.Sprint("session", round)}
		var wins atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				w := backends.Write{Data: item(10), Timeout: time.Hour, Condition: backends.IfMissing}
				switch err := stores[i%2].Set(t.Context(), key, newToken(), w); {
				case err == nil:
					wins.Add(1)
				case !errors.Is(err, backends.ErrExists):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 {
			t.Fatalf("%d creators won", wins.Load())
		}
	}
}

// The same through PgBouncer, which gives each statement to either of two connections.
func TestPgBouncerInShort(t *testing.T) {
	server := pgtest.Shared(t)
	url := through(t, migrated(t, server.Database(t)), server.Bouncer(t))
	stores := []*Store{open(t, url), open(t, url)}
	counters(t, stores, 10, 16, 20)
	if n, err := stores[1].DeleteExpired(t.Context(), 10); n != 0 || err != nil {
		t.Error(n, err)
	}
}

// A role that owns nothing but its schema, beside a table of the same name in another.
func TestSchemaOfOrdinaryRole(t *testing.T) {
	server := pgtest.Shared(t)
	admin := server.Database(t)
	role := fmt.Sprintf("web%d", rand.Uint32())
	server.Exec(t, admin, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN; CREATE SCHEMA state AUTHORIZATION %[1]s; CREATE TABLE public.sessions (sid text); CREATE TABLE public.schema_migrations (other text);`, role))
	t.Cleanup(func() { server.Exec(t, admin, fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", role)) })
	_, name, _ := strings.Cut(admin, fmt.Sprintf(":%d/", server.Port))
	name, _, _ = strings.Cut(name, "?")
	url := server.URLAs(role, name) + "&search_path=state"

	_, err := Open(t.Context(), url, testLog(t))
	if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), "run: aspstate migrate up") {
		t.Fatalf("%v, want the command to run", err)
	}
	migrated(t, url)
	counters(t, []*Store{open(t, url)}, 3, 4, 5)

	// Another role without rights is told what it needs.
	server.Exec(t, admin, fmt.Sprintf("CREATE ROLE %[1]s_poor LOGIN; GRANT USAGE ON SCHEMA state TO %[1]s_poor", role))
	t.Cleanup(func() { server.Exec(t, admin, fmt.Sprintf("DROP OWNED BY %[1]s_poor; DROP ROLE %[1]s_poor", role)) })
	_, err = Open(t.Context(), server.URLAs(role+"_poor", name)+"&search_path=state", testLog(t))
	if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), "GRANT SELECT, INSERT, UPDATE, DELETE") {
		t.Fatalf("%v, want the grants that are missing", err)
	}
}

func TestOpenRefusesAtOnce(t *testing.T) {
	server := pgtest.Shared(t)
	for _, c := range []struct{ url, text string }{
		{server.URL("nowhere"), "create the database"},
		{server.URL("postgres") + "&pool_max_conns=1", "pool_max_conns"},
		{"postgres://%zz", ""},
		{server.URLAs("nobody_at_all", "postgres"), "check user"},
	} {
		_, err := Open(t.Context(), c.url, testLog(t))
		if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want a permanent error with %q", c.url, err, c.text)
		}
	}
}
