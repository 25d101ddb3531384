package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/config"
	"aspstate/server"
	"aspstate/server/stateserver"
	"aspstate/server/stateserver/client"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// logBuffer is a server's standard error, and can be waited on.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed by the next write
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.more != nil {
		close(b.more)
		b.more = nil
	}
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await waits until the log holds the text.
func (b *logBuffer) await(t *testing.T, text string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		b.mu.Lock()
		found := strings.Contains(b.text.String(), text)
		if b.more == nil {
			b.more = make(chan struct{})
		}
		more := b.more
		b.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the log never says %q:\n%s", text, b)
		}
	}
}

// running is a server in this process.
type running struct {
	address string // of its first listener
	stdout  string // up to where it was ready
	log     *logBuffer
	stop    context.CancelFunc
	exit    chan int
}

// start runs "aspstate serve" on a free port until it is ready.
func start(t *testing.T, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{log: new(logBuffer), stop: cancel, exit: make(chan int, 1)}
	in, out := io.Pipe()
	go func() {
		code := run(ctx, append([]string{"serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"}, args...), out, r.log, nil)
		out.Close()
		r.exit <- code
	}()
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		var text strings.Builder
		buf := make([]byte, 1024)
		for !strings.Contains(text.String(), "Sessions are kept") {
			n, err := in.Read(buf)
			text.Write(buf[:n])
			if err != nil {
				break
			}
		}
		r.stdout = text.String()
		go io.Copy(io.Discard, in)
	}()
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatalf("the server is not ready:\n%s", r.log)
	}
	found := regexp.MustCompile(`stateConnectionString="tcpip=([^"]+)"`).FindStringSubmatch(r.stdout)
	if found == nil {
		t.Fatalf("the server ends, or says nothing of its address:\n%s\n%s", r.stdout, r.log)
	}
	r.address = found[1]
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			t.Logf("log of the server:\n%s", r.log)
		}
	})
	return r
}

// ended waits for the server's end and wants this exit code.
func (r *running) ended(t *testing.T, want int) {
	t.Helper()
	select {
	case code := <-r.exit:
		if code != want {
			t.Errorf("exit code %d, want %d:\n%s", code, want, r.log)
		}
	case <-time.After(patience):
		t.Fatalf("the server does not end:\n%s", r.log)
	}
}

func dial(t *testing.T, r *running) *client.Conn {
	t.Helper()
	c, err := client.Dial(r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// beginSet sends half of a large item. The part sent is more than two socket buffers
// hold, so the server is reading when beginSet returns.
func beginSet(t *testing.T, r *running) (conn net.Conn, rest []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	body := make([]byte, 48<<20)
	_, err = fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: localhost\r\nTimeout:20\r\nContent-Length:%d\r\nExtraFlags:0\r\nLockCookie:0\r\n\r\n", shop, len(body))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(body[:32<<20]); err != nil {
		t.Fatal(err)
	}
	return conn, body[32<<20:]
}

// wantStatus fails the test unless the answer has this status.
func wantStatus(t *testing.T, status int) func(client.Answer, error) client.Answer {
	return func(a client.Answer, err error) client.Answer {
		t.Helper()
		if err != nil || a.Status != status {
			t.Fatalf("answer %+v, %v; want %d", a, err, status)
		}
		return a
	}
}

const shopApp = "/LM/W3SVC/1/ROOT/shop"

var shop = client.Target(shopApp, "bpr4mimb2vjnvtn2jc4yp3uo")

func TestServeSQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := "--sql-connection-string=sqlite:" + path
	r := start(t, db)
	if want := fmt.Sprintf("<sessionState mode=\"StateServer\" stateConnectionString=\"tcpip=%s\" />\nSessions are kept in the SQLite file %s.\n", r.address, path); r.stdout != want {
		t.Errorf("standard output is\n%s\nwant\n%s", r.stdout, want)
	}
	want(t, 0, []string{"is a state server: " + r.address, "X-AspNet-Version 4.0.30319"}, "ping", "tcpip="+r.address)
	c := dial(t, r)
	wantStatus(t, 200)(c.Set(shop, []byte("cart"), 20*time.Minute, 0))
	locked := wantStatus(t, 200)(c.GetExclusive(shop))

	// One process has the file.
	code, _, stderr := aspstate(t, "serve", db, "--listen=127.0.0.1:0")
	if code != 1 || !strings.Contains(stderr, path) {
		t.Errorf("a second server on the same file: exit code %d, %s", code, stderr)
	}
	want(t, 1, []string{path}, "migrate", "status", db)
	want(t, 0, []string{path}, "check", db) // only looks

	r.stop()
	r.ended(t, 0)

	// Session and lock outlive the process.
	r = start(t, db)
	c = dial(t, r)
	if a := wantStatus(t, 423)(c.Get(shop)); a.LockCookie != locked.LockCookie {
		t.Errorf("lock cookie %d after the restart, want %d", a.LockCookie, locked.LockCookie)
	}
	wantStatus(t, 200)(c.Release(shop, locked.LockCookie))
	if a := wantStatus(t, 200)(c.Get(shop)); string(a.Body) != "cart" {
		t.Errorf("session is %q after the restart", a.Body)
	}
	r.stop()
	r.ended(t, 0)
	want(t, 0, []string{"up to date"}, "migrate", "status", db)
}

