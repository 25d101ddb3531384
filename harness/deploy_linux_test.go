package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
	"aspstate/server/stateserver/client"
)

// needTool returns a program that make test-all installs. Where that is not what runs, the test is skipped without it.
func needTool(t *testing.T, name string) string {
	t.Helper()
	for _, name := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if thorough {
		t.Fatalf("%s is missing, which this test needs: make tools", name)
	}
	t.Skipf("%s is not here: make test-all installs it", name)
	return ""
}

// The systemd units have no fault that systemd would tell of.
func TestSystemdUnits(t *testing.T) {
	analyze := needTool(t, "systemd-analyze")
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	var files []string
	for _, name := range []string{"aspstate.service", "aspstate.socket"} {
		data, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		// systemd looks whether program and manual page are installed.
		text := strings.ReplaceAll(string(data), "/usr/bin/aspstate", path)
		text = strings.ReplaceAll(text, "Documentation=man:aspstate(1)\n", "")
		files = append(files, filepath.Join(folder, name))
		if err := os.WriteFile(files[len(files)-1], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(analyze, append([]string{"verify"}, files...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "aspstate") { // and not another unit of this machine
			t.Error(line)
		}
	}
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// ownAddress is an address of this machine that is not loopback, since that is always allowed.
func ownAddress(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	t.Skip("this machine has no address but loopback")
	return ""
}

// must replaces what has to be there.
func must(t *testing.T, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("there is no %q in deploy/haproxy.cfg", old)
	}
	return strings.ReplaceAll(text, old, new)
}

// browser is one with a session that its pages count in.
type browser struct {
	target           string
	counted, doubted atomic.Int64
}

// page is one page. A connection that is lost makes it fail; a lock that a failed page has left is broken, as ASP.NET does it
// after executionTimeout.
func (c *browser) page(farm *pool) error {
	for {
		locked, err := farm.do(func(conn *client.Conn) (client.Answer, error) { return conn.GetExclusive(c.target) })
		if err != nil {
			return err
		}
		if locked.Status == 423 {
			if _, err := farm.do(func(conn *client.Conn) (client.Answer, error) { return conn.Release(c.target, locked.LockCookie) }); err != nil {
				return err
			}
			continue
		}
		n, err := strconv.ParseInt(string(locked.Body), 10, 64)
		if locked.Status != 200 || err != nil {
			return fmt.Errorf("%w: GetExclusive is answered %d %q", errLost, locked.Status, locked.Body)
		}
		a, err := farm.do(func(conn *client.Conn) (client.Answer, error) {
			return conn.Set(c.target, strconv.AppendInt(nil, n+1, 10), 20*time.Minute, locked.LockCookie)
		})
		if err != nil {
			c.doubted.Add(1)
			return err
		}
		if a.Status != 200 {
			return fmt.Errorf("%w: Set is answered %d", errLost, a.Status)
		}
		c.counted.Add(1)
		return nil
	}
}

var errLost = errors.New("the session is lost")

// The example for HAProxy, with the PROXY protocol and the allow list behind it: two servers on one PostgreSQL database, one of which is
// killed while pages run. Requests under way at that moment may fail; no session is lost, and nothing fails once HAProxy has noticed.
func TestBehindHAProxy(t *testing.T) {
	if !thorough {
		t.Skip("takes long: make test-all runs it, with ASPSTATE_TEST_LONG=1")
	}
	haproxy, own := needTool(t, "haproxy"), ownAddress(t)
	example, err := os.ReadFile(filepath.Join("..", "deploy", "haproxy.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	settings := filepath.Join(folder, "aspstate.yaml")
	allow := func(address string) {
		text := "allow: " + address + "\nproxyProtocol: 127.0.0.1\n"
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	allow(own)
	database := pgtest.Shared(t).Database(t)
	var servers []*process
	var admins []string
	text := must(t, string(example), "src 127.0.0.0/8", "src "+own+" 127.0.0.0/8")
	for n := range 2 {
		admin := fmt.Sprintf("127.0.0.1:%d", pgtest.FreePort())
		p := serve(t, program, "--config="+settings, "--sql-connection-string="+database, "--auto-migrate", "--admin-listen="+admin)
		servers, admins = append(servers, p), append(admins, admin)
		_, port, _ := net.SplitHostPort(admin)
		text = must(t, text, fmt.Sprintf("server state%d 10.1.2.%d:42424 check port 42480", n+1, 10+n),
			fmt.Sprintf("server state%d %s check port %s send-proxy-v2", n+1, p.address, port))
	}
	front := fmt.Sprintf("%s:%d", own, pgtest.FreePort())
	text = must(t, must(t, text, "bind :42424", "bind "+front), "maxconn 20000", "maxconn 200")
	config := filepath.Join(folder, "haproxy.cfg")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join("..", "deploy", "haproxy.cfg"), config} {
		if out, err := exec.Command(haproxy, "-c", "-f", file).CombinedOutput(); err != nil {
			t.Fatalf("haproxy -c: %v\n%s", err, out)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	proxy := exec.CommandContext(ctx, haproxy, "-db", "-f", config)
	var log logBuffer
	proxy.Stdout, proxy.Stderr = &log, &log
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		proxy.Wait()
		if t.Failed() {
			t.Logf("HAProxy says:\n%s", &log)
		}
	}()
	farm := &pool{address: front}
	browsers := make([]browser, 12)
	for i := range browsers {
		browsers[i].target = client.Target("/LM/W3SVC/1/ROOT/shop", fmt.Sprint("behind", i))
		for by := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // until HAProxy listens
			a, err := farm.do(func(c *client.Conn) (client.Answer, error) {
				return c.Set(browsers[i].target, []byte("0"), 20*time.Minute, 0)
			})
			if err == nil && a.Status == 200 {
				break
			}
			if time.Now().After(by) {
				t.Fatalf("answer %d, %v", a.Status, err)
			}
		}
	}
	var pages, failures, lost atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	end := sync.OnceFunc(func() {
		close(stop)
		load.Wait()
	})
	defer end()
	for i := range browsers {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch err := browsers[i].page(farm); {
				case err == nil:
					pages.Add(1)
				case errors.Is(err, errLost):
					lost.Add(1)
					t.Error(err)
					return
				default:
					failures.Add(1)
				}
			}
		})
	}
	served := func(more int64) {
		t.Helper()
		for goal, by := pages.Load()+more, time.Now().Add(2*time.Minute); pages.Load() < goal; time.Sleep(time.Millisecond) {
			if time.Now().After(by) || lost.Load() > 0 {
				t.Fatalf("only %d pages were served, %d failed", pages.Load(), failures.Load())
			}
		}
	}
	served(500)
	if n := failures.Load(); n > 0 {
		t.Errorf("with both servers %d pages fail", n)
	}
	for i, admin := range admins {
		if n := metric(t, admin, `aspstate_connections_accepted_total{protocol="stateserver"}`); n == 0 {
			t.Errorf("HAProxy sends no connection to server %d", i+1)
		}
	}
	atKill := failures.Load()
	servers[0].kill()
	waitForLog(t, &log, "Server servers/state1 is DOWN")
	served(50) // and what was under way is over
	settled := failures.Load()
	served(500)
	end()
	if n := failures.Load() - settled; n > 0 {
		t.Errorf("%d pages fail after HAProxy has noticed that a server is dead", n)
	}
	t.Logf("%d pages, %d of them failed when a server was killed, %d connections", pages.Load(), settled-atKill, farm.dialed.Load())
	for i := range browsers {
		b := &browsers[i]
		a, err := farm.do(func(c *client.Conn) (client.Answer, error) { return c.Get(b.target) })
		n, _ := strconv.ParseInt(string(a.Body), 10, 64)
		if err != nil || a.Status != 200 || n < b.counted.Load() || n > b.counted.Load()+b.doubted.Load() {
			t.Errorf("session %d has counted %q (%d, %v); %d pages were answered, %d are in doubt", i, a.Body, a.Status, err, b.counted.Load(), b.doubted.Load())
		}
	}

	// The server sees the client's address behind the proxy's, and lets in whom allow lists.
	allow("203.0.113.1")
	servers[1].cmd.Process.Signal(syscall.SIGHUP)
	waitForLog(t, &servers[1].log, "the settings were read again")
	c, err := client.Dial(front)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a, err := c.Get(browsers[0].target); err == nil {
		t.Errorf("a client that allow does not list is answered %d", a.Status)
	}
	waitForLog(t, &servers[1].log, `the address is not in the allow list" client=`+own)
}

func waitForLog(t *testing.T, log *logBuffer, text string) {
	t.Helper()
	for by := time.Now().Add(time.Minute); !strings.Contains(log.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(by) {
			t.Fatalf("the log does not say %q:\n%s", text, log)
		}
	}
}

// metric is the value of a metric, named with its labels.
func metric(t *testing.T, admin, name string) (n int64) {
	t.Helper()
	response, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` ([0-9]+)$`).FindSubmatch(text)
	if err != nil || found == nil {
		t.Fatalf("there is no %s: %v", name, err)
	}
	n, _ = strconv.ParseInt(string(found[1]), 10, 64)
	return n
}
