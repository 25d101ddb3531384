//go:build unix

package migrations

import (
	"database/sql"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"aspstate/backends/postgres/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func mustPostgres(t *testing.T, url string, unlogged bool, files fs.FS, folder string) (*Migrator, *sql.DB, *strings.Builder) {
	t.Helper()
	log := &strings.Builder{}
	m, db, err := newPostgres(t.Context(), url, unlogged, slog.New(slog.NewTextHandler(log, nil)), files, folder)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return m, db, log
}

// typed gives the columns of SQLite's files a type.
func typed(files fstest.MapFS) fstest.MapFS {
	for name, f := range files {
		files[name] = file(strings.ReplaceAll(string(f.Data), " (x)", " (x int)"))
	}
	return files
}

func wantPostgresTables(t *testing.T, db *sql.DB, want string) {
	t.Helper()
	var got string
	must(t, db.QueryRowContext(t.Context(), `SELECT coalesce(string_agg(relname || CASE relpersistence WHEN 'u' THEN '(unlogged)' ELSE '' END, ' ' ORDER BY relname), '')
		FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname <> 'schema_migrations'`).Scan(&got))
	if got != want {
		t.Fatalf("tables are %q, want %q", got, want)
	}
}

func TestPostgresUpDownUp(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	for _, unlogged := range []bool{false, true} {
		m, db, log := mustPostgres(t, url, unlogged, postgresFiles, "postgres")
		wantStatus(t, m, Status{Version: 0, Latest: m.latest})
		for range 2 {
			must(t, m.Up(t.Context()))
			must(t, m.Up(t.Context()))
			wantStatus(t, m, Status{Version: m.latest, Latest: m.latest})
			want := "applications arrivals moves servers sessions"
			if unlogged {
				want = "applications arrivals moves servers sessions(unlogged)"
			}
			wantPostgresTables(t, db, want)
			var options string
			must(t, db.QueryRowContext(t.Context(), "SELECT array_to_string(reloptions, ' ') FROM pg_class WHERE oid = 'sessions'::regclass").Scan(&options))
			if !strings.Contains(options, "fillfactor=70") || log.Len() > 0 {
				t.Fatalf("the table's options are %q, and the log says %q", options, log)
			}
			must(t, m.Down(t.Context()))
			wantStatus(t, m, Status{Version: 0, Latest: m.latest})
			wantPostgresTables(t, db, "")
		}
		must(t, m.Force(t.Context(), 1))
		wantStatus(t, m, Status{Version: 1, Latest: m.latest})
		must(t, m.Force(t.Context(), 0))
		wantStatus(t, m, Status{Version: 0, Latest: m.latest})
	}
}

func TestPostgresEveryUpHasADown(t *testing.T) {
	ups, err := fs.Glob(postgresFiles, "postgres/*.up.sql")
	must(t, err)
	all, err := fs.Glob(postgresFiles, "postgres/*")
	must(t, err)
	for _, up := range ups {
		if _, err := fs.Stat(postgresFiles, strings.TrimSuffix(up, ".up.sql")+".down.sql"); err != nil {
			t.Error(err)
		}
	}
	latest, err := latestVersion(postgresFiles, "postgres")
	must(t, err)
	if len(all) != 2*len(ups) || latest != len(ups) {
		t.Errorf("%d files for %d versions, of which the latest is %d", len(all), len(ups), latest)
	}
}

// A step that fails takes the whole run with it, and leaves nothing to be mended.
func TestPostgresFailingStep(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	m, db, _ := mustPostgres(t, url, false, typed(with("x/2_b.up.sql", "CREATE TABLE b (x int); INSERT INTO nowhere VALUES (1);")), "x")
	for range 2 {
		wantError(t, m.Up(t.Context()), "nowhere")
		wantStatus(t, m, Status{Version: 0, Latest: 3})
		wantPostgresTables(t, db, "")
	}
	m, db, _ = mustPostgres(t, url, false, typed(threeSteps()), "x")
	must(t, m.Up(t.Context()))
	wantStatus(t, m, Status{Version: 3, Latest: 3})
	wantPostgresTables(t, db, "a b c")
}

// Somebody else's tool may have left a schema dirty.
func TestPostgresDirty(t *testing.T) {
	server := pgtest.Shared(t)
	url := server.Database(t)
	m, db, _ := mustPostgres(t, url, false, postgresFiles, "postgres")
	server.Exec(t, url, "INSERT INTO schema_migrations VALUES (1, true)")
	wantError(t, m.Up(t.Context()), "dirty", "run: aspstate migrate force N")
	wantPostgresTables(t, db, "")
}

func TestPostgresOptionalPart(t *testing.T) {
	m, db, log := mustPostgres(t, pgtest.Shared(t).Database(t), false,
		typed(with("x/1_a.up.sql", "CREATE TABLE a (x int);\n\n-- Optional: what nobody knows.\nCREATE TABLE odd (x int); ALTER TABLE a SET (no_such_option = 1);")), "x")
	must(t, m.Up(t.Context()))
	wantPostgresTables(t, db, "a b c")
	if !strings.Contains(log.String(), "no_such_option") {
		t.Errorf("the log says %q", log)
	}
}

// Several servers that start at once, in processes of their own: each has its own mutex.
func TestPostgresManyMigratorsAtOnce(t *testing.T) {
	server := pgtest.Shared(t)
	port := server.Bouncer(t)
	for _, through := range []string{"directly", "through PgBouncer"} {
		url := server.Database(t)
		if through != "directly" {
			url = strings.Replace(url, fmt.Sprintf(":%d/", server.Port), fmt.Sprintf(":%d/", port), 1)
		}
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				m, db, err := Postgres(t.Context(), url, false, slog.New(slog.DiscardHandler))
				if err == nil {
					defer db.Close()
					err = m.Up(t.Context())
				}
				if err != nil {
					t.Errorf("%s: %v", through, err)
				}
			})
		}
		wg.Wait()
		m, db, _ := mustPostgres(t, url, false, postgresFiles, "postgres")
		wantStatus(t, m, Status{Version: m.latest, Latest: m.latest})
		wantPostgresTables(t, db, "applications arrivals moves servers sessions")
	}
}
