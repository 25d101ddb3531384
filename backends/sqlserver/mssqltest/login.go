package mssqltest

import (
	cryptorand "crypto/rand"
	"database/sql"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// Login makes a login that is a user of the database and has no rights in it, and returns the connection string with it and the user's
// name. It is dropped at the end of the test.
func Login(t testing.TB, database string) (connectionString, user string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	server, err := sql.Open("sqlserver", os.Getenv(Variable))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	user = "aspstate_" + strings.ToLower(cryptorand.Text()[:12])
	password := "aA1-" + cryptorand.Text()
	if err := try(server, "CREATE LOGIN "+user+" WITH PASSWORD = '"+password+"', DEFAULT_DATABASE = "+u.Query().Get("database")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			err := try(server, "DROP LOGIN "+user)
			if err == nil {
				return
			}
			if !strings.Contains(err.Error(), "logged in") || time.Since(begun) > time.Minute { // the server sees connections end later
				t.Errorf("drop the test's login: %v", err)
				return
			}
		}
	})
	db, err := sql.Open("sqlserver", database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := try(db, "CREATE USER "+user+" FOR LOGIN "+user); err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, password)
	return u.String(), user
}
