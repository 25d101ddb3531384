package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"aspstate/config"
	"aspstate/server/admin"
	"aspstate/server/stateserver/client"
)

// adminAddress is where a server listens for operators.
func adminAddress(t *testing.T, r *running) string {
	t.Helper()
	r.log.await(t, "serving operators")
	found := regexp.MustCompile(`serving operators" address=(\S+)`).FindStringSubmatch(r.log.String())
	if found == nil {
		t.Fatalf("the log has no address:\n%s", r.log)
	}
	return found[1]
}

// edsItem is {name="Ed",age=44,price=34.5} as ASP.NET keeps it.
const edsItem = "\x14\x00\x00\x00\x01\x00\x03\x00\x00\x00\xFF\xFF\xFF\xFF\x04name\x03age\x05price\x04\x00\x00\x00\x09\x00\x00\x00\x12\x00\x00\x00" +
	"\x01\x02Ed\x02\x2C\x00\x00\x00\x09\x00\x00\x00\x00\x00\x40\x41\x40\xFF"

func TestSessionsCommands(t *testing.T) {
	r := start(t, "--sql-connection-string=sqlite:"+filepath.Join(t.TempDir(), "x.db"))
	at := "--admin=" + adminAddress(t, r)
	c := dial(t, r)
	const id = "bpr4mimb2vjnvtn2jc4yp3uo"
	other := client.Target("/LM/W3SVC/1/ROOT/intranet", "zzz")
	wantStatus(t, 200)(c.Set(shop, []byte(edsItem), 20*time.Minute, 0))
	wantStatus(t, 200)(c.Set(other, make([]byte, 3000), 20*time.Minute, 0))
	locked := wantStatus(t, 200)(c.GetExclusive(shop))

	want(t, 0, []string{"APPLICATION", id, "60 B", "cookie 2", "zzz", "2.9 KiB"}, "sessions", "list", at)
	want(t, 0, []string{"zzz", "There are more"}, "sessions", "list", at, "--limit=1", "--application=/LM/W3SVC/1/ROOT/Intranet")
	want(t, 0, []string{"There are none."}, "sessions", "list", at, "nosuch")
	if _, out, _ := aspstate(t, "sessions", "list", at, "--locked"); strings.Contains(out, "zzz") || !strings.Contains(out, id) {
		t.Errorf("locked ones:\n%s", out)
	}
	var list admin.SessionList
	if _, out, _ := aspstate(t, "sessions", "list", at, "--json", "--order=size"); json.Unmarshal([]byte(out), &list) != nil || len(list.Sessions) != 2 || list.Sessions[0].ID != "zzz" {
		t.Errorf("as JSON:\n%s", out)
	}

	_, out, _ := aspstate(t, "sessions", "show", at, "bpr4mi…")
	for _, part := range []string{id, "application  /lm/w3svc/1/root/shop (6028b1ba)", "KEY", "name", "System.String", "age", "price", "locked       for "} {
		if !strings.Contains(out, part) {
			t.Errorf("show has no %q:\n%s", part, out)
		}
	}
	if _, values, _ := strings.Cut(out, "KEY"); strings.Contains(values, "Ed") || strings.Contains(values, "44") || strings.Contains(values, "34.5") {
		t.Errorf("show has values:\n%s", out)
	}
	want(t, 0, []string{"VALUE", "Ed", "44"}, "sessions", "show", at, id, "--values")
	r.log.await(t, `audit="show values"`)

	want(t, 1, []string{"there is no session whose ID begins with nosuch"}, "sessions", "show", at, "nosuch")
	want(t, 1, []string{"not a whole session ID", id}, "sessions", "remove", at, "bpr4")
	want(t, 1, []string{"zzz is not locked"}, "sessions", "unlock", at, "zzz")
	want(t, 1, []string{"order is not"}, "sessions", "list", at, "--order=age")
	want(t, 1, []string{"--watch=1ns is too often"}, "sessions", "list", at, "--watch=1ns")

	want(t, 0, []string{"Unlocked session " + id}, "sessions", "unlock", at, "bpr4")
	again := wantStatus(t, 200)(c.GetExclusive(shop))
	if again.LockCookie != locked.LockCookie+1 {
		t.Errorf("lock cookie %d after %d", again.LockCookie, locked.LockCookie)
	}
	want(t, 0, []string{"Removed session " + id}, "sessions", "remove", at, id)
	wantStatus(t, 404)(c.Get(shop))
	for _, audit := range []string{"audit=unlock", "audit=remove"} {
		r.log.await(t, audit)
	}
	if strings.Contains(r.log.String(), id) {
		t.Errorf("the log has a whole session ID:\n%s", r.log)
	}
	r.stop()
	r.ended(t, 0)
	want(t, 1, []string{"no answer from http://", "nothing listens there"}, "sessions", "list", at)
}

