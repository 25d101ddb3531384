package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The answer of a state server with its item, and where it may be cut.
const gotItem = "200 OK\r\nX-AspNet-Version: 4.0.30319\r\nLockCookie: 17\r\nTimeout: 20\r\nCache-Control: private\r\nContent-Length: 3\r\n\r\nabc"

func TestASPAnswer(t *testing.T) {
	d := newASPDialect(3)
	for name, test := range map[string]struct {
		in     string
		step   step
		length int
		cookie int64
		fault  string
	}{
		"item and lock":         {gotItem, stepLock, len(gotItem), 17, ""},
		"with a version":        {"HTTP/1.1 " + gotItem, stepLock, len(gotItem) + 9, 17, ""},
		"line ends without CR":  {strings.ReplaceAll(gotItem, "\r", ""), stepLock, len(gotItem) - 7, 17, ""},
		"part of the item":      {gotItem[:len(gotItem)-2], stepLock, len(gotItem), 17, ""},
		"no lock":               {strings.Replace(gotItem, "LockCookie: 17\r\n", "", 1), stepLock, 0, 0, "no lock cookie"},
		"another item":          {strings.Replace(gotItem, "Length: 3", "Length: 4", 1), stepLock, 0, 0, "4 bytes, want 3"},
		"locked":                {"423 Locked\r\nLockCookie: 5\r\nContent-Length: 0\r\n\r\n", stepLock, 0, 0, "423, want 200"},
		"locked, as it must be": {"423 Locked\r\nLockCookie: 5\r\nContent-Length: 0\r\n\r\n", stepRefuse, 48, 5, ""},
		"written":               {"200 OK\r\nContent-Length: 0\r\n\r\n", stepWrite, 29, 0, ""},
		"missing":               {"404 Not Found\r\nContent-Length: 0\r\n\r\n", stepRead, 0, 0, "404, want 200"},
		"not a state server":    {"SSH-2.0-OpenSSH_9.2\r\n", stepRead, 0, 0, "not the status line"},
	} {
		t.Run(name, func(t *testing.T) {
			var l link
			length, err := d.answer([]byte(test.in), test.step, &l)
			if test.fault != "" {
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Fatalf("the error is %v, want %q", err, test.fault)
				}
				return
			}
			if err != nil || length != test.length || l.cookie != test.cookie {
				t.Errorf("length %d, cookie %d, %v; want %d, %d", length, l.cookie, err, test.length, test.cookie)
			}
		})
	}
	for n := range len(gotItem) {
		if length, err := d.answer([]byte(gotItem[:n]), stepLock, new(link)); err != nil || length <= n {
			t.Errorf("the first %d bytes are taken for an answer of %d (%v)", n, length, err)
		}
	}
}

func TestRESPAnswer(t *testing.T) {
	const locked = "*4\r\n$18\r\n638000000000000001\r\n$3\r\nabc\r\n$4\r\n1200\r\n:1\r\n"
	d := redisDialect{size: 3}
	for name, test := range map[string]struct {
		in     string
		step   step
		length int
		fault  string
	}{
		"item and lock":   {locked, stepLock, len(locked), ""},
		"item":            {"*3\r\n$0\r\n\r\n$3\r\na\r\n\r\n$4\r\n1200\r\n", stepRead, 29, ""},
		"written":         {":1\r\n", stepWrite, 4, ""},
		"not written":     {":0\r\n", stepWrite, 0, "missing, or not locked"},
		"locked before":   {strings.Replace(locked, ":1", ":0", 1), stepLock, 0, "is locked"},
		"refused":         {"*4\r\n$1\r\n7\r\n$0\r\n\r\n$4\r\n1200\r\n:0\r\n", stepRefuse, 31, ""},
		"not refused":     {locked, stepRefuse, 0, "is not locked"},
		"no such session": {"*4\r\n$1\r\n7\r\n$-1\r\n$2\r\n-1\r\n:1\r\n", stepLock, 0, "0 bytes"},
		"error":           {"-NOSCRIPT No matching script.\r\n", stepLock, 0, "NOSCRIPT"},
	} {
		t.Run(name, func(t *testing.T) {
			length, err := d.answer([]byte(test.in), test.step, new(link))
			if test.fault != "" {
				if err == nil || !strings.Contains(err.Error(), test.fault) {
					t.Fatalf("the error is %v, want %q", err, test.fault)
				}
				return
			}
			if err != nil || length != test.length {
				t.Errorf("length %d, %v; want %d", length, err, test.length)
			}
		})
	}
	for n := range len(locked) {
		if length, err := d.answer([]byte(locked[:n]), stepLock, new(link)); err != nil || length <= n {
			t.Errorf("the first %d bytes are taken for an answer of %d (%v)", n, length, err)
		}
	}
}

func TestSessionIDs(t *testing.T) {
	seen := map[[idLength]byte]bool{}
	for n := range uint64(100_000) {
		id := sessionID(n)
		if seen[id] {
			t.Fatalf("number %d has an ID that another one has: %s", n, id[:])
		}
		seen[id] = true
	}
}

