package stateserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
	"aspstate/server/stateserver/client"
)

const badRequest = "400 Bad Request\r\nX-AspNet-Version: 4.0.30319\r\nCache-Control: private\r\nContent-Length: 0\r\n\r\n"

// exchange sends raw bytes over a connection of their own and returns all that comes back
// until the server closes it.
func exchange(t *testing.T, address, send string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, send)
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("the server did not close the connection: got %q, %v", got, err)
	}
	return string(got)
}

func TestHeadOverTheLimitIsRefused(t *testing.T) {
	r := start(t, memory.New(0), time.Second)
	settings := DefaultSettings()
	settings.RequestLine, settings.Headers = 2048, 1024
	r.front.Configure(settings)
	for _, send := range []string{
		"GET /" + strings.Repeat("x", 3000),
		"GET /" + strings.Repeat("x", 3000) + " HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 2000),
		"GET / HTTP/1.1\r\n" + strings.Repeat("X: y\r\n", 400) + "\r\n",
	} {
		if got := exchange(t, r.address, send); got != badRequest {
			t.Errorf("a head of %d bytes was answered %q", len(send), got)
		}
	}
	// The longest that ASP.NET can send: app id 280, hash 44, ID 80, each letter encoded.
	r.front.Configure(DefaultSettings())
	c := r.dial(t)
	a, err := c.Get(client.Target("/"+strings.Repeat("é", 279), strings.Repeat("ü", 80)))
	want(t, 404, a, err)
}

// A body over the limit must not leave its session locked: the web server takes the
// page for failed and does not release it.
func TestTooLargeItemIsRefusedAndUnlocksItsSession(t *testing.T) {
	r := start(t, memory.New(0), time.Second)
	settings := DefaultSettings()
	settings.Body = 100
	r.front.Configure(settings)
	target := newTarget()
	c := r.dial(t)
	a, err := c.Set(target, make([]byte, 100), time.Minute, 0)
	want(t, 200, a, err)
	a, err = c.GetExclusive(target)
	cookie := want(t, 200, a, err).LockCookie
	a, err = c.Set(target, make([]byte, 101), time.Minute, cookie)
	want(t, 400, a, err)
	// The connection goes on, the old content is there and unlocked.
	waitFor(t, "the lock's release", func() bool {
		a, err = c.Get(target)
		return a.Status == 200
	})
	if len(a.Body) != 100 {
		t.Errorf("the item has %d bytes, want the old 100", len(a.Body))
	}
	// A length that would take for ever to skip ends the connection.
	if got := exchange(t, r.address, "PUT "+target+" HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n\r\n"); got != badRequest {
		t.Errorf("answered %q", got)
	}
}

func TestSlowClientsAreCutOff(t *testing.T) {
	r := start(t, memory.New(0), time.Second)
	settings := DefaultSettings()
	settings.Idle, settings.ReadHead, settings.ReadBody = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	r.front.Configure(settings)
	for name, send := range map[string]string{
		"silent":          "",
		"half a head":     "GET /x HTTP/1.1\r\nHost:",
		"half a body":     "PUT /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345",
		"half a GET body": "GET /x HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345",
		"huge, unsent":    "PUT /x HTTP/1.1\r\nContent-Length: 60000000\r\n\r\n",
	} {
		if got := exchange(t, r.address, send); got != "" {
			t.Errorf("%s: answered %q", name, got)
		}
	}
	a, err := r.dial(t).Get(client.Target("/x", "x"))
	want(t, 404, a, err)
}

