package main

import (
	"bytes"
	"database/sql"
	"encoding/xml"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/microsoft/go-mssqldb"

	"aspstate/backends"
	"aspstate/server/stateserver/client"
)

const (
	tdsPassword = "Right-0815"
	tdsApp      = "/LM/W3SVC/1/ROOT/Shop"
)

// hashOf has the command hash a password.
func hashOf(t *testing.T, password string) string {
	t.Helper()
	cmd := hashPasswordCommand()
	var out bytes.Buffer
	cmd.SetArgs(nil)
	cmd.SetIn(strings.NewReader(password + "\r\nsecond line\n"))
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// tdsHash is the hash of tdsPassword, which takes seconds to make where the race detector watches.
func tdsHash(t *testing.T) string {
	t.Helper()
	tdsHashOnce.Do(func() { tdsHashed = hashOf(t, tdsPassword) })
	return tdsHashed
}

var (
	tdsHashOnce sync.Once
	tdsHashed   string
)

// startTDS is start with a listener for mode="SQLServer", whose address it returns.
func startTDS(t *testing.T, args ...string) (r *running, address string) {
	t.Helper()
	r = start(t, append([]string{"--mode=StateServer", "--tds-listen=127.0.0.1:0", "--tds-users=web:" + tdsHash(t)}, args...)...)
	found := regexp.MustCompile(`<sessionState mode="SQLServer" sqlConnectionString="Data Source=([^,]+),([0-9]+);User ID=web;Password=\.\.\." />`).FindStringSubmatch(r.stdout)
	if found == nil {
		t.Fatalf("the server does not say what to write for mode=\"SQLServer\":\n%s", r.stdout)
	}
	return r, net.JoinHostPort(found[1], found[2])
}

func openTDS(t *testing.T, address, password string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlserver", fmt.Sprintf("sqlserver://web:%s@%s?database=ASPState&TrustServerCertificate=true", password, address))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// One session, from both sides, by the names that the web servers of a farm give their application.
func TestBothModesShareSessions(t *testing.T) {
	alias := "--applications=shop=" + tdsApp + ",/LM/W3SVC/7/ROOT/Shop"
	for name, args := range map[string][]string{"plain": nil, "alias": {alias}} {
		t.Run(name, func(t *testing.T) {
			r, address := startTDS(t, args...)
			db, c := openTDS(t, address, tdsPassword), dial(t, r)
			var id int32
			if _, err := db.Exec("dbo.TempGetAppID", sql.Named("appName", strings.ToUpper(tdsApp)), sql.Named("appId", sql.Out{Dest: &id})); err != nil {
				t.Fatal(err)
			}
			target, key := client.Target(tdsApp, "s1"), sql.Named("id", "s1"+backends.AppID(id).Suffix())
			if name == "alias" {
				target = client.Target("/LM/W3SVC/7/ROOT/shop", "s1")
			}
			wantStatus(t, 200)(c.Set(target, []byte("from 42424"), time.Hour, 0))
			get := func(procedure string) (item []byte, locked sql.NullBool, cookie sql.NullInt32) {
				var age, flags sql.NullInt32
				_, err := db.Exec(procedure, key, sql.Named("itemShort", sql.Out{Dest: &item}), sql.Named("locked", sql.Out{Dest: &locked}),
					sql.Named("lockAge", sql.Out{Dest: &age}), sql.Named("lockCookie", sql.Out{Dest: &cookie}), sql.Named("actionFlags", sql.Out{Dest: &flags}))
				if err != nil {
					t.Fatal(err)
				}
				return item, locked, cookie
			}
			if item, locked, cookie := get("dbo.TempGetStateItemExclusive3"); string(item) != "from 42424" || locked.Bool || cookie.Int32 != 2 {
				t.Errorf("%q, locked %v, cookie %v", item, locked, cookie)
			}
			if a := wantStatus(t, 423)(c.Get(target)); a.LockCookie != 2 {
				t.Errorf("on the other port the lock has cookie %d", a.LockCookie)
			}
			if _, err := db.Exec("dbo.TempUpdateStateItemShort", key, sql.Named("itemShort", []byte("from 1433")), sql.Named("timeout", 60), sql.Named("lockCookie", 2)); err != nil {
				t.Fatal(err)
			}
			a := wantStatus(t, 200)(c.GetExclusive(target))
			if string(a.Body) != "from 1433" || a.LockCookie != 3 || a.Timeout != time.Hour {
				t.Errorf("%q, cookie %d, timeout %v", a.Body, a.LockCookie, a.Timeout)
			}
			if item, locked, cookie := get("dbo.TempGetStateItem3"); item != nil || !locked.Bool || cookie.Int32 != 3 {
				t.Errorf("%q, locked %v, cookie %v", item, locked, cookie)
			}
			wantStatus(t, 200)(c.Remove(target, 3))
			if _, locked, _ := get("dbo.TempGetStateItem3"); locked.Valid {
				t.Error("the session is there after its removal")
			}
		})
	}
}

// A server that has been started anew knows the suffixes that its predecessor gave out, and clients need no
// new login dance to find their sessions.
func TestSuffixesOutliveTheServer(t *testing.T) {
	file := "--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "sessions.db")
	r, address := startTDS(t, "--mode=SQLServer", file)
	var id int32
	if _, err := openTDS(t, address, tdsPassword).Exec("dbo.TempGetAppID", sql.Named("appName", tdsApp), sql.Named("appId", sql.Out{Dest: &id})); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, 200)(dial(t, r).Set(client.Target(tdsApp, "s1"), []byte("kept"), time.Hour, 0))
	r.stop()
	r.ended(t, 0)
	_, address = startTDS(t, "--mode=SQLServer", file)
	var item []byte
	var locked sql.NullBool
	var age, cookie, flags sql.NullInt32
	_, err := openTDS(t, address, tdsPassword).Exec("dbo.TempGetStateItem3", sql.Named("id", "s1"+backends.AppID(id).Suffix()), sql.Named("itemShort", sql.Out{Dest: &item}),
		sql.Named("locked", sql.Out{Dest: &locked}), sql.Named("lockAge", sql.Out{Dest: &age}), sql.Named("lockCookie", sql.Out{Dest: &cookie}), sql.Named("actionFlags", sql.Out{Dest: &flags}))
	if err != nil || string(item) != "kept" {
		t.Errorf("%q, %v", item, err)
	}
}

// This server is no SQL Server, and the store for SQL Server must not begin to use it as one.
func TestSQLServerStoreOnItsOwnFrontEndIsRefused(t *testing.T) {
	_, address := startTDS(t)
	environ := []string{"DB=sqlserver://web:" + tdsPassword + "@" + address + "?database=ASPState&TrustServerCertificate=true"}
	for _, args := range [][]string{
		{"serve", "--listen=127.0.0.1:0", "--admin-listen=off", "--sql-connection-string=env:DB"},
		{"migrate", "up", "--sql-connection-string=env:DB"},
	} {
		var out, errs bytes.Buffer
		begun := time.Now()
		code := run(t.Context(), args, &out, &errs, environ)
		if code != 1 || !strings.Contains(errs.String(), "This is aspstate, which serves only session-state procedures") || strings.Contains(errs.String(), tdsPassword) {
			t.Errorf("%s: exit code %d after %v:\n%s", args[0], code, time.Since(begun).Round(time.Second), &errs)
		}
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("%s is refused after %v", args[0], took)
		}
	}
}

