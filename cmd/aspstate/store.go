package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/backends/postgres"
	"aspstate/backends/sqlite"
	"aspstate/backends/sqlserver"
	"aspstate/config"
	"aspstate/migrations"
)

// openStore opens the store at a place. Its schema must be up to date; that of an SQLite file is
// brought there, another one only with autoMigrate.
func openStore(ctx context.Context, place config.Place, c *config.Config, log *slog.Logger) (backends.Store, error) {
	if place.Mode == config.ModeStateServer {
		return memory.New(int64(c.Memory.MaxBytes)), nil
	}
	switch place.Backend {
	case config.Postgres:
		return openPostgres(ctx, place.ConnectionString.Text(), c.AutoMigrate, log)
	case config.SQLServer:
		return openSQLServer(ctx, place.ConnectionString.Text(), c.AutoMigrate, log)
	default:
		return openSQLite(ctx, place.Path, log)
	}
}

// says is a line that says where sessions are kept.
func says(place config.Place) string {
	switch {
	case place.Mode == config.ModeStateServer:
		return "Sessions are kept in memory and end with this process."
	case place.Backend == config.Postgres:
		return fmt.Sprintf("Sessions are kept in the PostgreSQL database %v.", place.ConnectionString)
	case place.Backend == config.SQLServer:
		return fmt.Sprintf("Sessions are kept in the SQL Server database %v.", place.ConnectionString)
	default:
		return fmt.Sprintf("Sessions are kept in the SQLite file %s.", place.Path)
	}
}

func openSQLite(ctx context.Context, path string, log *slog.Logger) (backends.Store, error) {
	file, err := sqlite.Open(path)
	if err != nil {
		return nil, err
	}
	var store backends.Store
	m, err := migrations.SQLite(file.DB())
	if err == nil {
		err = m.Up(ctx)
	}
	if err == nil {
		store, err = sqlite.New(file, log)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return store, nil
}

func openPostgres(ctx context.Context, url string, autoMigrate bool, log *slog.Logger) (backends.Store, error) {
	return openServed(ctx, autoMigrate, func() (backends.Store, error) { return postgres.Open(ctx, url, log) },
		func() (*migrations.Migrator, *sql.DB, error) { return migrations.Postgres(ctx, url, false, log) })
}

func openSQLServer(ctx context.Context, dsn string, autoMigrate bool, log *slog.Logger) (backends.Store, error) {
	return openServed(ctx, autoMigrate, func() (backends.Store, error) { return sqlserver.Open(ctx, dsn, log) },
		func() (*migrations.Migrator, *sql.DB, error) { return migrations.SQLServer(ctx, dsn) })
}

// openServed opens the store in a database that a server keeps. Opening waits for one that is starting.
func openServed(ctx context.Context, autoMigrate bool, open func() (backends.Store, error), migrator func() (*migrations.Migrator, *sql.DB, error)) (backends.Store, error) {
	store, err := open()
	switch {
	case err == nil:
		if err := migrateServed(ctx, autoMigrate, migrator); err != nil {
			store.Close()
			return nil, err
		}
		return store, nil
	case errors.Is(err, backends.ErrPermanent) && autoMigrate: // perhaps there is no schema
		if err := migrateServed(ctx, autoMigrate, migrator); err != nil {
			return nil, err
		}
		return open()
	default:
		return nil, err
	}
}

// migrateServed brings the schema up to date with autoMigrate, and else returns an error if it
// is not.
func migrateServed(ctx context.Context, autoMigrate bool, migrator func() (*migrations.Migrator, *sql.DB, error)) error {
	m, db, err := migrator()
	if err != nil {
		return err
	}
	defer db.Close()
	if autoMigrate {
		return m.Up(ctx)
	}
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	return status.Err()
}
