package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// echo is a front end that answers each line with itself, once gate lets it.
type echo struct {
	*Server
	address string
	gate    chan struct{} // closed: answer at once
	atGate  atomic.Int32  // requests in flight
	serving sync.WaitGroup
	served  error
}

func startEcho(t *testing.T, limit int) *echo {
	e := &echo{gate: make(chan struct{})}
	log := slog.New(slog.DiscardHandler)
	e.Server = &Server{Access: NewAccessList(log), Log: log, Handle: func(ctx context.Context, c *Conn) {
		in := bufio.NewReader(c)
		for c.Idle(time.Now()) {
			line, err := in.ReadString('\n')
			if err != nil || !c.Busy() {
				return
			}
			e.atGate.Add(1)
			select {
			case <-e.gate:
			case <-ctx.Done():
				return
			}
			e.atGate.Add(-1)
			written := c.Answer()
			io.WriteString(c, line)
			written()
		}
	}}
	e.LimitConnections(limit)
	e.start(t)
	return e
}

// start has the front end serve on a free port until the end of the test.
func (e *echo) start(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.address = ln.Addr().String()
	e.serving.Go(func() { e.served = e.Serve(ln) })
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		e.Shutdown(ctx)
		e.serving.Wait()
	})
}

func (e *echo) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", e.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

// say sends a line and reports whether it came back.
func say(c net.Conn) bool {
	io.WriteString(c, "hello\n")
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line == "hello\n"
}

// inFlight waits until n requests are in flight.
func (e *echo) inFlight(t *testing.T, n int) {
	t.Helper()
	eventually(t, func() bool { return int(e.atGate.Load()) == n })
}

// idle waits until n connections are idle.
func (e *echo) idle(t *testing.T, n int) {
	t.Helper()
	eventually(t, func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		idle := 0
		for c := range e.conns {
			if c.since.Load() > connBusy {
				idle++
			}
		}
		return idle == n
	})
}

func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

func TestAtTheLimitTheLongestIdleConnectionMakesRoom(t *testing.T) {
	e := startEcho(t, 3)
	close(e.gate)
	first, second, third := e.dial(t), e.dial(t), e.dial(t)
	for _, c := range []net.Conn{second, first, third} { // second has been idle longest
		if !say(c) {
			t.Fatal("no answer below the limit")
		}
		e.idle(t, 3)
	}
	if !say(e.dial(t)) {
		t.Fatal("a fourth connection was not served")
	}
	if say(second) {
		t.Error("the connection idle longest is still open")
	}
	if !say(first) || !say(third) {
		t.Error("another connection was closed")
	}
}

func TestWithNoIdleConnectionANewOneIsRefused(t *testing.T) {
	e := startEcho(t, 2)
	busy := []net.Conn{e.dial(t), e.dial(t)}
	for _, c := range busy {
		io.WriteString(c, "hello\n")
	}
	e.inFlight(t, 2)
	if say(e.dial(t)) {
		t.Error("a third connection was served")
	}
	close(e.gate)
	for _, c := range busy {
		if line, _ := bufio.NewReader(c).ReadString('\n'); line != "hello\n" {
			t.Error("a busy connection was closed")
		}
	}
}

func TestShutdownAnswersWhatIsInFlight(t *testing.T) {
	e := startEcho(t, 0)
	idle, inFlight := e.dial(t), e.dial(t)
	io.WriteString(inFlight, "hello\n")
	e.inFlight(t, 1)
	e.idle(t, 1)
	done := make(chan error, 1)
	go func() { done <- e.Shutdown(context.Background()) }()
	if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection: %v, want its end", err)
	}
	if c, err := net.Dial("tcp", e.address); err == nil {
		c.Close()
		t.Error("a connection was accepted during the shutdown")
	}
	select {
	case err := <-done:
		t.Fatalf("shutdown ended (%v) with a request in flight", err)
	default:
	}
	close(e.gate)
	if line, _ := bufio.NewReader(inFlight).ReadString('\n'); line != "hello\n" {
		t.Error("the request in flight was not answered")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	e.serving.Wait()
	if !errors.Is(e.served, ErrServerClosed) {
		t.Errorf("Serve returned %v", e.served)
	}
}

func TestShutdownOutOfTimeCutsOff(t *testing.T) {
	e := startEcho(t, 0)
	c := e.dial(t)
	io.WriteString(c, "hello\n")
	e.inFlight(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := e.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the request was answered")
	}
	e.serving.Wait()
}
