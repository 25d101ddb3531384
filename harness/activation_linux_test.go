package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aspstate/server/stateserver/client"
)

// activation is what systemd does for a service with a socket unit: it keeps the listening sockets, and hands them to one
// process after another.
type activation struct {
	program string
	flags   []string
	sockets []*os.File
	log     logBuffer
	cmd     *exec.Cmd
}

// listen opens a socket and returns its address.
func (a *activation) listen(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	a.sockets = append(a.sockets, socket)
	return ln.Addr().String()
}

// start runs the program with the sockets as its files from 3 on.
func (a *activation) start(t *testing.T) {
	t.Helper()
	// The process's own number has to be in its environment before it begins.
	script := fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d exec "$0" "$@"`, len(a.sockets))
	a.cmd = exec.Command("sh", append([]string{"-c", script, a.program, "serve"}, a.flags...)...)
	a.cmd.ExtraFiles = a.sockets
	a.cmd.Stderr = &a.log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop ends the process in good order.
func (a *activation) stop(t *testing.T) {
	t.Helper()
	a.cmd.Process.Signal(syscall.SIGTERM)
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("aspstate: %v\n%s", err, &a.log)
	}
}

// pool is a web server's pool of connections: the one used last is used first, and one that has ended is not used.
type pool struct {
	address string
	mu      sync.Mutex
	conns   []*client.Conn
	dialed  atomic.Int64
}

func (p *pool) get() (*client.Conn, error) {
	for {
		p.mu.Lock()
		n := len(p.conns)
		if n == 0 {
			p.mu.Unlock()
			p.dialed.Add(1)
			return client.Dial(p.address)
		}
		c := p.conns[n-1]
		p.conns = p.conns[:n-1]
		p.mu.Unlock()
		if !ended(c.Conn) {
			return c, nil
		}
		c.Close()
	}
}

func (p *pool) put(c *client.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

// ended reports whether the other side has closed the connection, without waiting for that.
func ended(c net.Conn) bool {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	over := true
	raw.Control(func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		over = err != syscall.EAGAIN
	})
	return over
}

// do sends one request over a connection of the pool.
func (p *pool) do(request func(*client.Conn) (client.Answer, error)) (client.Answer, error) {
	c, err := p.get()
	if err != nil {
		return client.Answer{}, err
	}
	a, err := request(c)
	if err != nil {
		c.Close()
		return a, err
	}
	p.put(c)
	return a, nil
}

// page is a request of a browser for a page that counts in its session: the session is locked, read, and written back.
func (p *pool) page(target string) error {
	var locked client.Answer
	for by := time.Now().Add(10 * time.Second); ; {
		var err error
		locked, err = p.do(func(c *client.Conn) (client.Answer, error) { return c.GetExclusive(target) })
		if err != nil {
			return err
		}
		if locked.Status != 423 {
			break
		}
		if time.Now().After(by) {
			return errors.New("the session stays locked")
		}
		time.Sleep(20 * time.Millisecond) // web servers wait longer
	}
	if locked.Status != 200 {
		return fmt.Errorf("GetExclusive is answered %d", locked.Status)
	}
	n, err := strconv.Atoi(string(locked.Body))
	if err != nil {
		return err
	}
	a, err := p.do(func(c *client.Conn) (client.Answer, error) {
		return c.Set(target, strconv.AppendInt(nil, int64(n+1), 10), 20*time.Minute, locked.LockCookie)
	})
	if err == nil && a.Status != 200 {
		err = fmt.Errorf("Set is answered %d", a.Status)
	}
	return err
}

// A farm whose state server is restarted again and again, with a socket that stays open, does not notice.
func TestRestartsThroughSocketActivation(t *testing.T) {
	const browsers, restarts = 12, 6
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	a := &activation{program: path, flags: []string{"--admin-listen=off", "--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "x.db")}}
	farm := &pool{address: a.listen(t)}
	t.Cleanup(func() { a.cmd.Process.Kill() })
	a.start(t) // the first pages wait in the socket meanwhile

	targets := make([]string, browsers)
	for i := range targets {
		targets[i] = client.Target("/LM/W3SVC/1/ROOT/shop", fmt.Sprint("browser", i/2)) // two pages of each session at once
	}
	for _, target := range slices.Compact(slices.Clone(targets)) {
		if a, err := farm.do(func(c *client.Conn) (client.Answer, error) {
			return c.Set(target, []byte("0"), 20*time.Minute, 0)
		}); err != nil || a.Status != 200 {
			t.Fatalf("answer %+v, %v", a, err)
		}
	}
	var pages [browsers]atomic.Int64
	var failed atomic.Int64
	var load sync.WaitGroup
	stop := make(chan struct{})
	end := sync.OnceFunc(func() {
		close(stop)
		load.Wait()
	})
	defer end()
	for i, target := range targets {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := farm.page(target); err != nil {
					failed.Add(1)
					t.Errorf("a page fails: %v", err)
					return
				}
				pages[i].Add(1)
			}
		})
	}
	total := func() (n int64) {
		for i := range pages {
			n += pages[i].Load()
		}
		return n
	}
	served := func(more int64) {
		t.Helper()
		for goal, by := total()+more, time.Now().Add(30*time.Second); total() < goal; time.Sleep(time.Millisecond) {
			if time.Now().After(by) || failed.Load() > 0 {
				t.Fatalf("only %d pages were served, %d failed\n%s", total(), failed.Load(), &a.log)
			}
		}
	}
	for range restarts {
		served(500)
		a.stop(t)
		a.start(t)
	}
	served(500)
	end()
	t.Logf("%d pages over %d restarts, %d connections", total(), restarts, farm.dialed.Load())

	for i := 0; i < browsers; i += 2 {
		got, err := farm.do(func(c *client.Conn) (client.Answer, error) { return c.Get(targets[i]) })
		if want := pages[i].Load() + pages[i+1].Load(); err != nil || string(got.Body) != fmt.Sprint(want) {
			t.Errorf("session %d has counted %q pages, %d were answered (%v)", i/2, got.Body, want, err)
		}
	}
	a.stop(t)
}

// A socket of systemd with the port of tds.listen serves mode="SQLServer", and waits for the next process, too.
func TestSocketsOfBothModes(t *testing.T) {
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := tdsHash()
	if err != nil {
		t.Fatal(err)
	}
	a := &activation{program: path}
	both, state := a.listen(t), a.listen(t) // in the other order than settings would open them
	_, port, err := net.SplitHostPort(both)
	if err != nil {
		t.Fatal(err)
	}
	a.flags = []string{"--admin-listen=off", "--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "x.db"),
		"--listen=127.0.0.1:1", "--tds-listen=127.0.0.9:" + port, "--tds-users=harness:" + hash}
	t.Cleanup(func() { a.cmd.Process.Kill() })
	for n := range 3 {
		// Nobody serves now, and yet both ports take connections.
		early, err := net.Dial("tcp", both)
		if err != nil {
			t.Fatal(err)
		}
		early.Close()
		web, err := client.Dial(state)
		if err != nil {
			t.Fatal(err)
		}
		defer web.Close()
		web.Timeout = time.Minute
		a.start(t)
		target := client.Target("/LM/W3SVC/1/ROOT/shop", "kept")
		if n > 0 {
			if got, err := web.Get(target); err != nil || string(got.Body) != fmt.Sprint(n) {
				t.Fatalf("the session is %q, %v\n%s", got.Body, err, &a.log)
			}
		}
		if got, err := web.Set(target, fmt.Append(nil, n+1), 20*time.Minute, 0); err != nil || got.Status != 200 {
			t.Fatalf("answer %d, %v\n%s", got.Status, err, &a.log)
		}
		dialTDS(t, store{}, both, "encrypt=disable") // logs in, and asks for an AppID
		a.stop(t)
	}
}
