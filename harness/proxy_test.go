//go:build unix

package harness

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// proxy stands between a client and a server on TCP and disturbs their connections.
type proxy struct {
	address string // where clients connect
	server  string

	mu       sync.Mutex
	ln       net.Listener // nil while connections are refused
	links    []*link
	delay    time.Duration // of what passes, each way
	cutAfter int           // bytes to let through on the next connection; 0 is all
}

// link is a connection through the proxy.
type link struct {
	client, server *net.TCPConn

	mu   sync.Mutex
	left int // bytes to let through before the link is cut; negative is all
}

func newProxy(t testing.TB, server string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), server: server, ln: ln}
	go p.serve(ln)
	t.Cleanup(func() { p.refuse() })
	return p
}

func (p *proxy) serve(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go p.connect(client.(*net.TCPConn))
		}
	}
}

func (p *proxy) connect(client *net.TCPConn) {
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		client.Close()
		return
	}
	l := &link{client: client, server: server.(*net.TCPConn), left: -1}
	p.mu.Lock()
	if p.cutAfter > 0 {
		l.left, p.cutAfter = p.cutAfter, 0
	}
	refusing := p.ln == nil
	if !refusing {
		p.links = append(p.links, l)
	}
	p.mu.Unlock()
	if refusing {
		l.cut()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.copy(l, l.server, l.client) })
	both.Go(func() { p.copy(l, l.client, l.server) })
	both.Wait()
	l.cut()
	p.forget(l)
}

func (p *proxy) forget(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links = slices.DeleteFunc(p.links, func(other *link) bool { return other == l })
}

// copy passes on what comes from one side until it ends or the link is cut.
func (p *proxy) copy(l *link, to, from *net.TCPConn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		delay := p.delay
		p.mu.Unlock()
		time.Sleep(delay)
		pass, last := l.take(n)
		if _, werr := to.Write(buf[:pass]); werr != nil || last {
			l.cut()
			return
		}
		if err == io.EOF {
			to.CloseWrite()
			return
		}
		if err != nil {
			l.cut()
			return
		}
	}
}

// take counts n bytes. It returns how many of them may pass, and whether they are the last.
func (l *link) take(n int) (pass int, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left < 0 {
		return n, false
	}
	pass = min(n, l.left)
	l.left -= pass
	return pass, l.left == 0
}

// cut resets both connections.
func (l *link) cut() {
	l.client.SetLinger(0)
	l.server.SetLinger(0)
	l.client.Close()
	l.server.Close()
}

// cut cuts all links.
func (p *proxy) cut() {
	p.mu.Lock()
	links := p.links
	p.links = nil
	p.mu.Unlock()
	for _, l := range links {
		l.cut()
	}
}

// cutOne cuts a link.
func (p *proxy) cutOne(rng *rand.Rand) {
	if l := p.one(rng); l != nil {
		l.cut()
		p.forget(l)
	}
}

// halfClose tells one side of a link that the other will send no more.
func (p *proxy) halfClose(rng *rand.Rand) {
	l := p.one(rng)
	switch {
	case l == nil:
	case rng.IntN(2) == 0:
		l.client.CloseWrite()
	default:
		l.server.CloseWrite()
	}
}

func (p *proxy) one(rng *rand.Rand) *link {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.links) == 0 {
		return nil
	}
	return p.links[rng.IntN(len(p.links))]
}

// cutNextAfter cuts the next connection when so many bytes have passed in either direction.
func (p *proxy) cutNextAfter(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutAfter = bytes
}

// delayBy delays all that passes from now on.
func (p *proxy) delayBy(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// refuse cuts all links and refuses connections until allow.
func (p *proxy) refuse() {
	p.mu.Lock()
	if p.ln != nil {
		p.ln.Close()
		p.ln = nil
	}
	p.mu.Unlock()
	p.cut()
}

// allow ends refuse.
func (p *proxy) allow() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ln, err := net.Listen("tcp", p.address)
	for begun := time.Now(); err != nil && time.Since(begun) < 5*time.Second; { // somebody has the port, for a connection
		time.Sleep(10 * time.Millisecond)
		ln, err = net.Listen("tcp", p.address)
	}
	if err != nil {
		return err
	}
	p.ln = ln
	go p.serve(ln)
	return nil
}

