//go:build unix

package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
	"aspstate/config"
	"aspstate/server/stateserver/client"
)

const movedCart = "cart"

// fillAndLock writes sessions s0 to s9 and locks s0.
func fillAndLock(t *testing.T, r *running) (lock client.Answer) {
	t.Helper()
	c := dial(t, r)
	for i := range 10 {
		wantStatus(t, 200)(c.Set(client.Target(shopApp, fmt.Sprint("s", i)), []byte(movedCart), 20*time.Minute, 0))
	}
	return wantStatus(t, 200)(c.GetExclusive(client.Target(shopApp, "s0")))
}

// hasAll finds what fillAndLock wrote.
func hasAll(t *testing.T, r *running, lock client.Answer) {
	t.Helper()
	c := dial(t, r)
	if a := wantStatus(t, 423)(c.GetExclusive(client.Target(shopApp, "s0"))); a.LockCookie != lock.LockCookie {
		t.Errorf("locked with cookie %d, want %d", a.LockCookie, lock.LockCookie)
	}
	for i := 1; i < 10; i++ {
		if a := wantStatus(t, 200)(c.Get(client.Target(shopApp, fmt.Sprint("s", i)))); string(a.Body) != movedCart || a.Timeout != 20*time.Minute {
			t.Errorf("session %d is %q with timeout %v", i, a.Body, a.Timeout)
		}
	}
}

// From memory to a file to PostgreSQL, by the command, and everything that follows.
func TestSwitchCommand(t *testing.T) {
	file, database := "sqlite:"+filepath.Join(t.TempDir(), "moved.db"), pgtest.Shared(t).Database(t)
	r := start(t, "--mode=StateServer", "--auto-migrate", "--lock-wait=0s")
	lock := fillAndLock(t, r)
	admin := "--admin=" + adminAddress(t, r)

	want(t, 0, []string{"served from " + file + " now", "complete: 10 sessions", "into the settings"}, "switch", admin, "--to="+file)
	hasAll(t, r, lock)
	want(t, 0, nil, "switch", admin, "--to="+file) // again
	want(t, 1, []string{"the switch did not begin", "/dev/null"}, "switch", admin, "--to=sqlite:/dev/null/x.db")
	hasAll(t, r, lock)
	want(t, 0, []string{"complete: 10 sessions"}, "switch", admin, "--to="+database)
	hasAll(t, r, lock)
	r.stop()
	r.ended(t, 0)

	if code, _, stderr := aspstate(t, "serve", "--listen=127.0.0.1:0", "--admin-listen=off", "--sql-connection-string="+file); code != 1 ||
		!strings.Contains(stderr, "were moved from this store to postgres://") || !strings.Contains(stderr, "sqlConnectionString") {
		t.Errorf("a start on the store that was left ends with %d, %q", code, stderr)
	}
	r = start(t, "--sql-connection-string="+database, "--lock-wait=0s")
	hasAll(t, r, lock)
	r.stop()
	r.ended(t, 0)

	// Copying changes nothing the second time.
	other := "sqlite:" + filepath.Join(t.TempDir(), "copied.db")
	want(t, 0, []string{"10 sessions would be copied"}, "copy", "--from="+database, "--to="+other, "--dry-run")
	want(t, 0, []string{"10 sessions found, 10 copied, 0 were there already; now there are 10, before there were 0"}, "copy", "--from="+database, "--to="+other)
	want(t, 0, []string{"10 sessions found, 0 copied, 10 were there already; now there are 10, before there were 10"}, "copy", "--from="+database, "--to="+other)
	want(t, 1, []string{"the memory of a server", "aspstate switch"}, "copy", "--from=StateServer", "--to="+other)
	r = start(t, "--sql-connection-string="+other, "--lock-wait=0s")
	hasAll(t, r, lock)
}

// By the settings: a reload moves the sessions, and not again at the next one.
func TestSwitchBySettings(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "aspstate.yaml"), "sqlConnectionString: sqlite:a.db\nlockWait: 0s\n")
	r := start(t, "--config="+file)
	lock := fillAndLock(t, r)
	reload := func(text string) {
		t.Helper()
		write(t, file, text)
		want(t, 0, nil, "reload", "--admin="+adminAddress(t, r))
	}
	reload("sqlConnectionString: sqlite:b.db\nlockWait: 0s\n")
	r.log.await(t, "the switch is complete")
	reload("sqlConnectionString: sqlite:b.db\nlockWait: 10ms\n")
	hasAll(t, r, lock)
	if n := strings.Count(r.log.String(), "switching to another store"); n != 1 {
		t.Errorf("switched %d times, want once", n)
	}
	r.stop()
	r.ended(t, 0)
	r = start(t, "--config="+file)
	hasAll(t, r, lock)
}

