package server

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// bodies is the memory that items may hold on their way in and out, over all
// connections and front ends. A quarter is for small items, so that large ones do not delay them.
type bodies struct {
	limit        int64
	small, large part
}

type part struct {
	*semaphore.Weighted
	large   bool
	size    int64
	starved atomic.Int64 // requests that wait for it; written under the server's mu
}

// hold is a connection's piece of it.
type hold struct {
	of     *part // nil while it holds none
	bytes  atomic.Int64
	moving atomic.Bool   // the client sends or takes an item just now
	moved  atomic.Uint64 // bytes, since the connection was accepted

	// Under the server's mu:
	seen    uint64             // moved, when it was looked at last
	waiting context.CancelFunc // ends the wait for more; nil if there is none
}

const (
	// smallItem is the largest small one.
	smallItem = 64 << 10
	// stallAfter is how often, while requests wait for memory, the connections that hold some are looked at.
	stallAfter = 500 * time.Millisecond
	// leastMove is how many bytes they must have moved since then.
	leastMove = 32 << 10
)

// LimitBodies sets how many bytes items may hold on their way in and out; items
// on their way keep what they have.
func (s *Server) LimitBodies(n int64) {
	if old := s.bodies.Load(); old != nil && old.limit == n {
		return
	}
	next := &bodies{limit: n}
	next.small.size, next.large.size, next.large.large = n/4, n-n/4, true
	next.small.Weighted, next.large.Weighted = semaphore.NewWeighted(next.small.size), semaphore.NewWeighted(next.large.size)
	s.bodies.Store(next)
}

// Hold has an item of this size, or the first total bytes of it, hold memory. Where there is none left it waits for some, at
// most until by or ctx's end; with total = 0 it waits while others do. While anybody waits, connections whose
// clients neither send nor take their items are closed. One request at a time holds memory for one item.
func (c *Conn) Hold(ctx context.Context, by time.Time, total, size int64) error {
	of, held := c.hold.of, c.hold.bytes.Load()
	if of == nil || !of.large && size > smallItem {
		all := c.srv.bodies.Load()
		if all == nil {
			return nil
		}
		of, held = &all.small, 0
		if size > smallItem {
			of = &all.large
		}
	}
	n := min(total, of.size) - held // an item may be larger than all there is
	if n < 0 || n == 0 && (held > 0 || of.starved.Load() == 0) {
		return nil
	}
	if !of.TryAcquire(n) {
		ctx, cancel := context.WithDeadline(ctx, by)
		defer cancel()
		c.srv.starve(c, of, 1, cancel)
		err := of.Acquire(ctx, n)
		c.srv.starve(c, of, -1, nil)
		if err != nil {
			return err
		}
	}
	if held == 0 {
		c.Free() // what it held as a small one
	}
	if n > 0 {
		c.hold.of = of
		c.hold.bytes.Add(n)
	}
	return nil
}

// Moving says whether the client is to send or to take an item from now on.
func (c *Conn) Moving(yes bool) { c.hold.moving.Store(yes) }

// Free gives back what Hold has taken.
func (c *Conn) Free() {
	if c.hold.bytes.Load() == 0 {
		return
	}
	c.hold.of.Release(c.hold.bytes.Swap(0))
	c.hold.of = nil
}

// Held returns how many bytes items hold on their way in and out.
func (s *Server) Held() (bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		bytes += c.hold.bytes.Load()
	}
	return bytes
}

// starve notes that c begins (1) or ends (-1) to wait for memory, and what ends the wait.
func (s *Server) starve(c *Conn, of *part, n int64, cancel context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.hold.waiting = cancel
	of.starved.Add(n)
	s.starved += n
	if s.starved > 0 && !s.lookingOut {
		s.lookingOut = true
		go s.lookOut()
	}
}

// lookOut closes connections that keep memory from others, as long as others wait for it.
func (s *Server) lookOut() {
	tick := time.NewTicker(stallAfter)
	defer tick.Stop()
	for first := true; s.cutOffStalled(first); first = false {
		<-tick.C
	}
}

// cutOffStalled closes the connections that hold memory and have moved next to nothing since the last look. Where all of
// them wait for more, it closes the one that holds most. It returns false when nobody waits any more.
func (s *Server) cutOffStalled(first bool) (goOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starved == 0 {
		s.lookingOut = false
		return false
	}
	var most *Conn
	stuck := true // nobody but those who wait holds much
	for c := range s.conns {
		moved, held := c.hold.moved.Load(), c.hold.bytes.Load()
		still := moved-c.hold.seen < leastMove
		c.hold.seen = moved
		switch {
		case held == 0:
		case c.hold.waiting != nil:
			if most == nil || held > most.hold.bytes.Load() {
				most = c
			}
		default:
			if !first && still && c.hold.moving.Load() { // else the store has it
				s.cutOffConn(c)
				stuck = false
			}
			stuck = stuck && held <= smallItem
		}
	}
	if !first && stuck && most != nil {
		s.cutOffConn(most)
	}
	return true
}

// cutOffConn runs under mu.
func (s *Server) cutOffConn(c *Conn) {
	s.traffic.CutOff.Add(1)
	s.stalled.add(1, func(n int64) {
		s.Log.Warn("connections are cut off: limits.bodiesInFlight is used up, and their clients neither send nor take their items",
			"cut_off", n, "client", c.RemoteAddr())
	})
	c.Close()
	if c.hold.waiting != nil {
		c.hold.waiting()
	}
}
