package main

import (
	"context"
	"errors"
	"fmt"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/backends/postgres"
	"aspstate/backends/sqlite"
	"aspstate/config"
	"aspstate/migrations"
)

// open opens the store that the settings say and returns a line that says where
// sessions are kept. The schema must be up to date; that of an SQLite file is
// brought there, another one only with autoMigrate.
func (p *process) open(ctx context.Context) (where string, err error) {
	if p.config.Mode == config.ModeStateServer {
		p.store = memory.New(int64(p.config.Memory.MaxBytes))
		return "Sessions are kept in memory and end with this process.", nil
	}
	if p.config.SQLConnectionString.Backend == config.Postgres {
		p.store, err = p.openPostgres(ctx)
		return fmt.Sprintf("Sessions are kept in the PostgreSQL database %v.", p.config.SQLConnectionString), err
	}
	path := p.config.SQLConnectionString.Path
	file, err := sqlite.Open(path)
	if err != nil {
		return "", err
	}
	m, err := migrations.SQLite(file.DB())
	if err == nil {
		err = m.Up(ctx)
	}
	if err == nil {
		p.store, err = sqlite.New(file, p.log)
	}
	if err != nil {
		file.Close()
		return "", err
	}
	return fmt.Sprintf("Sessions are kept in the SQLite file %s.", path), nil
}

func (p *process) openPostgres(ctx context.Context) (backends.Store, error) {
	url := p.config.SQLConnectionString.Text()
	store, err := postgres.Open(ctx, url, p.log) // waits for a database that is starting
	switch {
	case err == nil:
		if err := p.migratePostgres(ctx, url); err != nil {
			store.Close()
			return nil, err
		}
		return store, nil
	case errors.Is(err, backends.ErrPermanent) && p.config.AutoMigrate: // perhaps there is no schema
		if err := p.migratePostgres(ctx, url); err != nil {
			return nil, err
		}
		return postgres.Open(ctx, url, p.log)
	default:
		return nil, err
	}
}

// migratePostgres brings the schema up to date with autoMigrate, and else returns an error if it
// is not.
func (p *process) migratePostgres(ctx context.Context, url string) error {
	m, db, err := migrations.Postgres(ctx, url, false, p.log)
	if err != nil {
		return err
	}
	defer db.Close()
	if p.config.AutoMigrate {
		return m.Up(ctx)
	}
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	return status.Err()
}
