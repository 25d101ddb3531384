//go:build unix

package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
	"aspstate/server/stateserver/client"
)

// previous is the last commit whose schema has version 1.
const previous = "964cabb"

// previousProgram is the program of that commit, "" where its history is not at hand.
var previousProgram = sync.OnceValues(func() (string, error) {
	archive := exec.Command("git", "-C", "..", "archive", "--format=tar", previous)
	source := filepath.Join(folder, "previous")
	if err := os.Mkdir(source, 0o700); err != nil {
		return "", err
	}
	unpack := exec.Command("tar", "-x", "-C", source)
	pipe, err := archive.StdoutPipe()
	if err != nil {
		return "", err
	}
	unpack.Stdin = pipe
	if err := archive.Start(); err != nil {
		return "", nil
	}
	unpackErr := unpack.Run()
	if archive.Wait() != nil || unpackErr != nil {
		return "", nil
	}
	path := filepath.Join(folder, "aspstate-previous")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./cmd/aspstate")
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the previous version: %w\n%s", err, out)
	}
	return path, nil
})

func needPrevious(t *testing.T) {
	t.Helper()
	if !thorough {
		t.Skip("builds the previous version: make test-all runs it, with ASPSTATE_TEST_LONG=1")
	}
	if path, err := previousProgram(); err == nil && path == "" {
		t.Skip("the previous version is not in the history here")
	}
}

func mustRun(t *testing.T, program func() (string, error), args ...string) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func connect(t *testing.T, p *process) *client.Conn {
	t.Helper()
	c, err := client.Dial(p.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantAnswer(t *testing.T, status int, body string) func(client.Answer, error) client.Answer {
	return func(a client.Answer, err error) client.Answer {
		t.Helper()
		if err != nil || a.Status != status || body != "" && string(a.Body) != body {
			t.Fatalf("answer %d %q, %v; want %d %q", a.Status, a.Body, err, status, body)
		}
		return a
	}
}

// The sessions and locks of an SQLite file of the previous version are there after the upgrade.
func TestUpgradeOfAFile(t *testing.T) {
	needPrevious(t)
	db := "--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "x.db")
	target := client.Target("/LM/W3SVC/1/ROOT/shop", "upgraded")
	old := serve(t, previousProgram, db)
	c := connect(t, old)
	wantAnswer(t, 200, "")(c.Set(target, []byte("cart"), 20*time.Minute, 0))
	locked := wantAnswer(t, 200, "cart")(c.GetExclusive(target))
	old.stop(t)
	if got := mustRun(t, previousProgram, "migrate", "version", db); got != "1" {
		t.Fatalf("the previous version makes schema %s: this test proves nothing", got)
	}
	c = connect(t, serve(t, program, db, "--admin-listen=off"))
	wantAnswer(t, 423, "")(c.Get(target))
	wantAnswer(t, 200, "")(c.Set(target, []byte("more"), 20*time.Minute, locked.LockCookie))
	wantAnswer(t, 200, "more")(c.Get(target))
}

// A farm on PostgreSQL is upgraded server by server: both versions serve one database, before and after its migration.
func TestUpgradeOfAFarm(t *testing.T) {
	needPrevious(t)
	db := "--sql-connection-string=" + pgtest.Shared(t).Database(t)
	mustRun(t, previousProgram, "migrate", "up", db)
	old := connect(t, serve(t, previousProgram, db))
	target := client.Target("/LM/W3SVC/1/ROOT/shop", "upgraded")
	wantAnswer(t, 200, "")(old.Set(target, []byte("0"), 20*time.Minute, 0))

	mustRun(t, program, "migrate", "up", db)
	if got := mustRun(t, program, "migrate", "version", db); got == "1" {
		t.Fatal("the schema is the previous one: this test proves nothing")
	}
	current := connect(t, serve(t, program, db, "--admin-listen=off"))
	versions := []*client.Conn{old, current}
	for n := range 20 { // each locks what the other has written, and is refused while the other has the lock
		mine, other := versions[n%2], versions[(n+1)%2]
		locked := wantAnswer(t, 200, fmt.Sprint(n))(mine.GetExclusive(target))
		wantAnswer(t, 423, "")(other.Get(target))
		wantAnswer(t, 200, "")(mine.Set(target, fmt.Append(nil, n+1), 20*time.Minute, locked.LockCookie))
	}
	fresh := client.Target("/LM/W3SVC/2/ROOT/new", "application") // registered by the one, found by the other
	wantAnswer(t, 200, "")(old.Set(fresh, []byte("a"), 20*time.Minute, 0))
	wantAnswer(t, 200, "a")(current.Get(fresh))
	wantAnswer(t, 200, "")(current.Remove(fresh, 0))
	wantAnswer(t, 404, "")(old.Get(fresh))

	// Who waits at the older one for a lock of the newer one never gets an old item.
	locked := wantAnswer(t, 200, "20")(current.GetExclusive(target))
	waits := make(chan client.Answer, 1)
	go func() {
		a, _ := old.GetExclusive(target)
		waits <- a
	}()
	wantAnswer(t, 200, "")(current.Set(target, []byte("21"), 20*time.Minute, locked.LockCookie))
	if a := <-waits; a.Status != 423 && (a.Status != 200 || string(a.Body) != "21") {
		t.Errorf("who waited at the older server is answered %d %q", a.Status, a.Body)
	}
}
