package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
)

func openDB(t *testing.T) *sql.DB {
	t.Helper()
	path := filepath.ToSlash(filepath.Join(t.TempDir(), "test.db"))
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_busy_timeout=10000&_journal_mode=WAL")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// threeSteps is a schema history with room to fail in the middle.
func threeSteps() fstest.MapFS {
	return fstest.MapFS{
		"x/1_a.up.sql":   file("CREATE TABLE a (x); INSERT INTO a VALUES (1);"),
		"x/1_a.down.sql": file("DROP TABLE a;"),
		"x/2_b.up.sql":   file("CREATE TABLE b (x); INSERT INTO b VALUES (1);"),
		"x/2_b.down.sql": file("DROP TABLE b;"),
		"x/3_c.up.sql":   file("CREATE TABLE c (x); INSERT INTO c VALUES (1);"),
		"x/3_c.down.sql": file("DROP TABLE c;"),
	}
}

func file(sql string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(sql)} }

// with is threeSteps with another text in one file. (golang-migrate may read on in the background
// after a failure, so a test never changes files in use.)
func with(name, sql string) fstest.MapFS {
	files := threeSteps()
	files[name] = file(sql)
	return files
}

func mustMigrator(t *testing.T, db *sql.DB, files fs.FS) *Migrator {
	t.Helper()
	m, err := newSQLite(db, files, "x")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func wantStatus(t *testing.T, m *Migrator, want Status) {
	t.Helper()
	got, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("status is %+v, want %+v", got, want)
	}
}

func wantTables(t *testing.T, db *sql.DB, want string) {
	t.Helper()
	var got string
	err := db.QueryRowContext(t.Context(), `SELECT coalesce(group_concat(name, ' ' ORDER BY name), '') FROM sqlite_master
		WHERE type = 'table' AND name NOT IN ('schema_migrations', 'sqlite_sequence')`).Scan(&got)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("tables are %q, want %q", got, want)
	}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Fatalf("error %q does not say %q", err, part)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestUpDownUp(t *testing.T) {
	db := openDB(t)
	m, err := SQLite(db)
	must(t, err)
	wantStatus(t, m, Status{Version: 0, Latest: m.latest})
	for range 2 {
		must(t, m.Up(t.Context()))
		wantStatus(t, m, Status{Version: m.latest, Latest: m.latest})
		wantTables(t, db, "applications arrivals moves sessions")
		must(t, m.Up(t.Context()))
		must(t, m.Down(t.Context()))
		wantStatus(t, m, Status{Version: 0, Latest: m.latest})
		wantTables(t, db, "")
		must(t, m.Down(t.Context()))
	}
	// The caller's handle is still open.
	must(t, db.PingContext(t.Context()))
}

func TestStatusErr(t *testing.T) {
	for _, c := range []struct {
		status Status
		parts  []string
	}{
		{Status{Version: 2, Latest: 2}, nil},
		{Status{Version: 0, Latest: 2}, []string{"version 0", "needs 2", "run: aspstate migrate up"}},
		{Status{Version: 1, Latest: 2}, []string{"run: aspstate migrate up"}},
		{Status{Version: 7, Latest: 2}, []string{"this database has schema version 7, newer than this aspstate knows (2): run a newer aspstate"}},
		{Status{Version: 2, Latest: 2, Dirty: true}, []string{"dirty", "run: aspstate migrate force N"}},
		{Status{Version: 7, Latest: 2, Dirty: true}, []string{"dirty", "run: aspstate migrate force N"}},
	} {
		err := c.status.Err()
		if c.parts == nil {
			must(t, err)
			continue
		}
		wantError(t, err, c.parts...)
		if schemaErr, ok := errors.AsType[*SchemaError](err); !ok || schemaErr.Status != c.status {
			t.Fatalf("%#v is not the *SchemaError of %+v", err, c.status)
		}
	}
}

func TestFailingStepUp(t *testing.T) {
	db := openDB(t)
	m := mustMigrator(t, db, with("x/2_b.up.sql", "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1);"))
	wantError(t, m.Up(t.Context()), "from version 1 to 2 failed and was undone", "nowhere", "run: aspstate migrate force 1")
	wantStatus(t, m, Status{Version: 2, Dirty: true, Latest: 3})
	wantTables(t, db, "a")

	// Nothing more is done until the operator has said what is there.
	for _, step := range []func(context.Context) error{m.Up, m.Down} {
		err := step(t.Context())
		wantError(t, err, "dirty", "run: aspstate migrate force N")
		if _, ok := errors.AsType[*SchemaError](err); !ok || strings.Contains(err.Error(), "Fix and force") {
			t.Fatalf("%v is not a *SchemaError alone", err)
		}
	}
	wantTables(t, db, "a")

	m = mustMigrator(t, db, threeSteps())
	must(t, m.Force(t.Context(), 1))
	wantStatus(t, m, Status{Version: 1, Latest: 3})
	must(t, m.Up(t.Context()))
	wantStatus(t, m, Status{Version: 3, Latest: 3})
	wantTables(t, db, "a b c")
}

func TestFailingFirstStep(t *testing.T) {
	db := openDB(t)
	m := mustMigrator(t, db, with("x/1_a.up.sql", "CREATE nonsense"))
	wantError(t, m.Up(t.Context()), "from version 0 to 1 failed", "run: aspstate migrate force 0")
	wantStatus(t, m, Status{Version: 1, Dirty: true, Latest: 3})
	m = mustMigrator(t, db, threeSteps())
	must(t, m.Force(t.Context(), 0))
	wantStatus(t, m, Status{Version: 0, Latest: 3})
	must(t, m.Up(t.Context()))
	wantTables(t, db, "a b c")
}