// A server that ended while it moved sessions goes on with that, wherever it was.
func TestMoveGoesOnAfterARestart(t *testing.T) {
	for _, left := range []bool{false, true} {
		t.Run(fmt.Sprintf("left %t", left), func(t *testing.T) {
			dir := t.TempDir()
			from, to := "sqlite:"+filepath.Join(dir, "a.db"), "sqlite:"+filepath.Join(dir, "b.db")
			r := start(t, "--sql-connection-string="+from, "--lock-wait=0s")
			lock := fillAndLock(t, r)
			r.stop()
			r.ended(t, 0)

			move := backends.Move{ID: "1", From: from, To: to, Stage: backends.Moving}
			source, target := openPlaceForTest(t, from), openPlaceForTest(t, to)
			if err := target.Enter(t.Context(), move); err != nil {
				t.Fatal(err)
			}
			if left {
				if err := source.Leave(t.Context(), move); err != nil {
					t.Fatal(err)
				}
			}
			source.Close()
			target.Close()

			r = start(t, "--sql-connection-string="+to, "--lock-wait=0s")
			hasAll(t, r, lock)
			r.log.await(t, "the switch is complete")
			hasAll(t, r, lock)
			r.stop()
			r.ended(t, 0)
			if code, _, stderr := aspstate(t, "serve", "--listen=127.0.0.1:0", "--admin-listen=off", "--sql-connection-string="+from); code != 1 || !strings.Contains(stderr, "were moved from this store to "+to) {
				t.Errorf("a start on the store that was left ends with %d, %q", code, stderr)
			}
		})
	}
}

func openPlaceForTest(t *testing.T, text string) movableStore {
	t.Helper()
	place, err := config.PlaceOf(text)
	if err != nil {
		t.Fatal(err)
	}
	store, err := openStore(context.Background(), place, &config.Config{AutoMigrate: true}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return store.(movableStore)
}

func TestStateFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sessions")
	args := []string{"--mode=StateServer", "--memory-state-file=" + file, "--lock-wait=0s"}
	r := start(t, args...)
	lock := fillAndLock(t, r)
	r.stop()
	r.ended(t, 0)
	saved, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others may read the state file: %v, %v", info.Mode(), err)
	}
	r = start(t, args...)
	hasAll(t, r, lock)
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the state file is still there after the start: %v", err)
	}
	r.stop()
	r.ended(t, 0)

	for name, damage := range map[string]func([]byte) []byte{
		"byte":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"short": func(b []byte) []byte { return b[:len(b)-1] },
		"empty": func([]byte) []byte { return nil },
	} {
		if err := os.WriteFile(file, damage(append([]byte{}, saved...)), 0o600); err != nil {
			t.Fatal(err)
		}
		r = start(t, args...)
		wantStatus(t, 404)(dial(t, r).Get(client.Target(shopApp, "s1")))
		if !strings.Contains(r.log.String(), "the file is damaged") || !strings.Contains(r.log.String(), "set aside as "+file+".damaged-") {
			t.Errorf("%s: the log does not say that the state file is damaged:\n%s", name, r.log)
		}
		r.stop()
		r.ended(t, 0)
		os.Remove(file)
	}
}

func TestTakeOverAndApplicationsBySettings(t *testing.T) {
	old := start(t, "--mode=StateServer", "--lock-wait=0s")
	lock := fillAndLock(t, old)
	r := start(t, "--sql-connection-string=sqlite:"+filepath.Join(t.TempDir(), "new.db"), "--lock-wait=0s",
		"--take-over=tcpip="+old.address, "--applications=shop="+shopApp+",/LM/W3SVC/7/ROOT/shop")
	c := dial(t, r)
	want(t, 0, []string{"0 sessions came from the old state server, none yet"}, "status", "--admin="+adminAddress(t, r))
	wantStatus(t, 423)(c.GetExclusive(client.Target(shopApp, "s0")))
	wantStatus(t, 200)(c.Release(client.Target(shopApp, "s0"), lock.LockCookie))
	for i := range 10 {
		if a := wantStatus(t, 200)(c.Get(client.Target(shopApp, fmt.Sprint("s", i)))); string(a.Body) != movedCart {
			t.Errorf("session %d is %q", i, a.Body)
		}
		wantStatus(t, 200)(c.Get(client.Target("/LM/W3SVC/7/ROOT/SHOP", fmt.Sprint("s", i))))
	}
	want(t, 0, []string{"10 sessions came from the old state server, the last "}, "status", "--admin="+adminAddress(t, r))
}

func TestWebConfig(t *testing.T) {
	for name, test := range map[string]struct {
		args   []string
		server map[string]string
		sql    string
		notes  []string
	}{
		"defaults": {nil, map[string]string{"stateConnectionString": "tcpip=127.0.0.1:42424", "stateNetworkTimeout": "10"}, "", []string{"only this machine does", "machineKey", "LockAge"}},
		"reachable": {[]string{"--listen=10.1.2.3:42425", "--allow=10.0.0.0/8", "--request-budget=20s"},
			map[string]string{"stateConnectionString": "tcpip=10.1.2.3:42425", "stateNetworkTimeout": "22"}, "", []string{"executionTimeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, stderr := aspstate(t, append([]string{"webconfig"}, test.args...)...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			var document struct {
				States []struct {
					Attrs []xml.Attr `xml:",any,attr"`
				} `xml:"sessionState"`
			}
			if err := xml.Unmarshal([]byte("<system.web>"+out+"</system.web>"), &document); err != nil {
				t.Fatalf("not XML: %v\n%s", err, out)
			}
			got := map[string]string{}
			for _, a := range document.States[0].Attrs {
				got[a.Name.Local] = a.Value
			}
			for key, value := range test.server {
				if got[key] != value {
					t.Errorf("%s is %q, want %q", key, got[key], value)
				}
			}
			for _, note := range test.notes {
				if !strings.Contains(out, note) {
					t.Errorf("no word of %q in\n%s", note, out)
				}
			}
		})
	}
}