func TestStatusTopAndDoctor(t *testing.T) {
	r := start(t, "--mode=StateServer")
	at := "--admin=" + adminAddress(t, r)
	c := dial(t, r)
	wantStatus(t, 200)(c.Set(shop, []byte("cart"), 20*time.Minute, 0))
	wantStatus(t, 200)(c.Set(client.Target("/LM/W3SVC/7/ROOT/shop", "zzz"), []byte("cart"), 20*time.Minute, 0))
	wantStatus(t, 200)(c.GetExclusive(shop))
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // for the next sample
		if _, out, _ := aspstate(t, "status", at); strings.Contains(out, "2, 1 of them locked, 8 B") || time.Now().After(end) {
			break
		}
	}
	want(t, 0, []string{"aspstate     dev on ", "ready        yes", "mode         StateServer: sessions are kept in memory", "2, 1 of them locked, 8 B",
		"3 requests; sessions: 2 created", "1 of 10000"}, "status", at)
	want(t, 0, []string{"/lm/w3svc/7/root/shop", "Oldest locks", "Largest sessions", "cookie 2"}, "sessions", "top", at)
	var s admin.Status
	if _, out, _ := aspstate(t, "status", at, "--json"); json.Unmarshal([]byte(out), &s) != nil || s.Store != "memory" || s.Connections != 1 {
		t.Errorf("status as JSON:\n%s", out)
	}
	// The doctor finds that one application has two names, and nothing else.
	code, out, stderr := aspstate(t, "doctor", at)
	if code != 1 || !strings.Contains(stderr, "1 of 10 checks") || !strings.Contains(out, "! applications: ") || !strings.Contains(out, "list the names in applications") ||
		strings.Count(out, "!") != 1 || !strings.Contains(out, "fine: server, ") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, out)
	}
	if f, err := os.Stat("aspstate.db"); err == nil {
		t.Errorf("the doctor makes %s", f.Name())
	}
	r.stop()
	r.ended(t, 0)
	code, out, _ = aspstate(t, "doctor", at)
	if code != 1 || !strings.Contains(out, "! server: no answer from http://") || !strings.Contains(out, "start the server") {
		t.Errorf("without a server: exit code %d\n%s", code, out)
	}
}

// Watching shows the same again until it is ended.
func TestWatch(t *testing.T) {
	r := start(t, "--mode=StateServer")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in, out := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"status", "--json", "--watch=100ms", "--admin=" + adminAddress(t, r)}, out, io.Discard, nil)
	}()
	dec := json.NewDecoder(in)
	for range 3 {
		var s admin.Status
		if err := dec.Decode(&s); err != nil || !s.Ready {
			t.Fatal(s, err)
		}
	}
	go io.Copy(io.Discard, in)
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestTokensOfCommands(t *testing.T) {
	const token = "5dFkX0b7PqYw2nLr9sVt3uZa"
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "token"), token+"\n")
	settings := write(t, filepath.Join(dir, "aspstate.yaml"), "mode: StateServer\nadmin: {token: file:token}\n")
	wrong := write(t, filepath.Join(dir, "wrong"), "x\n")
	r := start(t, "--config="+settings)
	at := "--admin=" + adminAddress(t, r)
	want(t, 1, []string{"the token is missing or wrong", "ASPSTATE_ADMIN_TOKEN"}, "status", at)
	want(t, 1, []string{"the token is missing or wrong"}, "status", at, "--token-file="+wrong)
	want(t, 1, []string{"unknown flag"}, "status", at, "--token="+token)
	want(t, 0, []string{"ready        yes"}, "status", at, "--token-file="+file)
	want(t, 0, []string{"ready        yes"}, "status", at, "--config="+settings)
	var out strings.Builder
	if code := run(t.Context(), []string{"status", at}, &out, &out, []string{"ASPSTATE_ADMIN_TOKEN=" + token}); code != 0 {
		t.Errorf("with the variable: %s", &out)
	}
	want(t, 1, []string{"--token-file"}, "status", at, "--token-file="+filepath.Join(dir, "none"))
	r.stop()
	r.ended(t, 0)
}

