//go:build unix

package postgres

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

// oneSession is a store with a session of its own, and a connection to look behind it.
type oneSession struct {
	*testing.T
	store *Store
	key   backends.Key
	db    *pgx.Conn
}

func newOneSession(t *testing.T, size int) *oneSession {
	url := migrated(t, pgtest.Shared(t).Database(t))
	s := &oneSession{T: t, store: open(t, url), db: connectTo(t, url)}
	app, err := s.store.Application(t.Context(), "app", true)
	if err != nil {
		t.Fatal(err)
	}
	s.key = backends.Key{App: app, ID: "session"}
	s.set(size, time.Hour, backends.NoCookie)
	return s
}

func (s *oneSession) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *oneSession) set(size int, timeout time.Duration, cookie backends.Cookie) {
	s.Helper()
	s.must(s.store.Set(s.Context(), s.key, newToken(), backends.Write{Data: item(size), Timeout: timeout, LockCookie: cookie}))
}

// version identifies the row's version: every write, and every lock of the row, makes another.
func (s *oneSession) version() (v string) {
	s.Helper()
	s.must(s.db.QueryRow(s.Context(), "SELECT ctid::text || ' ' || xmin::text || ' ' || xmax::text FROM sessions").Scan(&v))
	return v
}

func (s *oneSession) age(d time.Duration) {
	s.Helper()
	_, err := s.db.Exec(s.Context(), "UPDATE sessions SET expires = expires - $1 * interval '1 second'", d.Seconds())
	s.must(err)
}

func TestWhatWritesNothing(t *testing.T) {
	s := newOneSession(t, 3000)
	ctx := t.Context()
	same := func(what string, do func()) {
		t.Helper()
		before := s.version()
		do()
		if after := s.version(); after != before {
			t.Errorf("%s wrote the row: %s, then %s", what, before, after)
		}
	}
	same("Get", func() { _, err := s.store.Get(ctx, s.key, newToken()); s.must(err) })
	same("ResetTimeout", func() { s.must(s.store.ResetTimeout(ctx, s.key)) })
	got, err := s.store.GetExclusive(ctx, s.key, newToken())
	s.must(err)
	refused := func(err error) {
		t.Helper()
		if locked, ok := errors.AsType[*backends.LockedError](err); !ok || locked.Cookie != got.LockCookie {
			t.Errorf("%v, want a refusal", err)
		}
	}
	same("Get of a locked session", func() { _, err := s.store.Get(ctx, s.key, newToken()); refused(err) })
	same("GetExclusive of a locked session", func() { _, err := s.store.GetExclusive(ctx, s.key, newToken()); refused(err) })
	same("ResetTimeout of a locked session", func() { s.must(s.store.ResetTimeout(ctx, s.key)) })

	s.age(4 * time.Minute) // more than Slack
	before := s.version()
	s.must(s.store.ResetTimeout(ctx, s.key))
	if s.version() == before {
		t.Error("ResetTimeout after four minutes renewed nothing")
	}
	same("the next Get", func() { _, err := s.store.Get(ctx, s.key, newToken()); refused(err) })
}

