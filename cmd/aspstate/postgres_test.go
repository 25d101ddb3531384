//go:build unix

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
	"aspstate/server/stateserver/transcript"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// playTranscripts plays the front end's transcripts, byte for byte.
func playTranscripts(t *testing.T, dial func() (net.Conn, error)) {
	t.Helper()
	files, err := filepath.Glob("../../server/stateserver/testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		steps, err := transcript.Parse(string(text))
		if err == nil {
			err = transcript.Play(steps, dial)
		}
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
}

// The real program on every store answers every transcript. Two of them lock a session on purpose and
// ask for it again, which would take a second each.
func TestTranscriptsOnEveryStore(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	for name, args := range map[string][]string{
		"memory":   {"--mode=StateServer"},
		"sqlite":   {"--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "x.db")},
		"postgres": {"--sql-connection-string=" + url, "--auto-migrate"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, append(args, "--lock-wait=0s")...)
			playTranscripts(t, func() (net.Conn, error) { return net.Dial("tcp", r.address) })
			r.stop()
			r.ended(t, 0)
		})
	}
}

func TestMigratePostgres(t *testing.T) {
	db := "--sql-connection-string=" + pgtest.Shared(t).Database(t)
	want(t, 1, []string{"run: aspstate migrate up"}, "serve", "--listen=127.0.0.1:0", db)
	want(t, 1, []string{"run: aspstate migrate up"}, "check", db)
	want(t, 1, []string{"run: aspstate migrate up"}, "migrate", "status", db)
	want(t, 0, []string{"up to date"}, "migrate", "up", db)
	want(t, 0, []string{"up to date: version 2"}, "migrate", "status", db)
	want(t, 0, []string{"sqlConnectionString"}, "check", db)
	want(t, 1, []string{"deletes all sessions in postgres://postgres@127.0.0.1", "--yes"}, "migrate", "down", db)
	want(t, 0, []string{"2\n"}, "migrate", "version", db)
	want(t, 0, []string{"removed"}, "migrate", "down", "--yes", db)
	want(t, 1, []string{"run: aspstate migrate up"}, "serve", "--listen=127.0.0.1:0", db)
}

func TestMigrateUnlogged(t *testing.T) {
	server := pgtest.Shared(t)
	url := server.Database(t)
	want(t, 0, []string{"up to date"}, "migrate", "up", "--unlogged", "--sql-connection-string="+url)
	var persistence string
	server.Query(t, url, "SELECT relpersistence::text FROM pg_class WHERE oid = 'sessions'::regclass", &persistence)
	if persistence != "u" {
		t.Errorf("the table's persistence is %q, want u", persistence)
	}
}

// Two servers on one database are one: a lock taken at one is released at the other, and handed to who waits
// at the first.
func TestTwoServersOnOneDatabase(t *testing.T) {
	db := "--sql-connection-string=" + pgtest.Shared(t).Database(t)
	a := start(t, db, "--auto-migrate")
	b := start(t, db, "--auto-migrate")
	if !strings.Contains(a.stdout, "PostgreSQL database postgres://postgres@127.0.0.1") {
		t.Errorf("it says %s", a.stdout)
	}
	ca, cb := dial(t, a), dial(t, b)
	wantStatus(t, 200)(ca.Set(shop, []byte("first"), 20*time.Minute, 0))
	lock := wantStatus(t, 200)(ca.GetExclusive(shop))
	waiting := make(chan error, 1)
	go func() {
		answer, err := cb.GetExclusive(shop)
		if err == nil && (answer.Status != 200 || answer.LockCookie != lock.LockCookie+1 || string(answer.Body) != "second") {
			t.Errorf("the waiter gets %s, cookie %d, %q", answer.StatusLine, answer.LockCookie, answer.Body)
		}
		waiting <- err
	}()
	// The Set goes through neither of the two connections.
	wantStatus(t, 200)(dial(t, a).Set(shop, []byte("second"), 20*time.Minute, lock.LockCookie))
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	for _, r := range []*running{a, b} {
		r.stop()
		r.ended(t, 0)
	}
}

func TestEncryptionInPostgres(t *testing.T) {
	server := pgtest.Shared(t)
	database := server.Database(t)
	key, id := keyFile(t)
	r := start(t, "--sql-connection-string="+database, "--auto-migrate", "--encryption-keys="+key)
	setItem(t, r, "1", creditCard)
	setItem(t, r, "2", "another one")
	getItem(t, r, "1", creditCard)
	var readable int
	server.Query(t, database, `SELECT count(*) FROM sessions WHERE position('4929'::bytea IN item) > 0 OR position('another'::bytea IN item) > 0`, &readable)
	if readable > 0 {
		t.Errorf("%d sessions can be read in the database", readable)
	}
	// A database writer puts one session's item in the place of another's, and plants one.
	server.Exec(t, database, `UPDATE sessions SET item = (SELECT item FROM sessions WHERE session_id = '1'::bytea) WHERE session_id = '2'::bytea`)
	refused(t, r, "2")
	server.Exec(t, database, `UPDATE sessions SET item = '\x140000000000ff'::bytea WHERE session_id = '2'::bytea`)
	refused(t, r, "2")
	getItem(t, r, "1", creditCard)
	want(t, 0, []string{id, "encrypts", "not encrypted"}, "sessions", "keys", "--admin="+adminAddress(t, r))
}
