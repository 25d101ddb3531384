// Package server is what the front ends share: accepting connections and ending
// them in good order (Server), the access list, the store with the patience that
// web servers need (Sessions), and the sweeper.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Server accepts connections for one front end, within a limit, and ends them
// in good order. Its fields are set before Serve; the methods are safe for
// concurrent use.
type Server struct {
	// Handle serves one connection until it ends; the server closes it then. It calls
	// Conn.Idle before it waits for a request and Conn.Busy when one has begun.
	// ctx ends when a shutdown has run out of time.
	Handle func(ctx context.Context, c *Conn)
	Access *AccessList
	Log    *slog.Logger

	limit   atomic.Int64 // of connections; 0 means none
	closing atomic.Bool  // a shutdown has begun: connections end with their next answer
	closed  atomic.Bool  // those that wait for a request have ended, too
	traffic Traffic
	bodies  atomic.Pointer[bodies]
	proxies prefixes

	mu         sync.Mutex
	conns      map[*Conn]struct{}
	listeners  map[net.Listener]struct{} // that accept
	ctx        context.Context           // of the connections
	cutOff     context.CancelFunc
	ended      chan struct{} // closed when closing, and the last listener and the last connection have ended
	refused    seldom        // connections for which there was no room
	badHeaders seldom        // connections of proxies
	stalled    seldom        // connections that kept memory from others
	insecure   seldom        // connections whose TLS handshake failed

	starved    int64 // requests that wait for memory
	lookingOut bool  // for those that keep it from them
}

// Conn is an accepted connection. At every moment it is either idle (waiting for
// a request, and so free to be closed) or busy (a request has begun). It is born
// busy.
type Conn struct {
	net.Conn
	srv    *Server
	speaks Protocol
	since  atomic.Int64 // connBusy, connClosing, or idle since then (Unix nanoseconds)
	last   bool         // its last answer has gone
	hold   hold
	// retried: the store was asked several times for one request. It may not be done yet with what the first was given.
	retried bool
	client  net.Addr // that a proxy has named; nil for none
	early   []byte   // what has come with the proxy's header and is not read yet
	tls     *tls.Conn
	arrival arrival
}

// Retried reports whether the store was asked several times since the last call. Where it was, buffers with data for
// the store must not be used again.
func (c *Conn) Retried() bool {
	retried := c.retried
	c.retried = false
	return retried
}

// RemoteAddr implements net.Conn. Behind a proxy of TrustProxies it is the address that the proxy names.
func (c *Conn) RemoteAddr() net.Addr {
	if c.client != nil {
		return c.client
	}
	return c.Conn.RemoteAddr()
}

// Traffic counts connections and bytes since the start.
type Traffic struct {
	Accepted   [Protocols]atomic.Uint64 // connections
	Refused    atomic.Uint64            // for want of room
	ClosedIdle atomic.Uint64            // to make room
	CutOff     atomic.Uint64            // for keeping memory from others
	Insecure   atomic.Uint64            // whose TLS handshake failed
	BadHeaders atomic.Uint64            // connections of proxies that did not begin with a header
	Received   atomic.Uint64            // bytes
	Sent       atomic.Uint64
}

// Traffic returns the server's counters.
func (s *Server) Traffic() *Traffic { return &s.traffic }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (n int, err error) {
	if c.tls != nil {
		return c.tls.Read(p)
	}
	return c.read(p)
}

