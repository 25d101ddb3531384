package stateserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"aspstate/server"
)

const (
	// readBuffer is what a request is read into: its head and the beginning of its body, most often all of it.
	readBuffer = 16 << 10
	// waitBuffer is what a connection reads into that cannot be asked whether anything has arrived.
	waitBuffer = 4 << 10
	// smallBody is the largest item that is not counted in limits.bodiesInFlight.
	smallBody = 4 << 10
	// bodyStep is how much of a body is set aside before any of it has arrived.
	// The rest grows with what arrives, whatever length was announced.
	bodyStep = 64 << 10
	// smallAnswer is the largest item that is copied behind its head, so that both
	// leave in one write; larger ones are written from where they are.
	smallAnswer = 32 << 10
)

// Connections that wait for a request hold no buffers. inputs are for requests, buffers for answers and for items that do not
// fit in an input.
var (
	inputs = sync.Pool{New: func() any {
		b := make([]byte, readBuffer)
		return &b
	}}
	buffers = sync.Pool{New: func() any {
		b := make([]byte, smallAnswer+1<<10) // and a head
		return &b
	}}
)

// ids makes strings of session IDs, many in one piece of memory.
type ids struct{ free []byte }

func (i *ids) string(id []byte) string {
	if len(id) > len(i.free) {
		i.free = make([]byte, max(256, len(id)))
	}
	n := copy(i.free, id)
	s := unsafe.String(unsafe.SliceData(i.free), n) // nobody writes there again
	i.free = i.free[n:]
	return s
}

// conn reads requests from one connection and writes their answers, one at a
// time, in the order in which they came.
type conn struct {
	*server.Conn
	srv      *Server
	client   netip.Addr
	settings *Settings // of the request under way

	in       []byte // in[r:w] has arrived and is not consumed
	r, w     int
	input    *[]byte // of inputs, which in is then; nil for none
	borrowed *[]byte // of buffers, for an item on its way in; nil for none
	ids      ids
	watcher  func() (gone <-chan struct{}, stop func()) // watch

	readBy, writeBy time.Time   // the deadlines that are set
	stopped         atomic.Bool // watching is over
}

// serve handles the connection until it ends.
func (c *conn) serve(ctx context.Context) {
	for {
		arrived, ok := c.awaitRequest()
		if !ok {
			return
		}
		var req request
		resp, session, err := c.readRequest(ctx, server.Request{Arrived: arrived, Client: c.client, Watch: c.watcher, Conn: c.Conn}, &req)
		if err != nil {
			return
		}
		now := time.Now()
		c.srv.sessions.Metrics.Request(server.StateServer, req.operation(), resp.counted(), now.Sub(arrived))
		if resp.noAnswer || !c.write(ctx, now, &resp, session) || resp.closeAfter {
			if resp.closeAfter {
				c.linger()
			}
			return
		}
	}
}

// awaitRequest waits, idle, until a request has begun.
func (c *conn) awaitRequest() (arrived time.Time, ok bool) {
	now := time.Now()
	c.settings = c.srv.settings.Load()
	if !c.Idle(now) {
		return now, false
	}
	c.skipLineEnds()
	pipelined := c.r < c.w
	if !pipelined {
		c.r, c.w = 0, 0
		if c.input == nil && len(c.in) > waitBuffer {
			c.in = nil // an unusually long head is over
		}
		// Setting a deadline costs about as much as parsing a request: an idle time
		// that is up to a quarter short will do.
		if want := now.Add(c.settings.Idle); c.readBy.Before(now.Add(c.settings.Idle/4*3)) || c.readBy.After(want) {
			c.setReadDeadline(want)
		}
		if !c.fill() {
			return now, false
		}
		now = time.Now()
		c.settings = c.srv.settings.Load() // they may have changed meanwhile
	}
	if pipelined {
		time.Sleep(pipelinedEvery)
		now = time.Now()
	}
	return now, c.Busy()
}

// pipelinedEvery is how long a request waits that was sent before the last was answered. Web servers send none: it is
// the turn of others.
const pipelinedEvery = 10 * time.Millisecond

