//go:build unix

package main

import (
	"bufio"
	"database/sql"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func signalSelf(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func TestStopAnswersWhatIsUnderWay(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		r := start(t, "--mode=StateServer")
		idle := dial(t, r)
		wantStatus(t, 404)(idle.Get(shop))
		conn, rest := beginSet(t, r)
		signalSelf(t, s)
		// The idle connection ends at once; the busy one does not.
		idle.SetReadDeadline(time.Now().Add(patience))
		if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("an idle connection ends with %v", err)
		}
		if c, err := net.Dial("tcp", r.address); err == nil {
			c.Close()
			t.Error("a stopping server still accepts connections")
		}
		if _, err := conn.Write(rest); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "200 OK\r\n" {
			t.Errorf("answer %q, %v", line, err)
		}
		r.ended(t, 0)
		if log := r.log.String(); !strings.Contains(log, "stopping") || !strings.Contains(log, "stopped") || strings.Contains(log, "not every request") {
			t.Errorf("log:\n%s", log)
		}
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	r := start(t, "--mode=StateServer")
	conn, _ := beginSet(t, r)
	begun := time.Now()
	signalSelf(t, syscall.SIGTERM)
	r.log.await(t, "stopping")
	signalSelf(t, syscall.SIGINT)
	r.ended(t, 1)
	if took := time.Since(begun); took >= drainTime {
		t.Errorf("the second signal took %v", took)
	}
	if !strings.Contains(r.log.String(), "second signal") {
		t.Errorf("log:\n%s", r.log)
	}
	conn.Close() // what run left behind ends with it
	r.log.await(t, "stopped")
}

func TestStopHasALimit(t *testing.T) {
	defer func(d time.Duration) { drainTime = d }(drainTime)
	drainTime = 50 * time.Millisecond
	r := start(t, "--mode=StateServer")
	beginSet(t, r) // and never go on
	r.stop()
	r.ended(t, 0)
	r.log.await(t, "not every request was answered before the stop")
}

func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aspstate.yaml")
	const common = "mode: StateServer\n"
	write(t, file, common+"limits: {body: 2KiB}\n")
	r := start(t, "--config", file)
	c := dial(t, r)
	set := func(size, status int) {
		t.Helper()
		wantStatus(t, status)(c.Set(shop, make([]byte, size), 20*time.Minute, 0))
	}
	set(2048, 200)
	set(2049, 400)

	// A file with a fault changes nothing.
	write(t, file, common+"limits: {body: 4KiB}\nsweep: {batch: 0}\n")
	signalSelf(t, syscall.SIGHUP)
	r.log.await(t, "sweep.batch (aspstate.yaml line 3): 0 is out of range")
	set(2049, 400)

	write(t, file, common+"limits: {body: 4KiB}\nstatusLine: http\nlog: {level: debug}\nallow: 0.0.0.0/0\n")
	signalSelf(t, syscall.SIGHUP)
	r.log.await(t, "the settings were read again")
	for _, part := range []string{"changed=\"[allow limits.body log.level]\"", "need a restart", "settings=[statusLine]", "0.0.0.0/0, which is everybody"} {
		if !strings.Contains(r.log.String(), part) {
			t.Errorf("the log does not say %q", part)
		}
	}
	// On a connection that was waiting for its next request, too.
	set(4096, 200)
	set(4097, 400)
	r.log.await(t, "level=DEBUG")
	if a := wantStatus(t, 200)(c.Get(shop)); a.StatusLine != "200 OK" {
		t.Errorf("statusLine has changed without a restart: %q", a.StatusLine)
	}

	// What needs a restart is said again until there is one.
	signalSelf(t, syscall.SIGHUP)
	r.log.await(t, "changed=[]")
	if n := strings.Count(r.log.String(), "settings=[statusLine]"); n != 2 {
		t.Errorf("statusLine is said %d times to need a restart", n)
	}
	r.stop()
	r.ended(t, 0)
}

func TestReloadAllow(t *testing.T) {
	var here netip.Addr
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			here = p.Addr()
		}
	}
	if !here.IsValid() {
		t.Skip("this machine has no IPv4 address but loopback")
	}
	file := filepath.Join(t.TempDir(), "aspstate.yaml")
	write(t, file, "mode: StateServer\nallow: 192.0.2.1\n")
	r := start(t, "--config", file, "--listen", here.String()+":0")
	address := regexp.MustCompile(`tcpip=` + here.String() + `:\d+`).FindString(r.stdout)
	want(t, 1, []string{"not in its allow list"}, "ping", address)
	r.log.await(t, "not in the allow list")
	write(t, file, "mode: StateServer\nallow: "+here.String()+"\n")
	signalSelf(t, syscall.SIGHUP)
	r.log.await(t, "changed=[allow]")
	want(t, 0, []string{"is a state server"}, "ping", address)
	r.stop()
	r.ended(t, 0)
}

// The connection limit, too, can change: one more connection closes an idle one.
func TestReloadConnections(t *testing.T) {
	file := filepath.Join(t.TempDir(), "aspstate.yaml")
	write(t, file, "mode: StateServer\n")
	r := start(t, "--config", file)
	first := dial(t, r)
	wantStatus(t, 404)(first.Get(shop))
	write(t, file, "mode: StateServer\nlimits: {connections: 1}")
	signalSelf(t, syscall.SIGHUP)
	r.log.await(t, "changed=[limits.connections]")
	second := dial(t, r)
	wantStatus(t, 404)(second.Get(shop))
	first.SetReadDeadline(time.Now().Add(patience))
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection ends with %v", err)
	}
	r.stop()
	r.ended(t, 0)
}

// A request gives up when its budget is spent; its connection is closed without an
// answer, so that no web server takes the session for missing.
func TestReloadBudget(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	file := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "")
	r := start(t, "--config", file, "--sql-connection-string=sqlite:"+path)
	write(t, file, "requestBudget: 2s\nlockWait: 0s\n")
	signalSelf(t, syscall.SIGHUP)
	r.log.await(t, "changed=\"[lockWait requestBudget]\"")
	c := dial(t, r)
	wantStatus(t, 200)(c.Set(shop, []byte("cart"), 20*time.Minute, 0))
	db, err := sql.Open("sqlite", path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if a, err := c.Set(shop, []byte("more"), 20*time.Minute, 0); err == nil {
		t.Errorf("answer %+v while the database is locked", a)
	}
	if took := time.Since(begun); took < time.Second || took > 6*time.Second {
		t.Errorf("a budget of 2s ended after %v", took)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, 200)(dial(t, r).Get(shop))
	r.stop()
	r.ended(t, 0)
}