// Locks, releases, renewals and writes stay on their page and out of the indexes, and what changes no item leaves a
// long one alone.
func TestUpdatesAreHOT(t *testing.T) {
	for _, size := range []int{100, 1000, 100000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			s := newOneSession(t, size)
			ctx := t.Context()
			chunks := func() (ids string) {
				var toast string
				s.must(s.db.QueryRow(ctx, "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'sessions'::regclass").Scan(&toast))
				s.must(s.db.QueryRow(ctx, "SELECT coalesce(string_agg(DISTINCT chunk_id::text, ' '), '') FROM "+toast).Scan(&ids))
				return ids
			}
			const rounds = 40
			before := chunks()
			if (before != "") != (size > 2000) {
				t.Fatalf("chunks of an item of %d bytes: %q", size, before)
			}
			for range rounds {
				got, err := s.store.GetExclusive(ctx, s.key, newToken())
				s.must(err)
				s.age(10 * time.Minute)
				s.must(s.store.ResetTimeout(ctx, s.key))
				_, err = s.store.Release(ctx, s.key, newToken(), got.LockCookie, backends.IfUnlocked)
				s.must(err)
			}
			if after := chunks(); after != before {
				t.Errorf("locks and renewals have rewritten the item: chunks %s, then %s", before, after)
			}
			for range rounds {
				s.set(size, time.Hour, backends.NoCookie)
			}
			s.store.Close() // connections that end give up their statistics
			var updates, hot int64
			for end := time.Now().Add(10 * time.Second); updates < 5*rounds && time.Now().Before(end); {
				s.must(s.db.QueryRow(ctx, "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'").Scan(&updates, &hot))
			}
			if updates != 5*rounds || hot < updates*9/10 {
				t.Errorf("of %d updates, want %d, %d are HOT", updates, 5*rounds, hot)
			}
		})
	}
}

// A caller that has gone leaves a statement behind, which is applied once whatever comes before or after it.
func TestAbandonedCall(t *testing.T) {
	s := newOneSession(t, 100)
	tok := newToken()
	late := backends.Write{Data: item(100), Timeout: time.Hour, LockCookie: backends.NoCookie}

	tx, err := s.db.Begin(t.Context())
	s.must(err)
	_, err = tx.Exec(t.Context(), "SELECT FROM sessions FOR UPDATE")
	s.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.store.Set(ctx, s.key, tok, late) }()
	waitForLock(t, s.db)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, backends.ErrNotApplied) {
		t.Fatalf("%v, want the context's error and an unknown outcome", err)
	}
	s.must(tx.Commit(t.Context())) // the statement goes on

	for range 3 {
		s.set(50, time.Hour, backends.NoCookie)
	}
	s.must(s.store.Set(t.Context(), s.key, tok, late))
	got, err := s.store.Get(t.Context(), s.key, newToken())
	s.must(err)
	if len(got.Data) != 50 {
		t.Fatal("the retry has overwritten a later write")
	}
}

// waitForLock returns when somebody waits for a lock in this database.
func waitForLock(t *testing.T, db *pgx.Conn) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		var waiting bool
		if err := db.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		if waiting {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nobody waits for a lock")
		}
	}
}

// A row that somebody holds locked fails its own requests, not those of other sessions.
func TestRowLockedByOthers(t *testing.T) {
	s := newOneSession(t, 100)
	other := s.key
	other.ID = "other"
	w := backends.Write{Data: item(100), Timeout: time.Hour, LockCookie: backends.NoCookie}
	s.must(s.store.Set(t.Context(), other, newToken(), w))
	tx, err := s.db.Begin(t.Context())
	s.must(err)
	_, err = tx.Exec(t.Context(), "SELECT FROM sessions WHERE session_id = 'session' FOR UPDATE")
	s.must(err)
	defer tx.Rollback(t.Context())

	failed := make(chan error, 1)
	go func() { failed <- s.store.Set(t.Context(), s.key, newToken(), w) }()
	waitForLock(t, s.db)
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		s.must(s.store.Set(ctx, other, newToken(), w))
		_, err = s.store.GetExclusive(ctx, other, newToken())
		s.must(err)
		s.must(s.store.Remove(ctx, other, newToken(), 2, backends.IfUnlocked))
		cancel()
	}
	if err := <-failed; backends.IsAnswer(err) || errors.Is(err, backends.ErrPermanent) || !errors.Is(err, backends.ErrNotApplied) {
		t.Fatalf("%v, want a failure that is worth a retry", err)
	}
	s.must(tx.Rollback(t.Context()))
	s.must(s.store.Set(t.Context(), s.key, newToken(), w))
}

func TestLargeItem(t *testing.T) {
	s := newOneSession(t, 64<<20)
	var size int
	s.must(s.db.QueryRow(t.Context(), "SELECT length(item) FROM sessions").Scan(&size))
	got, err := s.store.GetExclusive(t.Context(), s.key, newToken())
	s.must(err)
	if size != 64<<20 || len(got.Data) != size {
		t.Fatalf("stored %d bytes, read %d", size, len(got.Data))
	}
}

