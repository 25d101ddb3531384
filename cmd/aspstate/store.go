package main

import (
	"context"
	"fmt"

	"aspstate/backends/memory"
	"aspstate/backends/sqlite"
	"aspstate/config"
	"aspstate/migrations"
)

// open opens the store that the settings say, with its schema up to date, and
// returns a line that says where sessions are kept.
func (p *process) open(ctx context.Context) (where string, err error) {
	if p.config.Mode == config.ModeStateServer {
		p.store = memory.New(int64(p.config.Memory.MaxBytes))
		return "Sessions are kept in memory and end with this process.", nil
	}
	path := p.config.SQLConnectionString.Path
	file, err := sqlite.Open(path)
	if err != nil {
		return "", err
	}
	err = migrateUp(ctx, file)
	if err == nil {
		p.store, err = sqlite.New(file, p.log)
	}
	if err != nil {
		file.Close()
		return "", err
	}
	return fmt.Sprintf("Sessions are kept in the SQLite file %s.", path), nil
}

func migrateUp(ctx context.Context, file *sqlite.File) error {
	m, err := migrations.SQLite(file.DB())
	if err != nil {
		return err
	}
	return m.Up(ctx)
}