// The bytes of bodies that are still arriving are bounded over all connections, and
// what is announced without being sent does not count.
func TestBodiesInFlightAreBounded(t *testing.T) {
	r := start(t, memory.New(0), 5*time.Second)
	r.tcp.LimitBodies((1 << 20) * 4 / 3) // of which large items have 1 MiB
	var stuck []net.Conn
	for range 8 { // each holds one step
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "PUT /x HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n")
		stuck = append(stuck, conn)
	}
	waitFor(t, "eight bodies in flight", func() bool { return r.tcp.Held() == 8*bodyStep })
	target := newTarget()
	c := r.dial(t)
	a, err := c.Set(target, bytes.Repeat([]byte("x"), 300<<10), time.Minute, 0)
	want(t, 200, a, err)
	// One that needs all of it has those cut off that send nothing.
	a, err = c.Set(target, bytes.Repeat([]byte("y"), 1<<20), time.Minute, 0)
	want(t, 200, a, err)
	for _, conn := range stuck {
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading from a connection that should be cut off: %v", err)
		}
	}
	waitFor(t, "all bytes to be given back", func() bool { return r.tcp.Held() == 0 })
}

// Answers that nobody reads are bounded, too, and give way to those that somebody reads.
func TestAnswersThatNobodyReadsAreBounded(t *testing.T) {
	r := start(t, memory.New(0), 20*time.Second)
	const size = 32 << 20 // larger than what a socket takes without a reader
	r.tcp.LimitBodies(4 * size)
	target, small := newTarget(), newTarget()
	c := r.dial(t)
	a, err := c.Set(target, make([]byte, size), time.Minute, 0)
	want(t, 200, a, err)
	a, err = c.Set(small, []byte("small"), time.Minute, 0)
	want(t, 200, a, err)
	var most atomic.Int64
	for range 10 {
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET "+target+" HTTP/1.1\r\n\r\n")
	}
	waitFor(t, "memory to be used up", func() bool {
		most.Store(max(most.Load(), r.tcp.Held()))
		return most.Load() > 2*size
	})
	for _, target := range []string{small, target} { // a get waits for its turn, and has it
		if a, err = c.Get(target); err != nil || a.Status != 200 {
			t.Errorf("answered %d, %v", a.Status, err)
		}
		most.Store(max(most.Load(), r.tcp.Held()))
	}
	if most.Load() > 4*size {
		t.Errorf("%d bytes were held, the limit is %d", most.Load(), 4*size)
	}
	if r.tcp.Traffic().CutOff.Load() == 0 {
		t.Error("nobody was cut off")
	}
}

// Bodies that all wait for more of what they hold themselves end all the same: one is cut off for the others.
func TestBodiesThatWaitForEachOther(t *testing.T) {
	r := start(t, memory.New(0), 20*time.Second)
	r.tcp.LimitBodies(1 << 20)
	sent := make(chan error)
	for range 3 {
		c, target := r.dial(t), newTarget()
		go func() {
			_, err := c.Set(target, make([]byte, 1<<20), time.Minute, 0)
			sent <- err
		}()
	}
	arrived := 0
	for range 3 {
		if err := <-sent; err == nil {
			arrived++
		}
	}
	if arrived == 0 {
		t.Error("none of the items arrived")
	}
	waitFor(t, "all bytes to be given back", func() bool { return r.tcp.Held() == 0 })
}

// A panic ends one connection, nothing else.
func TestPanicEndsOneConnection(t *testing.T) {
	store := &backendtest.Failing{Store: memory.New(0)}
	r := start(t, store, time.Second)
	target := newTarget()
	store.Fail(func(context.Context, string, func() error) error { panic("planted") })
	if _, err := r.dial(t).Get(target); err == nil {
		t.Error("a request that panics was answered")
	}
	store.Fail(nil)
	a, err := r.dial(t).Get(target)
	want(t, 404, a, err)
}

