package tds

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"aspstate/backends"
	"aspstate/server"
)

const (
	// readBuffer is what every connection reads into: most often a whole request.
	readBuffer = 4 << 10
	// messageOverhead is how much longer than its item a request may be.
	messageOverhead = 64 << 10
	// maxMessage is how many times the largest item a request may have to be told that it is too large. Who sends more is
	// disconnected.
	maxMessage = 4
	// keepOutput is the largest buffer for answers that is kept for the next one.
	keepOutput = 64 << 10
)

// conn is one connection: requests come and are answered one at a time.
type conn struct {
	*server.Conn
	stream     net.Conn // what to read and write: Conn, or TLS over it
	srv        *Server
	client     netip.Addr
	settings   *Settings // of the request under way
	packetSize int
	database   string

	in   []byte // in[r:w] has arrived and is not consumed
	r, w int
	t    tokens // of the answer in the making
	out  []byte

	granted   lock        // by the latest answer
	attention bool        // the request under way was given up
	stopped   atomic.Bool // watching is over
}

// lock is a lock that a client may never hear of.
type lock struct {
	session server.Session
	cookie  backends.Cookie // 0 for none
}

// errGone says that the client closed the connection, or took too long.
var errGone = errors.New("connection ended within a request")

// message is a request as it came.
type message struct {
	kind  packetType
	reset bool // the connection is another user's from here on
	drop  bool // the client gave it up before its end
	body  []byte
}

// serve answers the requests of a client that has logged in.
func (c *conn) serve(ctx context.Context) {
	for {
		arrived, ok := c.awaitRequest()
		if !ok {
			return
		}
		m, err := c.readMessage(ctx, maxMessage*c.settings.Body+messageOverhead)
		if err != nil {
			if !errors.Is(err, errGone) {
				c.srv.log.Debug("connection closed", "client", c.RemoteAddr(), "reason", err)
			}
			return
		}
		ok = c.answer(ctx, arrived, m)
		if !ok {
			return
		}
	}
}

// awaitRequest waits, idle, until a request has begun. There is no end to that: pools of connections
// keep them, and a page that gets one which was closed meanwhile fails. Who has no login does not come here, and where
// limits.connections is reached the one idle longest is closed.
func (c *conn) awaitRequest() (arrived time.Time, ok bool) {
	if !c.Idle(time.Now()) {
		return arrived, false
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
		c.SetReadDeadline(time.Time{})
		if !c.fill() {
			return arrived, false
		}
	}
	c.settings = c.srv.settings.Load()
	return time.Now(), c.Busy()
}

// fill reads what has arrived behind what is buffered.
func (c *conn) fill() bool {
	if c.w == len(c.in) {
		if c.r > 0 {
			c.w = copy(c.in, c.in[c.r:c.w])
			c.r = 0
		} else {
			c.in = append(c.in, make([]byte, len(c.in))...)
		}
	}
	n, err := c.stream.Read(c.in[c.w:])
	c.w += n
	return n > 0 || err == nil
}

// readHeader reads the head of a packet.
func (c *conn) readHeader() (header, error) {
	for c.w-c.r < packetHeader {
		if !c.fill() {
			return header{}, errGone
		}
	}
	h, err := parseHeader(c.in[c.r:])
	c.r += packetHeader
	return h, err
}

var errTooLarge = errors.New("the request is much larger than limits.body")

// readMessage reads a whole message of at most this many bytes. Its body is good until the next one is read.
func (c *conn) readMessage(ctx context.Context, most int64) (m message, err error) {
	by := time.Now().Add(c.settings.Read)
	if end, ok := ctx.Deadline(); ok && end.Before(by) {
		by = end
	}
	c.SetReadDeadline(by)
	c.Moving(true)
	defer c.Moving(false)
	for first := true; ; first = false {
		h, err := c.readHeader()
		if err != nil {
			return m, err
		}
		if h.kind == packetAttention && !first { // the rest will not come
			m.kind, m.body = packetAttention, nil
			return m, nil
		}
		if !first && h.kind != m.kind {
			return m, errPacket
		}
		n := h.length - packetHeader
		if first {
			m.kind, m.reset = h.kind, h.status&(statusReset|statusResetSkip) != 0
			if h.status&statusEOM != 0 && n <= c.w-c.r {
				m.body, m.drop = c.in[c.r:c.r+n], h.status&statusIgnore != 0
				c.r += n
				return m, nil
			}
		}
		have := len(m.body)
		if int64(have+n) > most {
			return m, errTooLarge
		}
		if have+n > cap(m.body) {
			grown := max(2*cap(m.body), have+n)
			if err := c.Hold(ctx, by, c.srv.sessions.Weight(int64(grown)), int64(grown)); err != nil {
				return m, errGone
			}
			m.body = append(make([]byte, 0, grown), m.body...)
		}
		if m.body, err = c.readPayload(m.body, n); err != nil {
			return m, err
		}
		if h.status&statusEOM != 0 {
			m.drop = h.status&statusIgnore != 0
			return m, nil
		}
	}
}

