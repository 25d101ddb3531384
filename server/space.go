package server

import (
	"io"
	"syscall"
)

// Space lends a connection memory to read into.
type Space interface {
	// Lend returns where to read to. waits says that the connection may keep it while it waits for its client.
	Lend(waits bool) []byte
	// Rest is called when nothing has arrived: until the next Lend the connection needs no memory.
	Rest()
}

// arrival is how a connection reads once something has arrived, without memory while nothing has.
type arrival struct {
	raw   syscall.RawConn // nil until it is needed, or where the system or TLS does not allow it
	try   func(fd uintptr) bool
	space Space
	n     int
	err   error
}

// ReadInto reads what has arrived, and waits for something. Where it can, it asks for memory only when it reads: most
// connections of a web farm wait most of the time. Otherwise it is Read.
func (c *Conn) ReadInto(space Space) (n int, err error) {
	if c.arrival.raw == nil && (c.tls != nil || len(c.early) > 0 || !c.readsRaw()) {
		return c.Read(space.Lend(true))
	}
	a := &c.arrival
	a.space = space
	if err := a.raw.Read(a.try); err != nil {
		return 0, err
	}
	c.srv.traffic.Received.Add(uint64(a.n))
	c.hold.moved.Add(uint64(a.n))
	return a.n, a.err
}

// readsRaw reports whether the connection can be read without waiting.
func (c *Conn) readsRaw() bool {
	if !canTryRead {
		return false
	}
	system, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := system.SyscallConn()
	if err != nil {
		return false
	}
	c.arrival.raw, c.arrival.try = raw, c.arrival.tryRead
	return true
}

// tryRead reads once. It returns false if nothing has arrived.
func (a *arrival) tryRead(fd uintptr) bool {
	n, err := tryRead(fd, a.space.Lend(false))
	if err == syscall.EAGAIN {
		a.space.Rest()
		return false
	}
	a.n, a.err = max(n, 0), err
	if n == 0 && err == nil {
		a.err = io.EOF
	}
	return true
}
