package stateserver

import (
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
	"aspstate/server"
)

// A client that does not wait for its answers gets them, but not at the expense of others.
func TestPipelinedRequestsTakeTurns(t *testing.T) {
	const requests = 20
	for _, c := range []struct {
		name string
		send string // at once
		most time.Duration
		want int
	}{
		{"pipelined", strings.Repeat("HEAD /a/1 HTTP/1.1\r\n\r\n", requests), requests * pipelinedEvery, requests},
		{"one", "HEAD /a/1 HTTP/1.1\r\n\r\n", 0, 1},
		{"line ends", "HEAD /a/1 HTTP/1.1\r\n\r\n\r\n\r\n", 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				front := New(server.NewSessions(memory.New(0), time.Minute, discard), "", "4.0.30319", discard)
				srv := &server.Server{Handle: front.Handle, Log: discard}
				own, other := net.Pipe()
				ln := oneConn{make(chan net.Conn, 1), make(chan struct{})}
				ln.conn <- other
				go srv.Serve(ln)
				go io.WriteString(own, c.send)
				begun, got := time.Now(), 0
				buf := make([]byte, 4096)
				for got < c.want {
					n, err := own.Read(buf)
					if err != nil {
						t.Fatal(err)
					}
					got += strings.Count(string(buf[:n]), "404 Not Found")
				}
				if took := time.Since(begun); took > c.most || took < c.most-pipelinedEvery {
					t.Errorf("%d answers took %v, want about %v", got, took, c.most)
				}
				own.Close()
				close(ln.done)
			})
		})
	}
}

// Connections that wait for a request, as most do, hold no buffers.
func TestIdleConnectionsAreSmall(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has a connection wait with the memory that it reads into")
	}
	const conns, most = 300, 8 << 10
	r := start(t, memory.New(0), time.Second)
	put := []byte("PUT /a/1 HTTP/1.1\r\nContent-Length: 7000\r\n\r\n" + strings.Repeat("x", 7000))
	inUse := func() int64 {
		runtime.GC()
		runtime.GC() // buffers that nobody has asked for since the first are dropped
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := inUse()
	buf := make([]byte, 4096)
	for range conns {
		c, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write(put); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "200 OK") {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
	}
	if each := (inUse() - before) / conns; each > most {
		t.Errorf("a connection takes %d bytes of the heap while it waits, want at most %d", each, most)
	} else {
		t.Logf("a connection takes %d bytes of the heap while it waits, its client's half included", each)
	}
}

// Items that come together with their heads hold memory like those that come later, but for the smallest.
func TestItemsHoldMemoryWhileTheyAreStored(t *testing.T) {
	var held atomic.Int64
	store := &backendtest.Failing{Store: memory.New(0)}
	r := start(t, store, time.Second)
	r.tcp.LimitBodies(1 << 20)
	store.Fail(func(_ context.Context, op string, apply func() error) error {
		if op == "set" {
			held.Store(r.tcp.Held())
		}
		return apply()
	})
	c := r.dial(t)
	for _, size := range []int64{1, smallBody, smallBody + 1, 7000, readBuffer, smallAnswer, smallAnswer + 1} {
		want := size
		if size <= smallBody {
			want = 0
		}
		held.Store(-1)
		if a, err := c.Set(newTarget(), make([]byte, size), time.Minute, 0); err != nil || a.Status != 200 || held.Load() != want {
			t.Errorf("an item of %d bytes held %d while it was stored (%d, %v), want %d", size, held.Load(), a.Status, err, want)
		}
	}
}
