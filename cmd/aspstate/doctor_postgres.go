package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"aspstate/config"
	"aspstate/server/admin"
)

// What the doctor sees in PostgreSQL, with a connection of its own.

// examineDatabase looks into the database, where the settings lead to the one that the server uses.
func (x *examination) examineDatabase(ctx context.Context, o *operators, s admin.Status) {
	if s.Store != string(config.Postgres) {
		return
	}
	const what = "clock, vacuum and connections of the database: "
	switch {
	case o.config == nil || o.config.Mode != config.ModeSQLServer || o.config.SQLConnectionString.Backend != config.Postgres:
		x.Skipped = append(x.Skipped, what+"give the server's --config, or its settings in the environment")
		return
	case o.config.SQLConnectionString.String() != s.Database:
		x.Skipped = append(x.Skipped, what+"the settings here lead to "+o.config.SQLConnectionString.String()+", the server uses "+s.Database)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	db, err := connectPostgres(ctx, o.config.SQLConnectionString.Text())
	if err != nil {
		x.check("database", Finding{Found: fmt.Sprintf("it cannot be reached from here: %v", err), Remedy: "see that it runs, and that sqlConnectionString is right"})
		return
	}
	defer db.Close(ctx)
	x.ask("clock", func() ([]Finding, error) { return checkClock(ctx, db) })
	x.ask("vacuum", func() ([]Finding, error) { return checkVacuum(ctx, db) })
	x.ask("database connections", func() ([]Finding, error) { return checkBackends(ctx, db) })
	x.ask("expired sessions", func() ([]Finding, error) { return checkExpired(ctx, db, s.Sweeper.Interval) })
}

func connectPostgres(ctx context.Context, url string) (*pgx.Conn, error) {
	pool, err := pgxpool.ParseConfig(url) // which knows pool_max_conns
	if err != nil {
		return nil, err
	}
	pool.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // works through PgBouncer
	return pgx.ConnectConfig(ctx, pool.ConnConfig)
}

// maxSkew is how far clocks may be apart.
const maxSkew = 2 * time.Second

// checkClock compares the database's clock, which decides about locks and expiry, with this machine's.
func checkClock(ctx context.Context, db *pgx.Conn) ([]Finding, error) {
	var there time.Time
	before := time.Now()
	if err := db.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
		return nil, err
	}
	after := time.Now()
	return judgeClock(before, there, after), nil
}

func judgeClock(before, there, after time.Time) []Finding {
	skew := there.Sub(after)
	if early := before.Sub(there); early > skew {
		skew = early
	}
	if skew <= maxSkew {
		return nil
	}
	return []Finding{{
		Found:  fmt.Sprintf("the clocks of the database and of this machine are at least %s apart", span(skew.Seconds())),
		Remedy: "synchronise both (NTP). Locks and expiry follow the database alone; lock dates that web servers see, and times in logs, are off",
	}}
}

// vacuumSQL looks at the table of sessions and where its items are kept (TOAST).
const vacuumSQL = `
SELECT coalesce(s.n_dead_tup, 0), coalesce(t.n_dead_tup, 0),
    current_setting('autovacuum') = 'on' AND coalesce((SELECT bool_and(o NOT IN ('autovacuum_enabled=false', 'autovacuum_enabled=off')) FROM unnest(c.reloptions) AS o), true),
    coalesce((SELECT extract(epoch FROM max(clock_timestamp() - xact_start)) FROM pg_stat_activity
        WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()), 0)::float8
FROM pg_class c
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
LEFT JOIN pg_stat_all_tables t ON t.relid = c.reltoastrelid
WHERE c.oid = 'sessions'::regclass`

const (
	// Autovacuum comes at 20,000 dead rows, and at 50,000 pieces of items (migrations/postgres).
	maxDead      = 200_000
	maxDeadToast = 500_000
	// maxTransaction is how long another program's transaction may keep dead rows from being cleared.
	maxTransaction = 600.0
)

func checkVacuum(ctx context.Context, db *pgx.Conn) ([]Finding, error) {
	var dead, toast int64
	var on bool
	var oldest float64
	if err := db.QueryRow(ctx, vacuumSQL).Scan(&dead, &toast, &on, &oldest); err != nil {
		return nil, err
	}
	return judgeVacuum(dead, toast, on, oldest), nil
}

func judgeVacuum(dead, toast int64, on bool, oldest float64) (findings []Finding) {
	if !on {
		findings = append(findings, Finding{Found: "autovacuum is off for the table of sessions, which grows with every write", Remedy: "switch it on: ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf(); ALTER TABLE sessions RESET (autovacuum_enabled)"})
	}
	if oldest > maxTransaction {
		findings = append(findings, Finding{Found: fmt.Sprintf("a transaction in this database has been open for %s: until it ends, dead rows cannot be cleared", span(oldest)), Remedy: "find it in pg_stat_activity (xact_start) and end it; idle_in_transaction_session_timeout keeps it from coming back"})
	}
	if dead > maxDead || toast > maxDeadToast {
		findings = append(findings, Finding{Found: fmt.Sprintf("autovacuum is behind: the table of sessions has %d dead rows, and %d dead pieces of items", dead, toast), Remedy: "run VACUUM sessions now, and give autovacuum more: raise autovacuum_max_workers or maintenance_work_mem"})
	}
	return findings
}

// checkBackends looks whether the database has room for more connections.
func checkBackends(ctx context.Context, db *pgx.Conn) ([]Finding, error) {
	var used, most int
	err := db.QueryRow(ctx, `SELECT count(*)::int, current_setting('max_connections')::int FROM pg_stat_activity WHERE backend_type = 'client backend'`).Scan(&used, &most)
	if err != nil {
		return nil, err
	}
	if used*10 < most*9 {
		return nil, nil
	}
	return []Finding{{
		Found:  fmt.Sprintf("%d of the database's %d connections are in use", used, most),
		Remedy: "raise max_connections, or find out who has so many (SELECT application_name, count(*) FROM pg_stat_activity GROUP BY 1); aspstate needs pool_max_conns and one more for each server",
	}}, nil
}

// checkExpired looks for sessions that no sweeper of any server has deleted for long.
func checkExpired(ctx context.Context, db *pgx.Conn, interval float64) ([]Finding, error) {
	var seconds float64
	err := db.QueryRow(ctx, `SELECT coalesce(extract(epoch FROM clock_timestamp() - min(sweep_at)), 0)::float8 FROM (SELECT sweep_at FROM sessions ORDER BY sweep_at LIMIT 1) s`).Scan(&seconds)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, err
	}
	if seconds <= 5*interval+600 {
		return nil, nil
	}
	return []Finding{{
		Found:  fmt.Sprintf("an expired session has not been deleted for %s: the sweepers of all servers are behind, or do not run", span(seconds)),
		Remedy: "look for \"sweep\" in the servers' logs; raise sweep.batch if more expires than is deleted",
	}}, nil
}
