package stateserver

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
	"aspstate/server"
)

// Each request is counted once, with what it asked for and how it was answered.
func TestRequestsAreCounted(t *testing.T) {
	store := &backendtest.Failing{Store: memory.New(0)}
	r := start(t, store, 300*time.Millisecond)
	c := r.dial(t)
	target, data := newTarget(), []byte("some data")
	c.SetUninitialized(target, data, time.Minute)
	c.Get(target)
	locked, _ := c.GetExclusive(target)
	c.GetExclusive(target)
	c.Release(target, locked.LockCookie)
	c.Set(target, data, time.Minute, 0)
	c.Set(target, nil, time.Minute, 0)
	c.ResetTimeout(target)
	c.Remove(target, 0)
	c.Get(target)
	odd := r.dial(t)
	io.WriteString(odd, "\x16\x03\x01 hello\r\n\r\n")
	io.Copy(io.Discard, odd)
	store.Fail(func(context.Context, string, func() error) error { return backendtest.ErrDown })
	c.Get(target)

	want := map[string]uint64{
		"set_uninitialized ok": 1, "get ok": 1, "get_exclusive ok": 1, "get_exclusive locked": 1, "release ok": 1, "set ok": 1, "set bad_request": 1,
		"reset_timeout ok": 1, "remove ok": 1, "get not_found": 1, "unreadable bad_request": 1, "get none": 1,
	}
	m := r.sessions.Metrics
	for op := range server.Operations {
		var all uint64
		for a := range server.Answers {
			name := server.Operation(op).String() + " " + server.Answer(a).String()
			if got := m.Requests[server.StateServer][op][a].Load(); got != want[name] {
				t.Errorf("%s: %d, want %d", name, got, want[name])
			}
			all += want[name]
		}
		var timed uint64
		for _, n := range m.Latency[server.StateServer][op].Counts() {
			timed += n
		}
		if timed != all {
			t.Errorf("%v: the time of %d requests, want %d", server.Operation(op), timed, all)
		}
	}
	if took := time.Duration(m.Latency[server.StateServer][server.OpGet].Sum()); took < 50*time.Millisecond || took > 10*time.Second {
		t.Errorf("the gets, of which one was retried for the budget of 300 ms, took %v together", took)
	}
	// Bodies of 9 bytes came twice, besides an empty one, and left twice.
	if got, want := m.Received.Sum(), int64(2*len(data)); got != want {
		t.Errorf("%d bytes of items received, want %d", got, want)
	}
	if got, want := m.Sent.Sum(), int64(2*len(data)); got != want {
		t.Errorf("%d bytes of items sent, want %d", got, want)
	}
	if m.Created.Load() != 2 || m.Abandoned.Load() != 1 || m.GivenUp.Load() != 1 {
		t.Errorf("%d created, %d abandoned, %d given up", m.Created.Load(), m.Abandoned.Load(), m.GivenUp.Load())
	}
}

// Bytes are counted as they pass the socket, items in one piece or two.
func TestTrafficIsCounted(t *testing.T) {
	r := start(t, memory.New(0), 8*time.Second)
	c := r.dial(t)
	target := newTarget()
	for _, size := range []int{100, 3 * smallAnswer} {
		before, sent := r.tcp.Traffic().Received.Load(), r.tcp.Traffic().Sent.Load()
		body := strings.Repeat("x", size)
		a, err := c.Set(target, []byte(body), time.Minute, 0)
		want(t, 200, a, err)
		if got := r.tcp.Traffic().Received.Load() - before; got < uint64(size+50) || got > uint64(size+500) {
			t.Errorf("an item of %d bytes came with %d bytes", size, got)
		}
		a, err = c.Get(target)
		want(t, 200, a, err)
		waitFor(t, "count", func() bool { // it is taken after the write
			got := r.tcp.Traffic().Sent.Load() - sent
			return got > uint64(size+100) && got < uint64(size+1000)
		})
	}
	if n := r.tcp.Traffic().Accepted[server.StateServer].Load(); n != 1 {
		t.Errorf("%d connections accepted", n)
	}
}
