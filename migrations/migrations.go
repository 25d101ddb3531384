// Package migrations holds the schema of every SQL store as golang-migrate files, one folder
// an engine, and runs them. The files are N_name.up.sql and N_name.down.sql; what has been
// released is never changed again.
//
// golang-migrate notes a step as dirty before it runs a file and as clean after it, so a step
// that fails leaves a dirty schema, which only Force mends. The errors name the command.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	"github.com/golang-migrate/migrate/v4/database/sqlite"
	"github.com/golang-migrate/migrate/v4/source"
	"github.com/golang-migrate/migrate/v4/source/iofs"
)

//go:embed sqlite
var files embed.FS

// Status is how far a database has been migrated.
type Status struct {
	Version int    // of the schema; 0 is none at all
	Dirty   bool   // a step to Version, up or down, did not finish
	Latest  int    // the newest version that this program knows
	Found   string // SQL Server: what the database holds, in words
}

// Err is nil if the schema is the one that this program knows, and else a *SchemaError.
func (s Status) Err() error {
	if s.Dirty || s.Version != s.Latest {
		return &SchemaError{s}
	}
	return nil
}

// SchemaError says that a database cannot be used, or not be migrated, as it is: its schema is dirty,
// newer than this program knows, or old. Its text is what the operator has to do.
type SchemaError struct{ Status }

func (e *SchemaError) Error() string {
	switch {
	case e.Dirty:
		return fmt.Sprintf("schema version %d is dirty: a migration up or down to it did not finish; "+
			"find out which version the schema really has (%d if all changes of that migration are there) and run: aspstate migrate force N",
			e.Version, e.Version)
	case e.Version > e.Latest:
		return fmt.Sprintf("this database has schema version %d, newer than this aspstate knows (%d): run a newer aspstate",
			e.Version, e.Latest)
	default:
		return fmt.Sprintf("this database has schema version %d, this aspstate needs %d: run: aspstate migrate up",
			e.Version, e.Latest)
	}
}

// Migrator runs the migrations of one engine on one database.
type Migrator struct {
	db     *sql.DB
	driver database.Driver
	files  fs.FS
	folder string
	latest int
	busy   *sync.Mutex                           // held during a migration
	status func(context.Context) (Status, error) // where the version is not in golang-migrate's own table
}

// sqliteBusy is the lock between migrators that golang-migrate's driver lacks. One process owns an
// SQLite file, so a lock in this process is enough.
var sqliteBusy sync.Mutex

// SQLite returns the migrator of an SQLite database. It writes golang-migrate's own table if that is
// missing. The caller keeps db and closes it.
func SQLite(db *sql.DB) (*Migrator, error) {
	return newSQLite(db, files, "sqlite")
}

func newSQLite(db *sql.DB, files fs.FS, folder string) (*Migrator, error) {
	latest, err := latestVersion(files, folder)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	driver, err := sqlite.WithInstance(db, &sqlite.Config{})
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return &Migrator{db: db, driver: driver, files: files, folder: folder, latest: latest, busy: &sqliteBusy}, nil
}

func latestVersion(files fs.FS, folder string) (int, error) {
	src, err := iofs.New(files, folder)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	v, err := src.First()
	for err == nil {
		var next uint
		if next, err = src.Next(v); err == nil {
			v = next
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return int(v), nil
}

// Status reads the schema's version.
func (m *Migrator) Status(ctx context.Context) (Status, error) {
	if m.status != nil {
		s, err := m.status(ctx)
		s.Latest = m.latest
		if err != nil {
			err = fmt.Errorf("migrate: read the schema version: %w", err)
		}
		return s, err
	}
	s := Status{Latest: m.latest}
	// Not the driver's Version, which takes every failure for version none.
	err := m.db.QueryRowContext(ctx, "SELECT version, dirty FROM schema_migrations").Scan(&s.Version, &s.Dirty)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Status{}, fmt.Errorf("migrate: read the schema version: %w", err)
	}
	s.Version = max(s.Version, 0) // golang-migrate's "none" is -1
	return s, nil
}

// Up runs every migration that is missing. There may be none. A dirty schema, and one newer than this
// program knows, is a *SchemaError. If ctx ends, Up stops after the step at hand.
func (m *Migrator) Up(ctx context.Context) error {
	return m.run(ctx, "migrate up", (*migrate.Migrate).Up)
}

// Down undoes every migration: all sessions are lost. Errors are those of Up.
func (m *Migrator) Down(ctx context.Context) error {
	return m.run(ctx, "migrate down", (*migrate.Migrate).Down)
}

func (m *Migrator) run(ctx context.Context, what string, steps func(*migrate.Migrate) error) error {
	m.busy.Lock()
	defer m.busy.Unlock()
	before, err := m.Status(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if before.Dirty || before.Version > before.Latest {
		return fmt.Errorf("%s: %w", what, &SchemaError{before})
	}
	src, err := iofs.New(m.files, m.folder)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer src.Close()
	mig, err := migrate.NewWithInstance("embedded", src, m.folder, m.driver)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	// mig.Close would close the caller's db; src is all that needs closing.
	stop := context.AfterFunc(ctx, func() { mig.GracefulStop <- true })
	defer stop()
	err = steps(mig)
	if err == nil || errors.Is(err, migrate.ErrNoChange) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: stopped: %w", what, context.Cause(ctx))
		}
		return nil
	}
	return fmt.Errorf("%s: %w", what, m.failed(ctx, src, before, err))
}

// failed adds to the failure of a step what it left behind and what to do.
func (m *Migrator) failed(ctx context.Context, src source.Driver, before Status, cause error) error {
	after, err := m.Status(context.WithoutCancel(ctx))
	if err != nil || !after.Dirty {
		return cause
	}
	dbErr, ok := errors.AsType[*database.Error](cause)
	if !ok || len(dbErr.Query) == 0 || strings.Contains(string(dbErr.Query), sqlite.DefaultMigrationsTable) {
		return fmt.Errorf("%w; %w", cause, &SchemaError{after})
	}
	// A file failed. The driver runs it in a transaction, so the schema is still the one that
	// this step started from.
	neighbour, start := src.Prev, 0
	if before.Version > after.Version {
		neighbour, start = src.Next, 1
	}
	if v, err := neighbour(uint(after.Version)); err == nil {
		start = int(v)
	}
	return fmt.Errorf("the step from version %d to %d failed and was undone: %w; when the cause is mended, run: aspstate migrate force %d",
		start, after.Version, dbErr.OrigErr, start)
}

// Force notes version as the schema's, clean, and runs nothing. 0 is none.
func (m *Migrator) Force(ctx context.Context, version int) error {
	m.busy.Lock()
	defer m.busy.Unlock()
	if version < 0 || version > m.latest {
		return fmt.Errorf("migrate force: version %d: this aspstate knows versions 0 to %d", version, m.latest)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("migrate force: %w", context.Cause(ctx))
	}
	if version == 0 {
		version = database.NilVersion
	}
	if err := m.driver.SetVersion(version, false); err != nil {
		return fmt.Errorf("migrate force: %w", err)
	}
	return nil
}