func TestFailingStepDown(t *testing.T) {
	for _, c := range []struct {
		file, text, tables string
		target, from       int
	}{
		{"x/2_b.down.sql", "from version 2 to 1 failed", "a b", 1, 2},
		{"x/1_a.down.sql", "from version 1 to 0 failed", "a", 0, 1},
	} {
		db := openDB(t)
		must(t, mustMigrator(t, db, threeSteps()).Up(t.Context()))
		m := mustMigrator(t, db, with(c.file, "DROP TABLE nowhere"))
		wantError(t, m.Down(t.Context()), c.text, "nowhere", fmt.Sprintf("run: aspstate migrate force %d", c.from))
		wantStatus(t, m, Status{Version: c.target, Dirty: true, Latest: 3})
		wantTables(t, db, c.tables)
		m = mustMigrator(t, db, threeSteps())
		must(t, m.Force(t.Context(), c.from))
		must(t, m.Down(t.Context()))
		wantTables(t, db, "")
	}
}

// A crash between a step and the note that it is done.
func TestCleanNoteFails(t *testing.T) {
	db := openDB(t)
	m := mustMigrator(t, db, with("x/2_b.up.sql", `CREATE TABLE b (x); CREATE TRIGGER stop BEFORE INSERT ON schema_migrations
		WHEN NOT NEW.dirty BEGIN SELECT RAISE(ABORT, 'power cut'); END;`))
	wantError(t, m.Up(t.Context()), "power cut", "dirty", "2 if all changes", "run: aspstate migrate force N")
	wantStatus(t, m, Status{Version: 2, Dirty: true, Latest: 3})
	wantTables(t, db, "a b")
}

func TestNewer(t *testing.T) {
	db, files := openDB(t), threeSteps()
	must(t, mustMigrator(t, db, threeSteps()).Up(t.Context()))
	delete(files, "x/3_c.up.sql")
	delete(files, "x/3_c.down.sql")
	m := mustMigrator(t, db, files)
	wantStatus(t, m, Status{Version: 3, Latest: 2})
	for _, step := range []func(context.Context) error{m.Up, m.Down} {
		err := step(t.Context())
		wantError(t, err, "newer than this aspstate knows (2): run a newer aspstate")
		if schemaErr, ok := errors.AsType[*SchemaError](err); !ok || schemaErr.Version != 3 {
			t.Fatalf("%v is not a *SchemaError of version 3", err)
		}
	}
	wantTables(t, db, "a b c")
}

func TestForceRefusesUnknownVersions(t *testing.T) {
	m := mustMigrator(t, openDB(t), threeSteps())
	for _, v := range []int{-1, 4} {
		wantError(t, m.Force(t.Context(), v), "knows versions 0 to 3")
	}
	wantStatus(t, m, Status{Version: 0, Latest: 3})
}

func TestEndedContext(t *testing.T) {
	db := openDB(t)
	m := mustMigrator(t, db, threeSteps())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{m.Up(ctx), m.Down(ctx), m.Force(ctx, 1)} {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%v, want %v", err, context.Canceled)
		}
	}
	wantStatus(t, m, Status{Version: 0, Latest: 3})
	wantTables(t, db, "")
}

func TestUnreadableDatabaseIsNotVersionNone(t *testing.T) {
	db := openDB(t)
	m := mustMigrator(t, db, threeSteps())
	if _, err := db.ExecContext(t.Context(), "DROP TABLE schema_migrations"); err != nil {
		t.Fatal(err)
	}
	if s, err := m.Status(t.Context()); err == nil {
		t.Fatalf("status is %+v, want an error", s)
	}
	wantError(t, m.Up(t.Context()), "schema_migrations")
	wantTables(t, db, "")
}

func TestTwoMigratorsAtOnce(t *testing.T) {
	for range 5 {
		db, files := openDB(t), threeSteps()
		var wg sync.WaitGroup
		for range 4 {
			m := mustMigrator(t, db, files)
			wg.Go(func() {
				if err := m.Up(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		wantStatus(t, mustMigrator(t, db, files), Status{Version: 3, Latest: 3})
	}
}

// Every engine's versions run from 1 without a gap (Force and the error texts count on it), each with a way back.
func TestEveryUpHasADown(t *testing.T) {
	name := regexp.MustCompile(`^([0-9]+)_([a-z_]+)\.(up|down)\.sql$`)
	folders, err := files.ReadDir(".")
	must(t, err)
	for _, folder := range folders {
		entries, err := files.ReadDir(folder.Name())
		must(t, err)
		found := map[string]bool{}
		for _, e := range entries {
			if !name.MatchString(e.Name()) {
				t.Errorf("%s/%s is not named N_name.up.sql or N_name.down.sql", folder.Name(), e.Name())
			}
			found[e.Name()] = true
		}
		versions := 0
		for file := range found {
			if base, isUp := strings.CutSuffix(file, ".up.sql"); isUp {
				versions++
				if !found[base+".down.sql"] {
					t.Errorf("%s/%s has no down file", folder.Name(), file)
				}
			}
		}
		latest, err := latestVersion(files, folder.Name())
		must(t, err)
		if latest != versions || len(found) != 2*versions || versions == 0 {
			t.Errorf("%s has %d files for %d versions, of which the latest is %d", folder.Name(), len(found), versions, latest)
		}
	}
}
