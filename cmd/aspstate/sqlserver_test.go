//go:build unix

package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/sqlserver/mssqltest"
	"aspstate/config"
)

// sqlServer is the flag that leads to an empty database on the SQL Server of the tests.
func sqlServer(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dsn") // passwords are refused on a command line
	if err := os.WriteFile(file, []byte(mssqltest.Database(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--sql-connection-string=file:" + file
}

func TestTranscriptsOnSQLServer(t *testing.T) {
	r := start(t, sqlServer(t), "--auto-migrate", "--lock-wait=0s")
	if !strings.Contains(r.stdout, "SQL Server database ") {
		t.Errorf("it says %s", r.stdout)
	}
	playTranscripts(t, func() (net.Conn, error) { return net.Dial("tcp", r.address) })
	r.stop()
	r.ended(t, 0)
}

func TestMigrateSQLServer(t *testing.T) {
	db := sqlServer(t)
	want(t, 1, []string{"run: aspstate migrate up"}, "serve", "--listen=127.0.0.1:0", db)
	want(t, 1, []string{"run: aspstate migrate up"}, "check", db)
	want(t, 1, []string{"run: aspstate migrate up; found: no ASPState objects"}, "migrate", "status", db)
	want(t, 1, []string{"run: aspstate migrate up"}, "sweep", db)
	want(t, 0, []string{"up to date"}, "migrate", "up", db)
	want(t, 0, []string{"up to date: version 1; found: ASPState, made by aspstate"}, "migrate", "status", db)
	want(t, 0, []string{"sqlConnectionString"}, "check", db)
	want(t, 1, []string{"deletes all sessions", "--yes"}, "migrate", "down", db)
	want(t, 0, []string{"removed"}, "migrate", "down", "--yes", db)
	want(t, 0, []string{"0\n"}, "migrate", "version", db)
}

func TestSQLServerThatIsNotThere(t *testing.T) {
	for _, db := range []string{"sqlserver://127.0.0.1:1?encrypt=disable", "Data Source=127.0.0.1,1;Integrated Security=SSPI"} {
		if code, _, stderr := withoutWaiting(t, "check", "--sql-connection-string="+db); code != 1 || !strings.Contains(stderr, "sqlConnectionString") ||
			!strings.Contains(stderr, "reached from here") {
			t.Errorf("check: %d, %s", code, stderr)
		}
		want(t, 1, []string{"migrate"}, "migrate", "status", "--sql-connection-string="+db)
	}
}

func TestCheckSaysWhatAliasesCannotDo(t *testing.T) {
	const aliases = "--applications=shop=/LM/W3SVC/1/ROOT,/LM/W3SVC/7/ROOT"
	const note = "note: web applications in mode=\"SQLServer\" that use the database directly: aliases (applications) do not act on them"
	nowhere := "--sql-connection-string=sqlserver://127.0.0.1:1?encrypt=disable"
	for _, test := range []struct {
		args []string
		said bool
	}{
		{[]string{nowhere, aliases}, true},
		{[]string{nowhere}, false},
		{[]string{nowhere, aliases, "--mode=StateServer"}, false},
		{[]string{"--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "x.db"), aliases}, false},
	} {
		if _, _, stderr := withoutWaiting(t, append([]string{"check"}, test.args...)...); strings.Contains(stderr, note) != test.said {
			t.Errorf("check %v says %s", test.args, stderr)
		}
	}
}

func TestSweepMode(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aspstate.yaml")
	if err := os.WriteFile(file, []byte("mode: StateServer\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, 1, []string{"no database to sweep"}, "sweep", "--config="+file)
}

// The sweeper alone deletes what has expired, and ends with its context.
func TestSweep(t *testing.T) {
	place, err := config.PlaceAt("sqlite:"+filepath.Join(t.TempDir(), "x.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Mode: config.ModeSQLServer, SQLConnectionString: place.ConnectionString}
	c.Sweep.Interval, c.Sweep.Batch = time.Millisecond, 100
	log := new(logBuffer)
	store, err := openStore(t.Context(), place, c, newLogger(log, "text", nil))
	if err != nil {
		t.Fatal(err)
	}
	app, err := store.Application(t.Context(), "/lm/w3svc/1/root", true)
	for i, timeout := range []time.Duration{-time.Minute, time.Hour, -time.Minute} {
		if err == nil {
			err = store.Set(t.Context(), backends.Key{App: app, ID: string(rune('a' + i))}, backends.Token{byte(i)}, backends.Write{Data: []byte("x"), Timeout: timeout})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- sweep(ctx, c, newLogger(log, "text", nil)) }()
	for !strings.Contains(log.String(), "sessions=2") && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil || !strings.Contains(log.String(), "sessions=2") {
		t.Fatalf("sweep: %v; its log:\n%s", err, log)
	}
}