// fill reads what has arrived behind what is buffered.
func (c *conn) fill() bool {
	n, err := c.ReadInto(c)
	c.w += n
	return n > 0 || err == nil
}

// Lend implements server.Space.
func (c *conn) Lend(waits bool) []byte {
	if !waits && c.input == nil && c.w-c.r < readBuffer {
		c.input = inputs.Get().(*[]byte)
		c.w = copy(*c.input, c.in[c.r:c.w])
		c.in, c.r = *c.input, 0
	}
	if c.w == len(c.in) && c.r > 0 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	} else if c.w == len(c.in) {
		c.grow()
	}
	return c.in[c.w:]
}

// grow makes room behind a buffer that is full.
func (c *conn) grow() {
	larger := make([]byte, max(waitBuffer, 2*len(c.in)))
	copy(larger, c.in)
	c.in = larger
	c.returnInput()
}

// Rest implements server.Space.
func (c *conn) Rest() {
	if c.input == nil {
		return
	}
	c.in = bytes.Clone(c.in[c.r:c.w])
	c.r, c.w = 0, len(c.in)
	c.returnInput()
}

// returnInput has the buffer used again that in is no more.
func (c *conn) returnInput() {
	if c.input != nil {
		inputs.Put(c.input)
		c.input = nil
	}
}

// skipLineEnds passes over line ends between requests, which some clients send.
func (c *conn) skipLineEnds() {
	for c.r < c.w && (c.in[c.r] == '\r' || c.in[c.r] == '\n') {
		c.r++
	}
}

// readHead waits for a whole head and parses it. The head is consumed.
func (c *conn) readHead(arrived time.Time, req *request) error {
	for {
		c.skipLineEnds()
		buf := c.in[c.r:c.w]
		if len(buf) > 0 && (buf[0] < 'A' || buf[0] > 'Z') {
			return errVerb // TLS, or no text at all: no need to wait for a line's end
		}
		n, err := findHead(buf, c.settings.RequestLine, c.settings.Headers)
		if err != nil {
			return err
		}
		if n > 0 {
			c.r += n
			return parseHead(buf[:n], req)
		}
		c.setReadDeadline(arrived.Add(c.settings.ReadHead))
		if !c.fill() {
			return errGone
		}
	}
}

// errGone says that the client closed the connection, or took too long.
var errGone = errors.New("connection ended within a request")

// body reads a body of n bytes. The slice is good until the next request is read; what it takes of the memory for
// items is held until Free.
func (c *conn) body(ctx context.Context, n int64) (body []byte, err error) {
	buffered := func() []byte {
		body := c.in[c.r : c.r+int(n)]
		c.r += int(n)
		return body
	}
	here := n <= min(int64(c.w-c.r), smallAnswer)
	if here && n <= smallBody {
		return buffered(), nil
	}
	by := time.Now().Add(c.settings.ReadBody)
	if n <= smallAnswer {
		if err := c.Hold(ctx, by, c.srv.sessions.Weight(n), n); err != nil {
			return nil, err
		}
	}
	if here {
		return buffered(), nil
	}
	c.setReadDeadline(by)
	c.Moving(true)
	defer c.Moving(false)
	if n <= smallAnswer {
		c.borrowed = buffers.Get().(*[]byte)
		body = (*c.borrowed)[:n]
		buffered := c.take(body)
		if _, err := io.ReadFull(c.Conn, body[buffered:]); err != nil {
			return nil, errGone
		}
		return body, nil
	}
	for int64(len(body)) < n {
		step := min(n-int64(len(body)), int64(max(bodyStep, len(body))))
		if err := c.Hold(ctx, by, c.srv.sessions.Weight(int64(len(body))+step), n); err != nil {
			return nil, err
		}
		have := len(body)
		grown := make([]byte, int64(have)+step)
		copy(grown, body)
		body = grown
		buffered := c.take(body[have:])
		if _, err := io.ReadFull(c.Conn, body[have+buffered:]); err != nil {
			return nil, errGone
		}
	}
	return body, nil
}

