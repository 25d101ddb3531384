package stateserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
)

// script is a connection that brings the same page cycle over and over, without any system call.
type script struct {
	get, set []byte
	cookie   []byte // digits of the lock cookie, in set
	in       []byte // what is left of the request
	set1     bool   // the next request is the Set
	cycles   int    // still to come
	wrong    error
}

func newScript(target string, size, cycles int) *script {
	s := &script{cycles: cycles}
	s.get = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: localhost\r\nExclusive: acquire\r\n\r\n", target)
	s.set = fmt.Appendf(nil, "PUT %s HTTP/1.1\r\nHost: localhost\r\nTimeout:20\r\nContent-Length:%d\r\nExtraFlags:0\r\nLockCookie:", target, size)
	at := len(s.set)
	s.set = append(s.set, "000000001\r\n\r\n"...)
	s.set = append(s.set, make([]byte, size)...)
	s.cookie = s.set[at : at+9]
	return s
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		if s.set1 {
			s.in = s.set
		} else {
			if s.cycles == 0 {
				return 0, io.EOF
			}
			s.cycles--
			s.in = s.get
		}
		s.set1 = !s.set1
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	if string(p[:6]) != "200 OK" {
		s.wrong = fmt.Errorf("the answer is %.20q", p)
		return 0, s.wrong
	}
	if s.set1 { // this answers the Get
		for i := len(s.cookie) - 1; i >= 0; i-- {
			if s.cookie[i]++; s.cookie[i] <= '9' {
				break
			}
			s.cookie[i] = '0'
		}
	}
	return len(p), nil
}

func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// oneConn is a listener with one connection.
type oneConn struct {
	conn chan net.Conn
	done chan struct{}
}

func (l oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l oneConn) Close() error   { return nil }
func (l oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// serveScript serves so many page cycles over one connection, and returns when they are over.
func serveScript(tb testing.TB, size int) (cycles func(n int)) {
	store := memory.New(0)
	sessions := server.NewSessions(store, 8*time.Second, discard)
	sessions.SetLockWait(time.Second)
	front := New(sessions, "", "4.0.30319", discard)
	target := newTarget()
	session, err := front.targets.find([]byte(target), new(ids))
	if err != nil {
		tb.Fatal(err)
	}
	fresh := func() {
		sessions.Remove(context.Background(), server.Request{Arrived: time.Now()}, session, backends.NoCookie, backends.IfUnlocked)
		if err := sessions.Set(context.Background(), server.Request{Arrived: time.Now()}, session,
			backends.Write{Data: make([]byte, size), Timeout: 20 * time.Minute}); err != nil {
			tb.Fatal(err)
		}
	}
	return func(n int) {
		fresh()
		s := newScript(target, size, n)
		ended := make(chan struct{})
		tcp := &server.Server{Access: server.NewAccessList(discard), Log: discard, Handle: func(ctx context.Context, c *server.Conn) {
			defer close(ended)
			front.Handle(ctx, c)
		}}
		ln := oneConn{make(chan net.Conn, 1), make(chan struct{})}
		ln.conn <- s
		go tcp.Serve(ln)
		<-ended
		close(ln.done)
		if s.wrong != nil || s.cycles != 0 {
			tb.Fatalf("%d cycles are left: %v", s.cycles, s.wrong)
		}
	}
}

// BenchmarkCycle is what a page cycle costs without its system calls.
func BenchmarkCycle(b *testing.B) {
	for _, size := range []int{1 << 10, 7 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			cycles := serveScript(b, size)
			b.ReportAllocs()
			b.ResetTimer()
			cycles(b.N)
		})
	}
}

// Parsing a request and writing an answer's head allocate nothing, and finding the session a piece of memory for many.
func TestNothingIsAllocated(t *testing.T) {
	sessions := server.NewSessions(memory.New(0), time.Second, discard)
	front := New(sessions, "", "4.0.30319", discard)
	target := newTarget()
	session, err := front.targets.find([]byte(target), new(ids))
	if err != nil {
		t.Fatal(err)
	}
	if err := sessions.Set(t.Context(), server.Request{Arrived: time.Now()}, session, backends.Write{Data: []byte("x"), Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if _, err := front.targets.find([]byte(target), new(ids)); err != nil { // remembers the application
		t.Fatal(err)
	}
	s := newScript(target, 0, 0)
	settings := DefaultSettings()
	out := make([]byte, 0, 1024)
	var names ids
	if n := testing.AllocsPerRun(1000, func() {
		for _, head := range [][]byte{s.get, s.set} {
			n, err := findHead(head, settings.RequestLine, settings.Headers)
			if err != nil || n != len(head) {
				t.Fatal(n, err)
			}
			var req request
			if err := parseHead(head, &req); err != nil {
				t.Fatal(err)
			}
			if found, err := front.targets.find(req.target, &names); err != nil || found != session {
				t.Fatal(found, err)
			}
			out = (&response{lockCookie: 17, timeout: time.Minute, data: head}).appendTo(out[:0], &front.heads)
		}
	}); n != 0 {
		t.Errorf("%v allocations for the two requests of a page cycle", n)
	}
}

// A whole page cycle allocates the item that is stored. The race detector has pools lose some of what is given back to them.
func TestCycleAllocatesTheItem(t *testing.T) {
	cycles := serveScript(t, 7<<10)
	cycles(100)
	const n = 5000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cycles(n)
	runtime.ReadMemStats(&after)
	if got := float64(after.Mallocs-before.Mallocs) / n; got < 1 || got > 4 {
		t.Errorf("%.2f allocations for a page cycle, want little more than one", got)
	}
}