func TestReloadCommand(t *testing.T) {
	settings := write(t, filepath.Join(t.TempDir(), "aspstate.yaml"), "mode: StateServer\n")
	r := start(t, "--config="+settings)
	at := "--admin=" + adminAddress(t, r)
	want(t, 0, []string{"nothing has changed"}, "reload", at)
	write(t, settings, "mode: StateServer\nlockWait: 2s\nstatusLine: http\n")
	want(t, 0, []string{"In force now: lockWait\nWith the next start: statusLine\n"}, "reload", at)
	var s admin.Status
	if _, out, _ := aspstate(t, "status", at, "--json"); json.Unmarshal([]byte(out), &s) != nil || s.LockWait != 2 {
		t.Errorf("status after the reload:\n%s", out)
	}
	write(t, settings, "mode: StateServer\nlockWait: 2h\nlimits: {body: x}\n")
	want(t, 1, []string{"those in force stay", "lockWait", "\n  limits.body"}, "reload", at)
	r.stop()
	r.ended(t, 0)
}

func TestAdminListen(t *testing.T) {
	r := start(t, "--mode=StateServer", "--admin-listen=off")
	if strings.Contains(r.log.String(), "operators") {
		t.Errorf("off, and the log says\n%s", r.log)
	}
	want(t, 1, []string{"admin.listen is off"}, "status", "--config="+write(t, filepath.Join(t.TempDir(), "a.yaml"), "mode: StateServer\nadmin: {listen: off}\n"))
	want(t, 1, []string{"admin.listen: ", "address already in use"}, "serve", "--mode=StateServer", "--listen=127.0.0.1:0", "--admin-listen="+r.address)
	want(t, 1, []string{"admin.certificate: ", "no such file"}, "serve", "--mode=StateServer", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--admin-certificate=/no/such/file")
	r.stop()
	r.ended(t, 0)
}

// While the server stops it says that it is not ready, until the end.
func TestReadyWhileStopping(t *testing.T) {
	r := start(t, "--mode=StateServer")
	address := adminAddress(t, r)
	conn, rest := beginSet(t, r)
	r.stop()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == 503 && strings.Contains(string(text), "draining") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d %s", resp.StatusCode, text)
		}
	}
	go conn.Write(rest)
	r.ended(t, 0)
}

func TestBaseURL(t *testing.T) {
	settings := func(text string) string {
		return write(t, filepath.Join(t.TempDir(), "a.yaml"), "mode: StateServer\n"+text)
	}
	for _, test := range []struct{ admin, yaml, want string }{
		{"state1:42480", "", "http://state1:42480"},
		{"https://state1:42480/", "", "https://state1:42480"},
		{"ftp://state1:42480", "", ""},
		{"http://state1:42480/api", "", ""},
		{"http://user:pw@state1:42480", "", ""},
		{"", "", "http://127.0.0.1:42480"},
		{"", "admin: {listen: '0.0.0.0:1', token: abcdefghijklmnop}", "http://127.0.0.1:1"},
		{"", "admin: {listen: '[::]:1', token: abcdefghijklmnop, certificate: x}", "https://[::1]:1"},
		{"", "admin: {listen: ':1', token: abcdefghijklmnop}", "http://127.0.0.1:1"},
		{"", "admin: {listen: '10.1.2.3:1', token: abcdefghijklmnop}", "http://10.1.2.3:1"},
	} {
		c, err := config.Load(settings(test.yaml), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := baseURL(test.admin, c)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("--admin %q with %q: %q, %v", test.admin, test.yaml, got, err)
		}
	}
}

func TestTables(t *testing.T) {
	for got, want := range map[string]string{
		size(0): "0 B", size(1023): "1023 B", size(1024): "1.0 KiB", size(int64(5) << 40): "5.0 TiB",
		span(0): "0s", span(0.0000123): "12µs", span(0.01234): "12.3ms", span(3.14159): "3.14s", span(75): "1m15s", span(3 * 3600): "3h0m", span(50*3600 + 60): "2d2h1m",
		plain("a b/ü"): "a b/ü", plain(""): `""`, plain("\x1b[2J"): `"\x1b[2J"`, plain("a\u202eb"): `"a\u202eb"`,
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	var b strings.Builder
	tableOf(&b, []string{"A", "LONG HEAD"}, [][]string{{"longer than A", "x"}, {"y", "z"}})
	if want := "A              LONG HEAD\nlonger than A  x\ny              z\n"; b.String() != want {
		t.Errorf("table:\n%s", fmt.Sprintf("%q", b.String()))
	}
}