func (c *Conn) read(p []byte) (n int, err error) {
	if len(c.early) > 0 {
		n = copy(p, c.early)
		if c.early = c.early[n:]; len(c.early) == 0 {
			c.early = nil
		}
	} else {
		n, err = c.Conn.Read(p)
	}
	c.srv.traffic.Received.Add(uint64(n))
	c.hold.moved.Add(uint64(n))
	return n, err
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (written int, err error) {
	if c.tls != nil {
		return c.tls.Write(p)
	}
	return c.write(p)
}

func (c *Conn) write(p []byte) (written int, err error) {
	for {
		n, err := c.Conn.Write(p[:min(len(p), writeStep)])
		c.srv.traffic.Sent.Add(uint64(n))
		c.hold.moved.Add(uint64(n))
		written += n
		if p = p[n:]; len(p) == 0 || err != nil {
			return written, err
		}
	}
}

// WriteBoth writes a and b, at once where the system can.
func (c *Conn) WriteBoth(a, b []byte) error {
	if c.tls != nil {
		_, err := c.tls.Write(slices.Concat(a, b))
		return err
	}
	first := min(len(b), writeStep)
	n, err := (&net.Buffers{a, b[:first]}).WriteTo(c.Conn)
	c.srv.traffic.Sent.Add(uint64(n))
	c.hold.moved.Add(uint64(n))
	if err == nil && first < len(b) {
		_, err = c.write(b[first:])
	}
	return err
}

// writeStep is the most that is written at once, so that it is seen how the client takes it.
const writeStep = 64 << 10

// logEvery is how often a condition that meets every request is logged.
const logEvery = 10 * time.Second

// lastCall is how long, in a shutdown, idle connections stay open for a request that is on its way to them. Web servers
// look whether a connection of their pool has ended before they use it, and fail a page when it ends after that look.
const lastCall = 100 * time.Millisecond

const (
	connBusy    = 0
	connClosing = -1
)

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("server closed")

// LimitConnections sets how many connections may be open at once; 0 means any
// number. At the limit the one idle longest is closed to make room (web servers
// reconnect before they use it); with none idle, the new one is refused.
func (s *Server) LimitConnections(n int) { s.limit.Store(int64(n)) }

// Limit returns how many connections may be open at once; 0 means any number.
func (s *Server) Limit() int { return int(s.limit.Load()) }

// Idle marks the connection as waiting for a request. It returns false if the
// connection must end now, because the server is shutting down.
func (c *Conn) Idle(now time.Time) bool {
	if c.last {
		return false
	}
	c.since.Store(now.UnixNano())
	return !c.srv.closed.Load()
}

// Answer is to be called before an answer is written, and what it returns when it has been: in a shutdown the
// answer's last bytes and the connection's end then arrive together (on Linux), so that no client takes the connection
// for one that can be used again.
func (c *Conn) Answer() (written func()) {
	if !c.srv.closing.Load() {
		return func() {}
	}
	c.last = true
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return func() {}
	}
	cork(tcp)
	return func() { tcp.CloseWrite() }
}

// Busy marks that a request has begun. It returns false if the server closed
// the connection meanwhile.
func (c *Conn) Busy() bool {
	since := c.since.Load()
	return since != connClosing && c.since.CompareAndSwap(since, connBusy)
}

// closeIdle closes the connection if it is idle.
func (c *Conn) closeIdle() bool {
	since := c.since.Load()
	if since == connBusy || since == connClosing || !c.since.CompareAndSwap(since, connClosing) {
		return false
	}
	c.Close()
	return true
}

// Serve accepts connections from ln until Shutdown, and returns
// ErrServerClosed then. It may be called for several listeners.
func (s *Server) Serve(ln net.Listener) error { return s.ServeWith(ln, StateServer, s.Handle) }

// ServeTLS is Serve for clients that begin with a TLS handshake.
func (s *Server) ServeTLS(ln net.Listener, config *tls.Config) error {
	return s.ServeWith(ln, StateServer, func(ctx context.Context, c *Conn) {
		if s.secure(ctx, c, config) {
			s.Handle(ctx, c)
		}
	})
}

// ServeWith is Serve for another protocol, whose connections handle serves in place of Handle. Limit, access list
// and shutdown are those of all connections.
func (s *Server) ServeWith(ln net.Listener, speaks Protocol, handle func(ctx context.Context, c *Conn)) error {
	defer ln.Close()
	if !s.track(ln) {
		return ErrServerClosed
	}
	defer s.untrack(ln)
	var pause time.Duration
	for {
		nc, err := ln.Accept()
		if err != nil {
			if s.closing.Load() {
				s.untrack(ln)
				<-s.ended
				return ErrServerClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
			}
			// Out of file descriptors, or a connection that died in the queue.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.Log.Warn("cannot accept a connection, trying again", "error", err, "in", pause)
			time.Sleep(pause)
			continue
		}
		pause = 0
		proxied := s.isProxy(nc.RemoteAddr())
		if !proxied && !s.Access.Allowed(nc.RemoteAddr()) {
			nc.Close()
			continue
		}
		if c := s.admit(nc, speaks); c != nil {
			go s.run(c, proxied, handle)
		}
	}
}

