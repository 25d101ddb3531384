package sqlserver_test

import (
	"database/sql"
	"log/slog"
	"os"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/sqlserver"
	"aspstate/backends/sqlserver/mssqltest"
	"aspstate/migrations"
)

func TestMain(m *testing.M) { os.Exit(mssqltest.Main(m)) }

// database is an empty one with ASPState's objects.
func database(t testing.TB) (string, *sql.DB) {
	t.Helper()
	url := mssqltest.Database(t)
	m, db, err := migrations.SQLServer(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := m.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	return url, db
}

func open(t testing.TB, url string) *sqlserver.Store {
	t.Helper()
	s, err := sqlserver.Open(t.Context(), url, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// backdate makes a session older.
func backdate(t testing.TB, db *sql.DB, key backends.Key, d time.Duration) {
	t.Helper()
	_, err := db.Exec(`UPDATE dbo.ASPStateTempSessions SET
		Created = DATEADD(millisecond, -@p3, DATEADD(second, -@p2, Created)), Expires = DATEADD(millisecond, -@p3, DATEADD(second, -@p2, Expires)),
		LockDate = DATEADD(millisecond, -@p3, DATEADD(second, -@p2, LockDate)), LockDateLocal = DATEADD(millisecond, -@p3, DATEADD(second, -@p2, LockDateLocal))
		WHERE SessionId = @p1`, key.ID+key.App.Suffix(), int32(d/time.Second), int32(d%time.Second/time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	type place struct {
		url string
		db  *sql.DB
	}
	if !mssqltest.Given() {
		t.Skip("ASPSTATE_TEST_SQLSERVER names no SQL Server")
	}
	var free []place // making one takes a second; moves take two
	all := t
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		if len(free) == 0 {
			url, db := database(all)
			free = append(free, place{url, db})
		}
		p := free[0]
		free = free[1:]
		t.Cleanup(func() { free = append(free, p) })
		url, db := p.url, p.db
		for _, table := range []string{"TempSessions", "TempApplications", "Requests WHERE Slot <> 0x00000000000000000000000000000000"} {
			if _, err := db.Exec("DELETE dbo.ASPState" + table); err != nil {
				t.Fatal(err)
			}
		}
		return backendtest.Fixture{
			Store:    open(t, url),
			Backdate: func(t testing.TB, key backends.Key, d time.Duration) { backdate(t, db, key, d) },
			Beside:   func(t testing.TB) backends.Store { return open(t, url) },
			Collides: true,
		}
	})
}
