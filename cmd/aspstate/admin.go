package main

import (
	"context"
	"fmt"
	"net"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/backends/postgres"
	"aspstate/backends/sqlite"
	"aspstate/backends/sqlserver"
	"aspstate/config"
	"aspstate/migrations"
	"aspstate/server/admin"
)

// The listener for operators, and what it asks of the process.

// serveAdmin begins to serve operators, unless there is no listener for them. A listener that nobody asked for and whose port is
// taken is left out: sessions are served all the same.
func (p *process) serveAdmin(ctx context.Context) error {
	a := p.config.Admin
	if !a.On() {
		return nil
	}
	listener := admin.New(p.sessions, p.server, p.sweeper, p.sampler, p, p.log)
	if err := listener.Configure(a.Token.Text(), a.Certificate, a.Key, a.PProf); err != nil {
		return err
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", a.Listen)
	if err != nil {
		if p.config.IsDefault("admin.listen") {
			p.log.Warn("operators are not served: set admin.listen to a free address, or to off", "error", err)
			return nil
		}
		return fmt.Errorf("admin.listen: %w", err)
	}
	p.admin = listener
	go func() {
		if err := listener.Serve(ln); err != nil {
			p.log.Error("operators are not served any more", "error", err)
		}
	}()
	p.log.Info("serving operators", "address", ln.Addr().String(), "tls", a.Certificate != "", "token", a.Token.Text() != "")
	return nil
}

// configureAdmin puts the listener's settings into force. Those with a fault change nothing.
func (p *process) configureAdmin() {
	if p.admin == nil {
		return
	}
	a := p.config.Admin
	if err := p.admin.Configure(a.Token.Text(), a.Certificate, a.Key, a.PProf); err != nil {
		p.log.Error("the settings of the listener for operators have a fault, the old ones stay", "error", err)
	}
}

// Facts implements admin.Process.
func (p *process) Facts() admin.Facts {
	p.mu.Lock()
	c := p.config
	p.mu.Unlock()
	f := admin.Facts{
		Version: programVersion(), Mode: string(c.Mode), Listen: p.addresses,
		LockWait: c.LockWait, RequestBudget: c.RequestBudget,
	}
	where := c.SQLConnectionString.String()
	if progress, ok := p.sessions.Progress(); ok && progress.Move.Stage >= backends.Moving { // the settings say where it began
		where = p.Show(progress.Move.To)
		f.Mode = string(config.ModeSQLServer)
	}
	f.Store, f.SchemaVersion = kindOf(p.sessions.Store())
	if f.Database = where; f.Store == "memory" {
		f.Mode, f.Database = string(config.ModeStateServer), ""
	}
	f.Allow = []string{}
	for _, prefix := range c.Allow {
		f.Allow = append(f.Allow, prefix.String())
	}
	return f
}

// kindOf says what a store is, and which version its schema has.
func kindOf(store backends.Store) (kind string, schema int) {
	switch store.(type) {
	case *memory.Store:
		return "memory", 0
	case *sqlite.Store:
		schema, _ = migrations.LatestSQLite() // whose files are in the program
		return string(config.SQLite), schema
	case *postgres.Store:
		schema, _ = migrations.LatestPostgres()
		return string(config.Postgres), schema
	case *sqlserver.Store:
		schema, _ = migrations.LatestSQLServer()
		return string(config.SQLServer), schema
	default:
		return "other", 0
	}
}

// Show implements admin.Process.
func (p *process) Show(connectionString string) string {
	if connectionString == string(config.ModeStateServer) {
		return connectionString
	}
	return config.ShowConnectionString(connectionString)
}
