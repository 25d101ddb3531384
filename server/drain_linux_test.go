package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// In a shutdown a connection that has just been made, and one that waits for its next request, are answered once
// more.
func TestLastCall(t *testing.T) {
	e := startEcho(t, 0)
	close(e.gate)
	used, fresh := e.dial(t), e.dial(t)
	if !say(used) {
		t.Fatal("no answer")
	}
	e.idle(t, 2)
	done := make(chan error, 1)
	go func() { done <- e.Shutdown(context.Background()) }()
	eventually(t, e.closing.Load)
	for name, c := range map[string]net.Conn{"used": used, "fresh": fresh} {
		if !say(c) {
			t.Errorf("the %s connection was not answered", name)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who reads the last answer of a connection sees in the same moment that the connection has ended.
func TestLastAnswerBringsTheEnd(t *testing.T) {
	for range 50 {
		e := startEcho(t, 0)
		c := e.dial(t)
		io.WriteString(c, "hello\n")
		e.inFlight(t, 1)
		go e.Shutdown(context.Background())
		eventually(t, e.closing.Load)
		close(e.gate)
		if line, err := bufio.NewReaderSize(c, 16).ReadString('\n'); line != "hello\n" {
			t.Fatalf("answer %q, %v", line, err)
		}
		if !over(c) {
			t.Fatal("the connection looks as if it could be used again")
		}
	}
}

// over reports whether the end has arrived, without waiting for it.
func over(c net.Conn) bool {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	raw.Read(func(fd uintptr) bool {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ended = n == 0 && err == nil
		return true
	})
	return ended
}

func TestIdleConnectionsEnd(t *testing.T) {
	e := startEcho(t, 0)
	c := e.dial(t)
	e.idle(t, 1)
	begun := time.Now()
	if err := e.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < lastCall || took > 5*time.Second {
		t.Errorf("the shutdown took %v", took)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v", n, err)
	}
}

// A sign of life ends with the front end, and is no connection.
func TestAlive(t *testing.T) {
	e := startEcho(t, 1)
	e.Alive()
	if got := e.Traffic().Accepted[StateServer].Load(); got != 0 {
		t.Errorf("%d connections counted", got)
	}
	hang := make(chan struct{})
	hung := &Server{Handle: func(context.Context, *Conn) { <-hang }}
	returned := make(chan struct{})
	go func() {
		hung.Alive()
		close(returned)
	}()
	select {
	case <-returned:
		t.Error("a front end that hangs is alive")
	case <-time.After(20 * time.Millisecond):
	}
	close(hang)
	<-returned
}
