//go:build unix

package harness

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/backends/postgres"
	"aspstate/backends/postgres/pgtest"
	"aspstate/backends/sqlite"
	"aspstate/backends/sqlserver"
	"aspstate/backends/sqlserver/mssqltest"
	"aspstate/migrations"
	"aspstate/server/stateserver/client"
)

// store is a kind of session-state store that the harness judges.
type store struct {
	name string
	// open opens a fresh, empty database n times, until the test's end; n is 1 unless shared.
	open func(t testing.TB, n int, via via) []backends.Store
	// flags makes a fresh, empty database and returns the flags of an aspstate that serves it.
	flags func(t testing.TB, via via) []string
	// durable says that sessions outlive the process.
	durable bool
	// shared says that several processes may use a database at once.
	shared bool
	// network says that the database is asked over TCP, at the address given to via.
	network bool
	// forgetsBrokenLocks says that a GetExclusive that is tried again after somebody broke its lock has the
	// item as it is by then, and takes a new lock if the session is another one by then. Rule 7 wants the first
	// try's answer.
	forgetsBrokenLocks bool
	// resolution is the smallest step of the store's clock.
	resolution time.Duration
	// wholeMinutes says that the store keeps timeouts in minutes, so that no session expires while the harness looks.
	wholeMinutes bool
	// slow says that the database may take seconds for a statement and the server is not to give it up for that: Babelfish parses each
	// anew, and the first of a connection for a second or more.
	slow bool
}

// budget is the servers' requestBudget. A Release that took half of it may have been put off.
func (s store) budget() time.Duration {
	if s.slow {
		return 30 * time.Second
	}
	return 4 * time.Second
}

// dial connects to a server that keeps sessions in such a store.
func (s store) dial(address string) (*client.Conn, error) {
	conn, err := client.Dial(address)
	if err == nil {
		conn.Timeout = 2*s.budget() + 2*time.Second
	}
	return conn, err
}

// via returns the address to use in place of a database's own: a proxy's.
type via func(address string) string

func straight(address string) string { return address }

// stores are all kinds there are; SQL Server where one is named.
var stores = withSQLServer([]store{
	{
		name: "memory",
		open: func(t testing.TB, _ int, _ via) []backends.Store {
			s := memory.New(0)
			t.Cleanup(func() { s.Close() })
			return []backends.Store{s}
		},
		flags: func(testing.TB, via) []string { return []string{"--mode=StateServer"} },
	},
	{
		name: "sqlite",
		open: func(t testing.TB, _ int, _ via) []backends.Store {
			return []backends.Store{openSQLite(t, filepath.Join(t.TempDir(), "aspstate.db"))}
		},
		flags: func(t testing.TB, _ via) []string {
			return []string{"--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "aspstate.db")}
		},
		durable:    true,
		resolution: time.Millisecond,
	},
	{
		name: "postgres",
		open: func(t testing.TB, n int, via via) []backends.Store {
			database := redirect(t, pgtest.Shared(t).Database(t), via)
			m, db, err := migrations.Postgres(t.Context(), database, false, slog.New(slog.DiscardHandler))
			if err == nil {
				t.Cleanup(func() { db.Close() })
				err = m.Up(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			return openAll(t, n, postgres.Open, database)
		},
		flags: func(t testing.TB, via via) []string {
			return []string{"--auto-migrate", "--sql-connection-string=" + redirect(t, pgtest.Shared(t).Database(t), via)}
		},
		durable:            true,
		shared:             true,
		network:            true,
		forgetsBrokenLocks: true,
	},
})

// openAll opens a database n times.
func openAll[S backends.Store](t testing.TB, n int, open func(context.Context, string, *slog.Logger) (S, error), database string) (opened []backends.Store) {
	for range n {
		s, err := open(t.Context(), database, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		opened = append(opened, s)
	}
	return opened
}

func withSQLServer(others []store) []store {
	if os.Getenv(mssqltest.Variable) == "" {
		return others
	}
	return append(others, store{
		name: "sqlserver",
		open: func(t testing.TB, n int, via via) []backends.Store {
			database := redirect(t, mssqltest.Database(t), via)
			m, db, err := migrations.SQLServer(t.Context(), database)
			if err == nil {
				t.Cleanup(func() { db.Close() })
				err = m.Up(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			return openAll(t, n, sqlserver.Open, database)
		},
		flags: func(t testing.TB, via via) []string {
			file := filepath.Join(t.TempDir(), "dsn") // passwords are refused on a command line
			if err := os.WriteFile(file, []byte(redirect(t, mssqltest.Database(t), via)), 0o600); err != nil {
				t.Fatal(err)
			}
			return []string{"--auto-migrate", "--sql-connection-string=file:" + file}
		},
		durable:            true,
		shared:             true,
		network:            true,
		forgetsBrokenLocks: true,
		wholeMinutes:       true,
		slow:               true,
	})
}

// redirect puts the address that via returns into the URL of a database.
func redirect(t testing.TB, database string, via via) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = via(u.Host)
	return u.String()
}

func openSQLite(t testing.TB, path string) backends.Store {
	t.Helper()
	file, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	m, err := migrations.SQLite(file.DB())
	if err == nil {
		err = m.Up(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.New(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