// A removed session's row is neither counted nor kept for long, and its item is gone at once.
func TestRemovedRow(t *testing.T) {
	s := newOneSession(t, 100)
	ctx := t.Context()
	s.must(s.store.Remove(ctx, s.key, newToken(), 1, backends.IfUnlocked))
	rows := func() (n, bytes int) {
		s.must(s.db.QueryRow(ctx, "SELECT count(*), coalesce(sum(length(item)), 0) FROM sessions").Scan(&n, &bytes))
		return n, bytes
	}
	sweep := func() {
		t.Helper()
		if n, err := s.store.DeleteExpired(ctx, 10); n != 0 || err != nil {
			t.Fatalf("DeleteExpired: %d, %v", n, err)
		}
	}
	sweep()
	if n, bytes := rows(); n != 1 || bytes != 0 {
		t.Fatalf("%d rows with %d bytes, want the tokens of the removed session", n, bytes)
	}
	_, err := s.db.Exec(ctx, "UPDATE sessions SET sweep_at = sweep_at - interval '3 minutes'")
	s.must(err)
	sweep()
	if n, _ := rows(); n != 0 {
		t.Fatalf("%d rows are left", n)
	}
}

func TestSweeping(t *testing.T) {
	s := newOneSession(t, 100)
	ctx := t.Context()
	s.age(2 * time.Hour)
	_, err := s.db.Exec(ctx, "UPDATE sessions SET sweep_at = now() - interval '1 second'")
	s.must(err)
	sweep := func(want int) {
		t.Helper()
		if n, err := s.store.DeleteExpired(ctx, 1000); n != want || err != nil {
			t.Fatalf("DeleteExpired: %d, %v, want %d", n, err, want)
		}
	}
	// Another server is sweeping.
	tx, err := s.db.Begin(ctx)
	s.must(err)
	_, err = tx.Exec(ctx, "SELECT pg_advisory_xact_lock("+sweepLock+", 'sessions'::regclass::oid::int4)")
	s.must(err)
	sweep(0)
	s.must(tx.Rollback(ctx))
	// A request holds the row.
	tx, err = s.db.Begin(ctx)
	s.must(err)
	_, err = tx.Exec(ctx, "SELECT FROM sessions FOR UPDATE")
	s.must(err)
	sweep(0)
	s.must(tx.Rollback(ctx))
	sweep(1)

	// Applications that nobody needs are forgotten, the others stay.
	_, err = s.store.Application(ctx, "unused", true)
	s.must(err)
	used, err := s.store.Application(ctx, "used", true)
	s.must(err)
	s.must(s.store.Set(ctx, backends.Key{App: used, ID: "x"}, newToken(), backends.Write{Data: item(1), Timeout: time.Hour}))
	_, err = s.db.Exec(ctx, "UPDATE applications SET last_use = now() - interval '25 hours' WHERE app_id <> $1", s.key.App)
	s.must(err)
	sweep(0)
	for name, want := range map[string]error{"app": nil, "used": nil, "unused": backends.ErrUnknownApplication} {
		if _, err := s.store.Application(ctx, name, false); !errors.Is(err, want) {
			t.Errorf("application %s: %v, want %v", name, err, want)
		}
	}
}

func TestApplicationsAreBounded(t *testing.T) {
	s := newOneSession(t, 1)
	_, err := s.db.Exec(t.Context(), `INSERT INTO applications (app_id, name_hash, app_name, last_use)
		SELECT n, decode(md5(n::text), 'hex'), '', now() FROM generate_series(1, 9999) AS n`)
	s.must(err)
	if _, err := s.store.Application(t.Context(), "one too many", true); !errors.Is(err, backends.ErrFull) {
		t.Fatalf("%v, want ErrFull", err)
	}
	_, err = s.store.Application(t.Context(), "app", true)
	s.must(err)
}