// take copies what is buffered of a body that has not arrived whole.
func (c *conn) take(body []byte) int {
	n := copy(body, c.in[c.r:c.w])
	if c.r += n; c.r == c.w {
		c.Rest() // until the rest is there
	}
	return n
}

// returnBuffers has the buffers that an item came in used again, if the store is done with them. It may have an item still
// after a failure, and while an earlier try of the same request is under way.
func (c *conn) returnBuffers(done bool) {
	if !done {
		c.in = bytes.Clone(c.in[c.r:c.w])
		c.r, c.w, c.input = 0, len(c.in), nil
	} else if c.borrowed != nil {
		buffers.Put(c.borrowed)
	}
	c.borrowed = nil
}

// discard reads n bytes and forgets them.
func (c *conn) discard(n int64) error {
	buffered := min(n, int64(c.w-c.r))
	c.r += int(buffered)
	if n -= buffered; n == 0 {
		return nil
	}
	c.setReadDeadline(time.Now().Add(c.settings.ReadBody))
	c.r, c.w = 0, 0
	for n > 0 {
		got, err := c.Read(c.in[:min(n, int64(len(c.in)))])
		n -= int64(got)
		if n > 0 && err != nil {
			return errGone
		}
	}
	return nil
}

// write sends an answer. A lock that the client cannot have heard of is released.
func (c *conn) write(ctx context.Context, now time.Time, resp *response, session server.Session) bool {
	err := c.send(ctx, now, resp)
	if err != nil && resp.lockCookie > 0 {
		c.srv.sessions.ReleaseLater(session, resp.lockCookie)
	}
	return err == nil
}

func (c *conn) send(ctx context.Context, now time.Time, resp *response) error {
	if c.writeBy.Before(now.Add(c.settings.Write)) {
		c.writeBy = now.Add(2 * c.settings.Write)
		c.SetWriteDeadline(c.writeBy)
	}
	defer c.Free()
	if len(resp.data) > smallBody {
		if err := c.Hold(ctx, c.writeBy, int64(len(resp.data)), int64(len(resp.data))); err != nil {
			return err
		}
		c.Moving(true)
		defer c.Moving(false)
	}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	out := resp.appendTo((*buffer)[:0], &c.srv.heads)
	defer c.Answer()()
	if len(resp.data) > 0 {
		c.srv.sessions.Metrics.Sent.Observe(int64(len(resp.data)))
	}
	if len(resp.data) <= smallAnswer {
		_, err := c.Write(append(out, resp.data...))
		return err
	}
	return c.WriteBoth(out, resp.data)
}

// linger lets the client read a last answer: closing with unread bytes in the
// socket would reset the connection and take the answer with it.
func (c *conn) linger() {
	if half, ok := c.Conn.Conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	c.setReadDeadline(time.Now().Add(lingerFor))
	for rest := maxLinger; rest > 0; {
		c.r, c.w = 0, 0
		n, err := c.ReadInto(c)
		if rest -= n; err != nil {
			return
		}
	}
}

const (
	lingerFor = time.Second
	maxLinger = 1 << 20 // bytes
)

// watch waits for the client to close the connection while its request waits for a lock. What
// arrives meanwhile is kept for the next request.
func (c *conn) watch() (gone <-chan struct{}, stop func()) {
	closed, ended := make(chan struct{}), make(chan struct{})
	c.setReadDeadline(time.Time{})
	go func() {
		defer close(ended)
		if !c.fill() && !c.stopped.Load() {
			close(closed)
		}
	}()
	return closed, func() {
		c.stopped.Store(true)
		c.setReadDeadline(longAgo)
		<-ended
		c.stopped.Store(false)
	}
}

// longAgo is a deadline that ends a read at once.
var longAgo = time.Unix(1, 0)

func (c *conn) setReadDeadline(t time.Time) {
	if !c.readBy.Equal(t) {
		c.readBy = t
		c.SetReadDeadline(t)
	}
}