func TestServeMemory(t *testing.T) {
	r := start(t, "--mode=StateServer", "--status-line=http", "--asp-net-version=2.0.50727", "--memory-max-bytes=100000", "--limits-body=50000", "--log-format=json")
	if !strings.HasSuffix(r.stdout, "Sessions are kept in memory and end with this process.\n") {
		t.Errorf("standard output is\n%s", r.stdout)
	}
	if !strings.Contains(r.log.String(), `"msg":"serving","address":"`+r.address) {
		t.Errorf("the log is not JSON:\n%s", r.log)
	}
	c := dial(t, r)
	if a := wantStatus(t, 404)(c.Get(shop)); a.StatusLine != "HTTP/1.1 404 Not Found" || a.Version != "2.0.50727" {
		t.Errorf("answer %+v", a)
	}
	wantStatus(t, 200)(c.Set(shop, make([]byte, 50_000), 20*time.Minute, 0))
	wantStatus(t, 400)(c.Set(shop, make([]byte, 50_001), 20*time.Minute, 0))
	if a, err := c.Set(shop+"2", make([]byte, 50_000), 20*time.Minute, 0); err == nil && a.Status == 200 {
		t.Error("memory.maxBytes is not kept")
	}
	r.stop()
	r.ended(t, 0)
}

func TestServeSeveralAddresses(t *testing.T) {
	r := start(t, "--mode=StateServer", "--listen=localhost:0")
	addresses := regexp.MustCompile(`tcpip=([^"]+)"`).FindAllStringSubmatch(r.stdout, -1)
	if len(addresses) != 2 || addresses[0][1] == addresses[1][1] {
		t.Fatalf("standard output is\n%s", r.stdout)
	}
	for _, a := range addresses {
		want(t, 0, []string{"is a state server"}, "ping", "tcpip="+a[1])
	}
	r.stop()
	r.ended(t, 0)
}

func TestServeFaults(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	want(t, 1, []string{"another program listens on " + taken.Addr().String()}, "serve", "--mode=StateServer", "--listen=127.0.0.1:0", "--listen="+taken.Addr().String())
	want(t, 1, []string{"listen (--listen): ", "can run code on them", "list your web servers in allow"}, "serve", "--listen=0.0.0.0:0")
	want(t, 1, []string{"aspstate: mode (--mode)"}, "serve", "--mode=InProc")
	file := write(t, filepath.Join(t.TempDir(), "file"), "")
	want(t, 1, []string{"x.db", "not a directory"}, "serve", "--listen=127.0.0.1:0", "--sql-connection-string=sqlite:"+filepath.Join(file, "x.db"))
}

// A database that this version cannot use is left alone, and given up.
func TestServeNewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := "--sql-connection-string=sqlite:" + path
	want(t, 0, nil, "migrate", "up", db)
	execSQL(t, path, "UPDATE schema_migrations SET version = version + 1000")
	want(t, 1, []string{"newer than this aspstate knows"}, "serve", "--listen=127.0.0.1:0", db)
	want(t, 1, []string{"newer than this aspstate knows"}, "migrate", "status", db)
	execSQL(t, path, "UPDATE schema_migrations SET version = version - 1000")
	r := start(t, db)
	r.stop()
	r.ended(t, 0)
}

// execSQL changes a database behind aspstate's back.
func execSQL(t *testing.T, path, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

func TestServeSweeps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := "--sql-connection-string=sqlite:" + path
	r := start(t, db)
	c := dial(t, r)
	for i := range 5 {
		wantStatus(t, 200)(c.Set(client.Target("/LM/W3SVC/1/ROOT", fmt.Sprint(i)), []byte("x"), time.Minute, 0))
	}
	r.stop()
	r.ended(t, 0)
	execSQL(t, path, "UPDATE sessions SET expires = 1 WHERE CAST(session_id AS TEXT) <> '3'")
	r = start(t, db, "--sweep-interval=1s", "--sweep-batch=2")
	r.log.await(t, "swept expired sessions\" sessions=4")
	r.stop()
	r.ended(t, 0)
}

