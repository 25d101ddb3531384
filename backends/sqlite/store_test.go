package sqlite

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/migrations"
)

// openFile opens a migrated file, which the test's end closes.
func openFile(tb testing.TB, path string) *File {
	tb.Helper()
	file, err := Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { file.Close() })
	m, err := migrations.SQLite(file.DB())
	if err == nil {
		err = m.Up(tb.Context())
	}
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

// openStore opens a store on a file, which the test's end closes.
func openStore(tb testing.TB, path string) *Store {
	tb.Helper()
	file := openFile(tb, path)
	s, err := New(file, slog.New(slog.NewTextHandler(tb.Output(), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
	})
	return s
}

func newStore(tb testing.TB) *Store {
	tb.Helper()
	return openStore(tb, filepath.Join(tb.TempDir(), "test.db"))
}

// backdate makes a session d older than it is.
func (s *Store) backdate(tb testing.TB, key backends.Key, d time.Duration) {
	tb.Helper()
	res, err := s.file.DB().ExecContext(tb.Context(), `UPDATE sessions
		SET created = created - ?1, lock_date = lock_date - ?1, expires = CASE expires WHEN ?2 THEN expires ELSE expires - ?1 END
		WHERE app_id = ?3 AND session_id = ?4`, d.Milliseconds(), int64(never), key.App, []byte(key.ID))
	if err != nil {
		tb.Fatal(err)
	}
	if n, err := res.RowsAffected(); n != 1 || err != nil {
		tb.Fatalf("backdated %d sessions, want 1 (error %v)", n, err)
	}
}

func fixture(tb testing.TB) backendtest.Fixture {
	s := newStore(tb)
	return backendtest.Fixture{Store: s, Backdate: s.backdate}
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture { return fixture(t) })
}

func BenchmarkStore(b *testing.B) { backendtest.Bench(b, fixture) }