// readPayload appends n bytes to dst, which has room for them.
func (c *conn) readPayload(dst []byte, n int) ([]byte, error) {
	buffered := min(n, c.w-c.r)
	dst = append(dst, c.in[c.r:c.r+buffered]...)
	c.r += buffered
	for n -= buffered; n > 0; {
		got, err := c.stream.Read(dst[len(dst) : len(dst)+n])
		dst = dst[:len(dst)+got]
		if n -= got; n > 0 && err != nil {
			return dst, errGone
		}
	}
	return dst, nil
}

// answer carries out a request and sends the answer. It returns false where the connection is to end.
func (c *conn) answer(ctx context.Context, arrived time.Time, m message) (goesOn bool) {
	c.t.b = c.t.b[:0]
	c.attention = false
	given := c.granted
	c.granted = lock{}
	if m.reset {
		c.t.envReset()
	}
	goesOn = true
	switch {
	case m.kind == packetAttention:
		// The answer that gave a lock came too late for the client.
		c.takeBack(given)
		c.t.done(tokenDone, doneAttention, didNothing, 0)
	case m.drop:
		c.t.done(tokenDone, doneError, didNothing, 0)
	case m.kind == packetRPC || m.kind == packetBatch:
		r := &run{conn: c, ctx: ctx, ask: server.Request{Arrived: arrived, Client: c.client, Watch: c.watch, Conn: c.Conn}}
		var err error
		if m.kind == packetRPC {
			err = r.rpc(m.body)
		} else {
			err = r.batch(m.body)
		}
		if err != nil { // there is no answer
			if c.attention {
				break
			}
			goesOn = false
			c.t.b = c.t.b[:0]
			why := "the store is failing"
			if errors.Is(err, server.ErrUnreadable) {
				why = "the session's item cannot be given out, the log says why"
			}
			c.t.fail(errorf(50000, 20, "%s: %s; the connection is closed so that no session is taken for missing", serverName, why), "")
			c.t.done(tokenDone, doneError, didNothing, 0)
		}
	case m.kind == packetTransaction:
		c.refuse(errorf(3930, 16, "%s", onlyProcedures("Transactions are not served.")))
	case m.kind == packetBulk:
		c.refuse(errorf(4834, 16, "%s", onlyProcedures("Bulk loads are not served.")))
	default: // PRELOGIN or LOGIN7 in the midst of a connection
		return false
	}
	if c.attention {
		c.r += packetHeader // the ATTENTION, which was only looked at
		c.takeBack(c.granted)
		c.t.b = c.t.b[:0]
		if m.reset {
			c.t.envReset()
		}
		c.t.done(tokenDone, doneAttention, didNothing, 0)
	}
	c.t.end()
	c.Free()
	if c.Retried() { // the store may have what came in c.in still
		fresh := make([]byte, len(c.in))
		c.r, c.w = 0, copy(fresh, c.in[c.r:c.w])
		c.in = fresh
	}
	return c.write(ctx) && goesOn
}

// refuse answers with nothing but an error.
func (c *conn) refuse(e *sqlError) {
	c.t.fail(e, "")
	c.t.done(tokenDone, doneError, didNothing, 0)
}

// takeBack releases a lock of which the client has not heard.
func (c *conn) takeBack(l lock) {
	if l.cookie > 0 {
		c.srv.sessions.ReleaseLater(l.session, l.cookie)
	}
}

// write sends the answer. A lock that the client cannot have heard of is released.
func (c *conn) write(ctx context.Context) bool {
	err := c.send(ctx, time.Now().Add(c.settings.Write))
	if err != nil {
		c.takeBack(c.granted)
	}
	if cap(c.t.b) > keepOutput {
		c.t.b, c.out = nil, nil
	}
	return err == nil
}

func (c *conn) send(ctx context.Context, by time.Time) error {
	if len(c.t.b) > readBuffer {
		defer c.Free()
		size := 2 * int64(len(c.t.b)) // it is copied into packets
		if err := c.Hold(ctx, by, size, size); err != nil {
			return err
		}
		c.Moving(true)
		defer c.Moving(false)
	}
	c.SetWriteDeadline(by)
	c.out = appendMessage(c.out[:0], packetReply, c.packetSize, c.t.b)
	defer c.Answer()()
	_, err := c.stream.Write(c.out)
	return err
}

// watch waits, while a request waits for a lock, for the client to give the request up (ATTENTION), or the connection. What
// else arrives meanwhile is kept for the next request.
func (c *conn) watch() (gone <-chan struct{}, stop func()) {
	closed, ended := make(chan struct{}), make(chan struct{})
	c.SetReadDeadline(time.Time{})
	go func() {
		defer close(ended)
		for c.w-c.r < packetHeader {
			if !c.fill() {
				if !c.stopped.Load() {
					close(closed)
				}
				return
			}
		}
		if packetType(c.in[c.r]) == packetAttention {
			c.attention = true
			close(closed)
		}
	}()
	return closed, func() {
		c.stopped.Store(true)
		c.SetReadDeadline(longAgo)
		<-ended
		c.stopped.Store(false)
	}
}

// longAgo is a deadline that ends a read at once.
var longAgo = time.Unix(1, 0)
