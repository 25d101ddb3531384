//go:build unix

package postgres

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands between a store and its database and loses what it is told to lose.
type proxy struct {
	t      *testing.T
	listen net.Listener
	to     string

	mu      sync.Mutex
	pattern []byte // of the statement that is next to meet fault
	fault   fault
	met     chan struct{} // closed when it was met
	held    []heldStatement
}

type fault int

const (
	loseAnswer    fault = iota + 1 // the server runs the statement, and the connection ends before its answer
	loseStatement                  // the connection ends before the statement
	holdStatement                  // the connection ends, and the statement goes to the server when it is let go
)

type heldStatement struct {
	bytes  []byte
	server net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, listen: l, to: to}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

func (p *proxy) port() int { return p.listen.Addr().(*net.TCPAddr).Port }

// next plans a fault for the next message to the server that has the bytes in it.
func (p *proxy) next(f fault, in []byte) (met chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.pattern, p.met = f, in, make(chan struct{})
	return p.met
}

func (p *proxy) meets(message []byte) fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == 0 || !bytes.Contains(message, p.pattern) {
		return 0
	}
	f := p.fault
	p.fault = 0
	close(p.met)
	return f
}

// letGo sends the held statements to the server and waits until it has run them.
func (p *proxy) letGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.held {
		h.server.SetReadDeadline(time.Now().Add(10 * time.Second))
		h.server.Write(h.bytes)
		h.server.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, h.server) // to its end
		h.server.Close()
	}
	p.held = nil
}

func (p *proxy) serve(client net.Conn) {
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		client.Close()
		return
	}
	var lose atomic.Bool
	go func() { // the answers
		defer client.Close()
		answer := make([]byte, 1<<20)
		for {
			n, err := server.Read(answer)
			if err != nil {
				return
			}
			if lose.Load() { // an answer ends with ReadyForQuery, after the commit
				if end := answer[max(0, n-6):n]; len(end) == 6 && string(end[:5]) == "Z\x00\x00\x00\x05" {
					server.Close()
					return
				}
				continue
			}
			if _, err := client.Write(answer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 1<<20)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			server.Close()
			return
		}
		switch p.meets(buffer[:n]) {
		case loseAnswer:
			lose.Store(true)
		case loseStatement:
			client.Close()
			server.Close()
			return
		case holdStatement:
			server.SetReadDeadline(time.Now()) // ends the reader of answers
			p.mu.Lock()
			p.held = append(p.held, heldStatement{bytes.Clone(buffer[:n]), server})
			p.mu.Unlock()
			client.Close()
			return
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			client.Close()
			return
		}
	}
}