// A lock whose owner will not release it, because its write is refused, is released
// in the background.
func TestServeReleasesLater(t *testing.T) {
	r := start(t, "--mode=StateServer", "--limits-body=1KiB", "--request-budget=20s")
	if !strings.Contains(r.log.String(), "requestBudget is 20s") {
		t.Error("the log has no warning of requestBudget")
	}
	c := dial(t, r)
	wantStatus(t, 200)(c.Set(shop, []byte("cart"), 20*time.Minute, 0))
	locked := wantStatus(t, 200)(c.GetExclusive(shop))
	wantStatus(t, 400)(c.Set(shop, make([]byte, 1025), 20*time.Minute, locked.LockCookie))
	for end := time.Now().Add(patience); ; {
		a, err := c.Get(shop)
		if err != nil {
			t.Fatal(err)
		}
		if a.Status == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the lock is never released")
		}
	}
	r.stop()
	r.ended(t, 0)
}

// What a failing store left behind is done before the end.
func TestDrainSettles(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	store := memory.New(0)
	p := &process{log: log, config: &config.Config{}, sessions: server.NewSessions(store, 8*time.Second, log), server: &server.Server{Log: log}}
	session := server.Session{App: p.sessions.Application("/shop"), ID: "a"}
	request := server.Request{Arrived: time.Now()}
	if err := p.sessions.Set(t.Context(), request, session, backends.Write{Data: []byte("x"), Timeout: time.Hour}); err != nil {
		t.Fatal(err)
	}
	item, err := p.sessions.GetExclusive(t.Context(), request, session)
	if err != nil {
		t.Fatal(err)
	}
	p.sessions.ReleaseLater(session, item.LockCookie)
	p.drain(t.Context())
	if _, err := p.sessions.Get(t.Context(), request, session); err != nil {
		t.Errorf("after the drain: %v", err)
	}
}

func TestListenGivesBack(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	if _, err := listen(t.Context(), []string{free.Addr().String(), taken.Addr().String()}); err == nil {
		t.Fatal("no error")
	}
	again, err := net.Listen("tcp", free.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestFrontSettings(t *testing.T) {
	got := frontSettings(config.Limits{RequestLine: 1, Headers: 2, Body: 3, Idle: 4})
	want := stateserver.DefaultSettings()
	want.RequestLine, want.Headers, want.Body, want.Idle = 1, 2, 3, 4
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The defaults of the settings are those of the parts they apply to.
func TestDefaultSettings(t *testing.T) {
	c, err := config.Load("", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := frontSettings(c.Limits), stateserver.DefaultSettings(); got != want {
		t.Errorf("config's defaults are %+v, stateserver's %+v", got, want)
	}
}

func TestReachable(t *testing.T) {
	for addr, pattern := range map[string]string{
		"127.0.0.1:42424": `^127\.0\.0\.1:42424$`,
		"[::1]:42424":     `^\[::1\]:42424$`,
		"10.1.2.3:1":      `^10\.1\.2\.3:1$`,
		"0.0.0.0:42424":   `^[^:0][^:]*:42424$`,
		"[::]:42424":      `^[^:\[]+:42424$`,
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := reachable(tcp); !regexp.MustCompile(pattern).MatchString(got) {
			t.Errorf("%s is reachable as %s", addr, got)
		}
	}
}

// Quotas refuse what is over them, as a full store does, and follow the settings.
func TestQuotas(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "mode: StateServer\nquotas: {applications: [{name: "+shopApp+", sessions: 2}]}\n")
	r := start(t, "--config="+file)
	set := func(id, data string, refused bool) {
		t.Helper()
		a, err := dial(t, r).Set(client.Target(shopApp, id), []byte(data), 20*time.Minute, 0)
		if refused && !errors.Is(err, io.EOF) || !refused && (err != nil || a.Status != 200) {
			t.Errorf("set %s: %d, %v, want it refused: %t", id, a.Status, err, refused)
		}
	}
	set("1", "item", false)
	set("2", "item", false)
	set("3", "item", true)
	set("2", "another", false)
	r.log.await(t, "reached its quota")
	write(t, file, "mode: StateServer\nquotas: {item: 5, sessions: 3}\n")
	want(t, 0, []string{"quotas.item"}, "reload", "--admin="+adminAddress(t, r))
	set("4", "item", false)
	set("2", "too long", true)
	if a := wantStatus(t, 200)(dial(t, r).Get(client.Target(shopApp, "2"))); string(a.Body) != "another" {
		t.Errorf("after the refusal the session is %q", a.Body)
	}
}
