//go:build unix

package main

import (
	"database/sql"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends/sqlserver/mssqltest"
)

// The doctor says what keeps a server from starting on its database.
func TestDoctorSaysWhyNoServerStarts(t *testing.T) {
	database := mssqltest.Database(t)
	login, user := mssqltest.Login(t, database)
	unknown := strings.Replace(login, user, "no"+user, 1)
	for dsn, says := range map[string]string{
		database: "run: aspstate migrate up",
		unknown:  "check the login, its password",
		"sqlserver://127.0.0.1:1?encrypt=disable": "connection refused",
	} {
		settings := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "sqlConnectionString: "+dsn+"\nlisten: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:1}\n")
		code, out, _ := aspstate(t, "doctor", "--config="+settings)
		if code != 1 || !strings.Contains(out, "! server: ") || !strings.Contains(out, "! database: sqlserver://") || !strings.Contains(out, says) {
			t.Errorf("exit code %d, want %q:\n%s", code, says, out)
		}
	}
	want(t, 0, []string{"up to date"}, "migrate", "up", "--sql-connection-string=file:"+write(t, filepath.Join(t.TempDir(), "dsn"), database))
	settings := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "sqlConnectionString: "+database+"\nlisten: 127.0.0.1:0\nadmin: {listen: 127.0.0.1:1}\n")
	if code, out, _ := aspstate(t, "doctor", "--config="+settings); code != 1 || !strings.Contains(out, "fine: ports, database") {
		t.Errorf("a good database: exit code %d:\n%s", code, out)
	}
}

// A right that is taken away while serving fails requests at once, and the doctor says which it is.
func TestRightsThatAreTakenAway(t *testing.T) {
	database := mssqltest.Database(t)
	want(t, 0, []string{"up to date"}, "migrate", "up", "--sql-connection-string=file:"+write(t, filepath.Join(t.TempDir(), "dsn"), database))
	login, user := mssqltest.Login(t, database)
	db, err := sql.Open("sqlserver", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tell := func(right, to string) {
		t.Helper()
		for _, table := range []string{"TempSessions", "TempApplications", "Requests"} {
			if _, err := db.Exec(right + " SELECT, INSERT, UPDATE, DELETE ON dbo.ASPState" + table + " " + to + " " + user); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell("GRANT", "TO")
	settings := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "sqlConnectionString: "+login+"\nrequestBudget: 1m50s\n")
	r := start(t, "--config="+settings)
	at := "--admin=" + adminAddress(t, r)
	wantStatus(t, 200)(dial(t, r).Set(shop, []byte("cart"), 20*time.Minute, 0))
	want(t, 0, []string{"fine: server, ", ", store, "}, "doctor", at)

	tell("REVOKE", "FROM")
	conn := dial(t, r)
	conn.Timeout = 0
	answered := make(chan error, 1)
	go func() { _, err := conn.Set(shop, []byte("more"), 20*time.Minute, 0); answered <- err }()
	select {
	case err := <-answered:
		if err == nil {
			t.Error("a Set without rights is answered")
		}
	case <-time.After(patience): // the budget is longer
		t.Fatal("a Set without rights is retried")
	}
	code, out, _ := aspstate(t, "doctor", at)
	if u, err := url.Parse(login); err != nil || code != 1 || !strings.Contains(out, "! store: ") || !strings.Contains(out, "GRANT ") || strings.Contains(out, u.User.String()) {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	tell("GRANT", "TO")
	wantStatus(t, 200)(dial(t, r).Set(shop, []byte("more"), 20*time.Minute, 0))
	r.stop()
	r.ended(t, 0)
}