func (s *Server) track(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	if s.conns == nil {
		s.conns = make(map[*Conn]struct{})
		s.listeners = make(map[net.Listener]struct{})
		s.ended = make(chan struct{})
		s.ctx, s.cutOff = context.WithCancel(context.Background())
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) untrack(ln net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
	s.checkEnded()
}

// admit registers a connection, or closes it and returns nil where there is no room.
func (s *Server) admit(nc net.Conn, speaks Protocol) *Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit := s.Limit(); limit > 0 && len(s.conns) >= limit && !s.closeLongestIdle() {
		s.traffic.Refused.Add(1)
		s.refused.add(1, func(n int64) {
			s.Log.Warn("connections are refused: all are busy; raise limits.connections if this goes on",
				"refused", n, "client", nc.RemoteAddr(), "connections", len(s.conns))
		})
		nc.Close()
		return nil
	}
	s.traffic.Accepted[speaks].Add(1) // in a shutdown, too: it was accepted before, and has its first request answered
	c := &Conn{Conn: nc, srv: s, speaks: speaks}
	s.conns[c] = struct{}{}
	return c
}

// closeLongestIdle makes room for one connection. It looks at all of them, so
// that requests need not keep an order among them while there is room.
func (s *Server) closeLongestIdle() bool {
	for {
		var longest *Conn
		for c := range s.conns {
			since := c.since.Load()
			if since > connBusy && (longest == nil || since < longest.since.Load()) {
				longest = c
			}
		}
		if longest == nil {
			return false
		}
		if longest.closeIdle() {
			delete(s.conns, longest)
			s.traffic.ClosedIdle.Add(1)
			return true
		}
	}
}

func (s *Server) run(c *Conn, proxied bool, handle func(ctx context.Context, c *Conn)) {
	defer s.remove(c)
	defer c.Free()
	defer c.Close()
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("a request failed in the server, its connection is closed",
				"client", c.RemoteAddr(), "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if !proxied || s.introduce(c) {
		handle(s.ctx, c)
	}
}

func (s *Server) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.checkEnded()
}

// checkEnded runs under mu.
func (s *Server) checkEnded() {
	if s.closing.Load() && len(s.conns) == 0 && len(s.listeners) == 0 {
		select {
		case <-s.ended:
		default:
			close(s.ended)
			s.cutOff()
		}
	}
}

// Connections returns how many connections are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Speaking returns how many connections are open that speak this protocol.
func (s *Server) Speaking(p Protocol) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.speaks == p {
			n++
		}
	}
	return n
}

// Shutdown stops accepting, has the requests under way answered, closes connections with their answer or when they have
// been idle for a moment, and waits for all that. When ctx ends first, it closes what is left and returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing.Store(true)
	for ln := range s.listeners {
		ln.Close()
	}
	ended := s.ended
	s.mu.Unlock()
	if ended == nil {
		return nil
	}
	call := time.AfterFunc(lastCall, s.closeAllIdle)
	defer call.Stop()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := len(s.conns)
	s.cutOff()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	return fmt.Errorf("%d requests were cut off: %w", left, ctx.Err())
}

// closeAllIdle ends the last call.
func (s *Server) closeAllIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed.Store(true)
	for c := range s.conns {
		c.closeIdle()
	}
}

// Alive returns when a connection has been looked after, one that says nothing; never, if the server hangs. It is no
// client's connection, and counts as none.
func (s *Server) Alive() {
	s.Connections()
	client, own := net.Pipe()
	client.Close()
	defer own.Close()
	s.Handle(context.Background(), &Conn{Conn: own, srv: s})
}