// Users, databases and limits change while the server runs.
func TestReloadOfTDS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aspstate.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("tds: {listen: 127.0.0.1:0, users: ['web:" + hashOf(t, tdsPassword) + "']}")
	var at string
	r := start(t, "--mode=StateServer", "--config="+file)
	if found := regexp.MustCompile(`Data Source=([^,]+),([0-9]+);`).FindStringSubmatch(r.stdout); found != nil {
		at = net.JoinHostPort(found[1], found[2])
	}
	if err := openTDS(t, at, tdsPassword).Ping(); err != nil {
		t.Fatal(err)
	}
	write("tds: {listen: 127.0.0.1:0, encryption: required, users: ['web:" + hashOf(t, "Changed-1") + "']}")
	want(t, 0, []string{"tds.encryption"}, "reload", "--admin="+adminAddress(t, r))
	if err := openTDS(t, at, "Changed-1").Ping(); err != nil {
		t.Error(err)
	}
	if err := openTDS(t, at, tdsPassword).Ping(); err == nil {
		t.Error("the old password is good still")
	}
}

func TestHashPassword(t *testing.T) {
	hash := regexp.MustCompile(`^pbkdf2-sha256\$600000\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`)
	if got := hashOf(t, "x"); !hash.MatchString(got) {
		t.Errorf("got %q", got)
	}
	cmd := hashPasswordCommand()
	cmd.SetArgs(nil)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetIn(strings.NewReader("\n"))
	if err := cmd.Execute(); err == nil {
		t.Error("an empty password was hashed")
	}
}

func TestWebConfigForSQLServerMode(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"default database": {nil, `Data Source=127.0.0.1,1433;User ID=web;Password=...`},
		"own database":     {[]string{"--tds-databases=Shop"}, `Data Source=127.0.0.1,1433;User ID=web;Password=...;Initial Catalog=Shop`},
	} {
		t.Run(name, func(t *testing.T) {
			_, out, stderr := aspstate(t, append([]string{"webconfig", "--tds-listen=127.0.0.1:1433", "--tds-users=web:" + hashOf(t, "x")}, test.args...)...)
			var document struct {
				States []struct {
					Mode   string `xml:"mode,attr"`
					Source string `xml:"sqlConnectionString,attr"`
					Custom bool   `xml:"allowCustomSqlDatabase,attr"`
				} `xml:"sessionState"`
			}
			if err := xml.Unmarshal([]byte("<system.web>"+out+"</system.web>"), &document); err != nil || len(document.States) != 2 {
				t.Fatalf("%v\n%s%s", err, out, stderr)
			}
			s := document.States[1]
			if s.Mode != "SQLServer" || s.Source != test.want || s.Custom != strings.Contains(test.want, "Catalog") {
				t.Errorf("got %+v, want %s", s, test.want)
			}
		})
	}
}