// disturb does one thing at random to a connection, or for a short time to all, and counts it as
// what it was, between whom.
func (p *proxy) disturb(t testing.TB, rng *rand.Rand, between string) {
	short := func() { time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond)))) }
	kind := ""
	switch rng.IntN(6) {
	case 0:
		kind = "all connections cut"
		p.cut()
	case 1:
		kind = "connection cut"
		p.cutOne(rng)
	case 2:
		kind = "connection half closed"
		p.halfClose(rng)
	case 3:
		kind = "connection cut within an exchange"
		p.cutNextAfter(1 + rng.IntN(3000))
		p.cutOne(rng)
	case 4:
		kind = "traffic delayed"
		p.delayBy(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
		short()
		p.delayBy(0)
	default:
		kind = "connections refused"
		p.refuse()
		short()
		if err := p.allow(); err != nil {
			t.Error(err)
		}
	}
	tally.faults.add(between + ": " + kind)
}

// echo starts a server that sends back what it gets.
func echo(t *testing.T) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return ln.Addr().String()
}

func TestProxy(t *testing.T) {
	rng := newRand(1)
	dial := func(t *testing.T, p *proxy) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	echoed := func(c net.Conn, text string) (string, error) {
		if _, err := io.WriteString(c, text); err != nil {
			return "", err
		}
		got := make([]byte, len(text))
		n, err := io.ReadFull(c, got)
		return string(got[:n]), err
	}
	// open is a connection that certainly passes the proxy.
	open := func(t *testing.T, p *proxy) net.Conn {
		t.Helper()
		c := dial(t, p)
		if got, err := echoed(c, "hello"); got != "hello" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		return c
	}
	ends := func(t *testing.T, c net.Conn) {
		t.Helper()
		if got, err := echoed(c, "hello"); err == nil {
			t.Errorf("got %q over a connection that was cut", got)
		}
	}
	t.Run("cut", func(t *testing.T) {
		p := newProxy(t, echo(t))
		a, b := open(t, p), open(t, p)
		p.cut()
		ends(t, a)
		ends(t, b)
		p.cutOne(rng) // none is left to cut
		c := open(t, p)
		p.cutOne(rng)
		ends(t, c)
	})
	t.Run("cut after some bytes", func(t *testing.T) {
		p := newProxy(t, echo(t))
		p.cutNextAfter(7)
		c := dial(t, p)
		// Five bytes there, and two of them back.
		if got, err := echoed(c, "hello"); err == nil || len(got) > 2 {
			t.Errorf("got %q, %v", got, err)
		}
		open(t, p)
	})
	t.Run("half close", func(t *testing.T) {
		p := newProxy(t, echo(t))
		c := open(t, p)
		for range 100 { // it takes either side: an echo ends with both
			p.halfClose(rng)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %d bytes and %v over a connection that was closed", n, err)
		}
	})
	t.Run("refuse", func(t *testing.T) {
		p := newProxy(t, echo(t))
		c := open(t, p)
		p.refuse()
		ends(t, c)
		if c, err := net.Dial("tcp", p.address); err == nil {
			c.Close()
			t.Error("a connection was not refused")
		}
		if err := p.allow(); err != nil {
			t.Fatal(err)
		}
		open(t, p)
	})
	t.Run("delay", func(t *testing.T) {
		p := newProxy(t, echo(t))
		c := open(t, p)
		const delay = 20 * time.Millisecond
		p.delayBy(delay)
		begun := time.Now()
		if got, err := echoed(c, "hello"); got != "hello" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if took := time.Since(begun); took < 2*delay {
			t.Errorf("there and back took %v, want at least twice %v", took, delay)
		}
	})
}
