//go:build unix

package postgres

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/postgres/pgtest"
	"aspstate/migrations"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestStore(t *testing.T) {
	server := pgtest.Shared(t)
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		return fixture(t, migrated(t, server.Database(t)+"&connect_timeout=30")) // nobody tries again here, and machines are busy
	})
}

func BenchmarkStore(b *testing.B) {
	server := pgtest.New(b)
	backendtest.Bench(b, func(tb testing.TB) backendtest.Fixture { return fixture(tb, migrated(tb, server.Database(tb))) })
}

// testLog shows warnings with the test.
func testLog(tb testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// migrated makes the tables in a database and returns its connection string.
func migrated(tb testing.TB, url string) string {
	tb.Helper()
	m, db, err := migrations.Postgres(tb.Context(), url, false, testLog(tb))
	if err != nil {
		tb.Fatal(err)
	}
	defer db.Close()
	if err := m.Up(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return url
}

func open(tb testing.TB, url string) *Store {
	tb.Helper()
	s, err := Open(tb.Context(), url, testLog(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func fixture(tb testing.TB, url string) backendtest.Fixture {
	tb.Helper()
	db := connectTo(tb, url)
	beside := func(tb testing.TB) backends.Store { return open(tb, url) }
	return backendtest.Fixture{Store: open(tb, url), Beside: beside, Backdate: func(t testing.TB, key backends.Key, d time.Duration) {
		t.Helper()
		tag, err := db.Exec(context.Background(), `UPDATE sessions SET created = created - $3 * interval '1 microsecond', expires = expires - $3 * interval '1 microsecond',
			lock_date = lock_date - $3 * interval '1 microsecond', sweep_at = sweep_at - $3 * interval '1 microsecond'
			WHERE app_id = $1 AND session_id = $2`, key.App, []byte(key.ID), d.Microseconds())
		if err != nil || tag.RowsAffected() != 1 {
			t.Fatalf("backdate: %v %v", tag, err)
		}
	}}
}
