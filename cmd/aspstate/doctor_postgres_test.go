//go:build unix

package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
)

func TestDoctorLooksIntoPostgres(t *testing.T) {
	server := pgtest.Shared(t)
	url := server.Database(t)
	settings := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "sqlConnectionString: "+url+"\nautoMigrate: true\nsweep: {interval: 24h}\n")
	r := start(t, "--config="+settings)
	at := "--admin=" + adminAddress(t, r)
	c := dial(t, r)
	wantStatus(t, 200)(c.Set(shop, []byte("cart"), 20*time.Minute, 0))
	want(t, 0, []string{"SQLServer: sessions are kept in postgres://", "schema version", "connections, 0 calls wait"}, "status", at)

	want(t, 0, []string{"fine: ", "pool", "clock", "vacuum", "database connections", "expired sessions"}, "doctor", at, "--config="+settings)
	_, out, _ := aspstate(t, "doctor", at)
	if !strings.Contains(out, "not looked at: clock, vacuum") {
		t.Errorf("without the settings:\n%s", out)
	}
	server.Exec(t, url, "ALTER TABLE sessions SET (autovacuum_enabled = off); UPDATE sessions SET sweep_at = now() - interval '30 days'")
	code, out, _ := aspstate(t, "doctor", at, "--config="+settings)
	if code != 1 || strings.Count(out, "! ") != 2 || !strings.Contains(out, "! vacuum: autovacuum is off") || !strings.Contains(out, "! expired sessions: ") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	r.stop()
	r.ended(t, 0)
}