// A load reaches the server whole: as many cycles as are told, sessions of its own for every connection, in either way of sending it.
func TestLoad(t *testing.T) {
	for _, rate := range []float64{0, 2000} {
		s := newCounter(t)
		l := Load{Op: "cycle", Conns: 5, Size: 20_000, Sessions: 23, Rate: rate, For: 200 * time.Millisecond}
		if err := l.prepare(s.address, newASPDialect(l.Size)); err != nil {
			t.Fatal(err)
		}
		if n := s.count(); n != l.Sessions {
			t.Errorf("%d sessions were created, want %d", n, l.Sessions)
		}
		r, err := l.send(s.address, newASPDialect(l.Size), nobody, nil)
		if err != nil {
			t.Fatal(err)
		}
		gets, sets := s.gets.Load(), s.sets.Load()-int64(l.Sessions)
		if gets == 0 || gets != sets || int64(r.Units) > gets || int64(r.Units) < gets-int64(l.Conns) {
			t.Errorf("rate %v: %d cycles are told; the server got %d GET and %d PUT", rate, r.Units, gets, sets)
		}
		if r.P50 <= 0 || r.P50 > r.P99 || r.P99 > r.P999 || r.P999 > r.Max {
			t.Errorf("rate %v: quantiles %v, %v, %v, %v", rate, r.P50, r.P99, r.P999, r.Max)
		}
		if n := s.count(); n != l.Sessions {
			t.Errorf("rate %v: %d sessions were used, want %d", rate, n, l.Sessions)
		}
	}
}

func TestLoadFails(t *testing.T) {
	s := newCounter(t)
	s.fail.Store(true)
	l := Load{Op: "get", Conns: 3, Size: 10, Sessions: 10, For: 10 * time.Second}
	if _, err := l.send(s.address, newASPDialect(l.Size), nobody, nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("the error is %v, want one that tells the answer", err)
	}
}

// A request and its answer allocate nothing in the load generator.
func TestNoAllocations(t *testing.T) {
	var l link
	l.id = sessionID(1)
	body := make([]byte, 1024)
	out := make([]byte, 0, 4096)
	answer := []byte(strings.Replace(gotItem, "Content-Length: 3\r\n\r\nabc", "Content-Length: 1024\r\n\r\n"+string(body), 1))
	resp := fmt.Appendf(nil, "*4\r\n$1\r\n7\r\n$1024\r\n%s\r\n$4\r\n1200\r\n:1\r\n", body)
	var asp, redis dialect = newASPDialect(1024), redisDialect{size: 1024}
	if n := testing.AllocsPerRun(100, func() {
		out = asp.ask(out[:0], stepLock, &l, body)
		asp.answer(answer, stepLock, &l)
		out = asp.ask(out[:0], stepWrite, &l, body)
		out = redis.ask(out[:0], stepLock, &l, body)
		redis.answer(resp, stepLock, &l)
		out = redis.ask(out[:0], stepWrite, &l, body)
	}); n != 0 {
		t.Errorf("%v allocations for two page cycles", n)
	}
}

// counter is a state server that counts, and has any item of the last size that was written.
type counter struct {
	address    string
	gets, sets atomic.Int64
	fail       atomic.Bool

	mu       sync.Mutex
	sessions map[string]bool
}

func newCounter(t *testing.T) *counter {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	s := &counter{address: ln.Addr().String(), sessions: map[string]bool{}}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if err := s.serve(conn); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			}()
		}
	}()
	return s
}

func (s *counter) serve(conn net.Conn) error {
	in := bufio.NewReader(conn)
	var item []byte
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return io.EOF
		}
		words := strings.Fields(line)
		if len(words) != 3 {
			return fmt.Errorf("request line %q", line)
		}
		s.mu.Lock()
		s.sessions[words[1]] = true
		s.mu.Unlock()
		length := 0
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return err
			}
			if strings.TrimSpace(line) == "" {
				break
			}
			fmt.Sscanf(line, "Content-Length:%d", &length)
		}
		switch words[0] {
		case "PUT":
			s.sets.Add(1)
			item = make([]byte, length)
			if _, err := io.ReadFull(in, item); err != nil {
				return err
			}
			_, err = io.WriteString(conn, "200 OK\r\nContent-Length: 0\r\n\r\n")
		case "GET":
			s.gets.Add(1)
			if s.fail.Load() {
				_, err = io.WriteString(conn, "404 Not Found\r\nContent-Length: 0\r\n\r\n")
				break
			}
			if item == nil {
				item = make([]byte, 20_000)
			}
			_, err = fmt.Fprintf(conn, "200 OK\r\nLockCookie: 2\r\nContent-Length: %d\r\n\r\n%s", len(item), item)
		default:
			return fmt.Errorf("verb %q", words[0])
		}
		if err != nil {
			return err
		}
	}
}

func (s *counter) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// The floor answers as a state server does, whatever is sent to it.
func TestFloor(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go serveFloor(ln, 7000)
	for _, op := range []string{"fill", "cycle", "get", "head"} {
		l := Load{Op: op, Conns: 3, Size: 7000, Sessions: 10, For: 50 * time.Millisecond}
		if op == "head" {
			l.Size = 200_000 // a write of another size is framed, too
			if err := l.prepare(ln.Addr().String(), newASPDialect(l.Size)); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := l.send(ln.Addr().String(), newASPDialect(l.Size), nobody, nil); err != nil || r.Units == 0 {
			t.Errorf("%s: %d units, %v", op, r.Units, err)
		}
	}
}
