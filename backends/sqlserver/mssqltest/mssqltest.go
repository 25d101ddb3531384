// Package mssqltest gives tests databases of their own on the server that ASPSTATE_TEST_SQLSERVER names.
package mssqltest

import (
	cryptorand "crypto/rand"
	"database/sql"
	"errors"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	mssql "github.com/microsoft/go-mssqldb" // and the driver sqlserver
)

// Variable names a SQL Server, by a sqlserver:// URL of a login that may create databases.
const Variable = "ASPSTATE_TEST_SQLSERVER"

// Main runs the tests of a package and says what did not run.
func Main(m *testing.M) int {
	code := m.Run()
	if os.Getenv(Variable) == "" {
		os.Stdout.WriteString("NOT RUN: the tests that need a SQL Server; " + Variable + " names none\n")
	}
	return code
}

// Given reports whether there is a server.
func Given() bool { return os.Getenv(Variable) != "" }

// Database makes an empty database, which is dropped at the end of the test, and returns its connection string. Without a server the
// test is skipped.
func Database(t testing.TB) string {
	t.Helper()
	server := os.Getenv(Variable)
	if server == "" {
		t.Skip(Variable + " names no SQL Server")
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "sqlserver" {
		t.Fatalf("%s is no sqlserver:// URL", Variable)
	}
	db, err := sql.Open("sqlserver", server)
	if err != nil {
		t.Fatal(err)
	}
	name := "aspstate_" + strings.ToLower(cryptorand.Text()[:12])
	if err := try(db, "CREATE DATABASE "+name); err != nil {
		db.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer db.Close()
		// Connections that a killed process left keep the database for a while; Babelfish has no SET SINGLE_USER.
		db.Exec("ALTER DATABASE " + name + " SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
		if err := try(db, "DROP DATABASE "+name); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	q := u.Query()
	q.Set("database", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// try makes or drops a database. Where another test does so at the same moment, the server may refuse that: SQL Server with 1807 (no lock
// on the database model), Babelfish with an error of its catalog.
func try(db *sql.DB, statement string) error {
	for begun := time.Now(); ; time.Sleep(rand.N(50 * time.Millisecond)) {
		_, err := db.Exec(statement)
		e, refused := errors.AsType[mssql.Error](err)
		refused = refused && (e.Number == 1807 || strings.Contains(e.Message, "tuple concurrently"))
		if !refused || time.Since(begun) > time.Minute {
			return err
		}
	}
}