// What each operation answers while the store fails: never "missing", never a status
// that a web server takes for it.
func TestFailingStore(t *testing.T) {
	for _, fault := range []struct {
		name  string
		fault backendtest.Fault
	}{{"down", backendtest.Down}, {"hanging", backendtest.Hang}} {
		t.Run(fault.name, func(t *testing.T) {
			store := &backendtest.Failing{Store: memory.New(0)}
			const budget = 150 * time.Millisecond
			r := start(t, store, budget)
			target := newTarget()
			c := r.dial(t)
			a, err := c.Set(target, []byte("kept"), time.Minute, 0)
			want(t, 200, a, err)
			store.Fail(fault.fault)
			for name, call := range map[string]func(*client.Conn) (client.Answer, error){
				"get":           func(c *client.Conn) (client.Answer, error) { return c.Get(target) },
				"get exclusive": func(c *client.Conn) (client.Answer, error) { return c.GetExclusive(target) },
				"set":           func(c *client.Conn) (client.Answer, error) { return c.Set(target, []byte("new"), time.Minute, 0) },
				"set uninitialized": func(c *client.Conn) (client.Answer, error) {
					return c.SetUninitialized(target, []byte("new"), time.Minute)
				},
				"remove": func(c *client.Conn) (client.Answer, error) { return c.Remove(target, 0) },
				"set, unknown app": func(c *client.Conn) (client.Answer, error) {
					return c.Set(client.Target("/new", "x"), []byte("x"), time.Minute, 0)
				},
				"get, unknown app": func(c *client.Conn) (client.Answer, error) { return c.Get(client.Target("/new", "x")) },
			} {
				if a, err := call(r.dial(t)); !errors.Is(err, io.EOF) {
					t.Errorf("%s: answered %d, %v; want a closed connection", name, a.Status, err)
				}
			}
			for name, call := range map[string]func() (client.Answer, error){
				"reset timeout": func() (client.Answer, error) { return c.ResetTimeout(target) },
				"release":       func() (client.Answer, error) { return c.Release(target, 2) },
			} {
				if a, err := call(); err != nil || a.Status != 200 {
					t.Errorf("%s: answered %d, %v; want 200", name, a.Status, err)
				}
			}
			store.Fail(nil)
			a, err = r.dial(t).Get(target)
			if string(want(t, 200, a, err).Body) != "kept" {
				t.Errorf("the session is %q", a.Body)
			}
		})
	}
}

// A full store keeps the old item; the page fails, and its lock is released for it.
func TestFullStoreKeepsTheOldItemAndReleasesTheLock(t *testing.T) {
	store := &backendtest.Failing{Store: memory.New(0)}
	r := start(t, store, 5*time.Second)
	target := newTarget()
	c := r.dial(t)
	a, err := c.Set(target, []byte("kept"), time.Minute, 0)
	want(t, 200, a, err)
	a, err = c.GetExclusive(target)
	cookie := want(t, 200, a, err).LockCookie
	var sets atomic.Int32
	store.Fail(func(_ context.Context, op string, apply func() error) error {
		if op == "set" {
			sets.Add(1)
			return backends.ErrFull
		}
		return apply()
	})
	if a, err := r.dial(t).Set(target, []byte("too much"), time.Minute, cookie); !errors.Is(err, io.EOF) {
		t.Errorf("answered %d, %v; want a closed connection", a.Status, err)
	}
	if sets.Load() != 1 {
		t.Errorf("the store was asked %d times, want once: trying again makes no room", sets.Load())
	}
	waitFor(t, "the lock's release", func() bool {
		a, err = c.Get(target)
		return a.Status == 200
	})
	if string(a.Body) != "kept" {
		t.Errorf("the session is %q", a.Body)
	}
}

// A lock whose answer could not be written goes back.
func TestLockThatNobodyWasToldOfIsReleased(t *testing.T) {
	store := &backendtest.Failing{Store: memory.New(0)}
	r := start(t, store, 5*time.Second)
	target := newTarget()
	c := r.dial(t)
	// Larger than what a socket takes without a reader.
	a, err := c.Set(target, make([]byte, 32<<20), time.Minute, 0)
	want(t, 200, a, err)
	gone, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	locked := make(chan struct{}, 1)
	store.Fail(func(_ context.Context, op string, apply func() error) error {
		err := apply()
		if op == "get exclusive" && err == nil {
			locked <- struct{}{}
		}
		return err
	})
	io.WriteString(gone, "GET "+target+" HTTP/1.1\r\nExclusive: acquire\r\n\r\n")
	<-locked
	gone.(*net.TCPConn).SetLinger(0)
	gone.Close()
	waitFor(t, "the lock's release", func() bool {
		a, err := c.Get(target)
		return err == nil && a.Status == 200
	})
}
