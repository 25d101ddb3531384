package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

//go:embed postgres
var postgresFiles embed.FS

// Postgres returns the migrator of a PostgreSQL database, in the schema that comes first in the connection's
// search_path. It makes golang-migrate's own table if that is missing. With unlogged set, Up makes the
// table of sessions unlogged: written without WAL, so fast, and emptied when the database crashes (as
// ASPState in tempdb). It has no effect on a table that exists. The caller closes the database handle returned.
//
// Unlike golang-migrate's own driver this one takes and holds its lock in one transaction with the changes:
// that works through PgBouncer, on engines without advisory locks, and a step that fails leaves nothing
// behind, not even a dirty schema.
func Postgres(ctx context.Context, connectionString string, unlogged bool, log *slog.Logger) (*Migrator, *sql.DB, error) {
	return newPostgres(ctx, connectionString, unlogged, log, postgresFiles, "postgres")
}

func newPostgres(ctx context.Context, connectionString string, unlogged bool, log *slog.Logger, files fs.FS, folder string) (*Migrator, *sql.DB, error) {
	latest, err := latestVersion(files, folder)
	if err != nil {
		return nil, nil, fmt.Errorf("migrate: %w", err)
	}
	config, err := pgxpool.ParseConfig(connectionString)
	if err != nil {
		return nil, nil, fmt.Errorf("migrate: %w", err)
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // works through PgBouncer
	db := stdlib.OpenDB(*config.ConnConfig)
	driver := &postgresDriver{db: db, unlogged: unlogged, log: log}
	if err := driver.ensureTable(ctx); err != nil {
		db.Close()
		return nil, nil, fmt.Errorf("migrate: %w", err)
	}
	return &Migrator{db: db, driver: driver, files: files, folder: folder, latest: latest, busy: &sync.Mutex{}}, db, nil
}

// postgresDriver runs migrations for golang-migrate. From Lock to Unlock everything is one transaction.
type postgresDriver struct {
	db       *sql.DB
	unlogged bool
	log      *slog.Logger
	tx       *sql.Tx
	failed   bool
}

// ensureTable makes golang-migrate's table. Who may only read and write finds it made by another.
func (d *postgresDriver) ensureTable(ctx context.Context) error {
	var exists bool
	err := d.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT FROM information_schema.tables
		WHERE table_schema = current_schema() AND table_name = 'schema_migrations')`).Scan(&exists)
	if err != nil || exists {
		return err
	}
	for try := 0; ; try++ {
		// Two servers that do this at once can meet in the catalog in spite of IF NOT EXISTS.
		_, err = d.db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)`)
		if err == nil || try == 3 {
			return err
		}
	}
}

// migrationLock is the number of the advisory lock of migrations; with the table's OID, so that
// migrations of several schemas do not wait for each other.
const migrationLock = 0x61737073

// Lock begins the transaction and waits until no other migration is running.
func (d *postgresDriver) Lock() error {
	tx, err := d.db.Begin()
	if err != nil {
		return err
	}
	d.tx, d.failed = tx, false
	// The SAVEPOINT is for engines without advisory locks; there the row of the version decides.
	err = d.optional(fmt.Sprintf("SELECT pg_advisory_xact_lock(%d, 'schema_migrations'::regclass::oid::integer)", migrationLock))
	if err == nil {
		_, err = tx.Exec("SELECT version FROM schema_migrations FOR UPDATE")
	}
	if err != nil {
		d.tx = nil
		return errors.Join(err, tx.Rollback())
	}
	return nil
}

// Unlock commits, or undoes everything since Lock where something has failed.
func (d *postgresDriver) Unlock() error {
	tx := d.tx
	d.tx = nil
	if d.failed {
		return tx.Rollback()
	}
	return tx.Commit()
}

// Run runs a file. What follows a line that begins with "-- Optional:" may fail, which is logged.
func (d *postgresDriver) Run(file io.Reader) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	required, optional, _ := strings.Cut(string(text), "\n-- Optional:")
	if d.unlogged {
		required = strings.Replace(required, "CREATE TABLE sessions (", "CREATE UNLOGGED TABLE sessions (", 1)
	}
	if err := d.exec(required); err != nil {
		return &database.Error{OrigErr: err, Err: "migration failed", Query: text}
	}
	if optional != "" {
		return d.optional("--" + optional)
	}
	return nil
}

func (d *postgresDriver) exec(statements string) error {
	_, err := d.tx.Exec(statements)
	d.failed = d.failed || err != nil
	return err
}

func (d *postgresDriver) optional(statements string) error {
	if err := d.exec("SAVEPOINT optional"); err != nil {
		return err
	}
	if _, err := d.tx.Exec(statements); err != nil {
		if err := d.exec("ROLLBACK TO SAVEPOINT optional"); err != nil {
			return err
		}
		d.log.Warn("the database does not support an optional part of the schema, which is left out", "error", err)
	}
	return d.exec("RELEASE SAVEPOINT optional")
}

// SetVersion notes the schema's version.
func (d *postgresDriver) SetVersion(version int, dirty bool) error {
	if d.tx == nil { // migrate force
		if err := d.Lock(); err != nil {
			return err
		}
		return errors.Join(d.SetVersion(version, dirty), d.Unlock())
	}
	if err := d.exec("DELETE FROM schema_migrations"); err != nil {
		return err
	}
	if version < 0 && !dirty {
		return nil
	}
	return d.exec(fmt.Sprintf("INSERT INTO schema_migrations (version, dirty) VALUES (%d, %t)", version, dirty))
}

// Version reads the schema's version.
func (d *postgresDriver) Version() (version int, dirty bool, err error) {
	err = d.tx.QueryRow("SELECT version, dirty FROM schema_migrations").Scan(&version, &dirty)
	if errors.Is(err, sql.ErrNoRows) {
		return database.NilVersion, false, nil
	}
	return version, dirty, err
}

// Open, Close and Drop complete database.Driver; the Migrator uses none of them.

func (d *postgresDriver) Open(string) (database.Driver, error) { return nil, errors.ErrUnsupported }
func (d *postgresDriver) Close() error                         { return d.db.Close() }
func (d *postgresDriver) Drop() error                          { return errors.ErrUnsupported }
