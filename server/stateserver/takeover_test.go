package stateserver

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

// succession is an old state server and the one that takes its sessions over.
func succession(t *testing.T) (old, next *rig) {
	t.Helper()
	old, next = start(t, memory.New(0), 5*time.Second), start(t, memory.New(0), 5*time.Second)
	next.sessions.TakeOver(old.address, Other{old.address})
	return old, next
}

func TestTakeOver(t *testing.T) {
	old, next := succession(t)
	before, c := old.dial(t), next.dial(t)

	// What is there comes here, once, and is gone there.
	target := newTarget()
	a, err := before.SetUninitialized(target, []byte("cart"), 40*time.Minute)
	want(t, 200, a, err)
	a, err = c.GetExclusive(target)
	if want(t, 200, a, err); string(a.Body) != "cart" || a.Timeout != 40*time.Minute || a.ActionFlags != 1 || a.LockCookie != 3 {
		t.Errorf("taken over as %+v", a)
	}
	gone, err := before.Get(target)
	want(t, 404, gone, err)
	a, err = c.Set(target, []byte("more"), 20*time.Minute, a.LockCookie)
	want(t, 200, a, err)
	a, err = c.Remove(target, 0)
	want(t, 200, a, err)
	a, err = c.Get(target)
	want(t, 404, a, err)

	// A page that still runs with the old server keeps its lock.
	target = newTarget()
	a, err = before.Set(target, []byte("cart"), 20*time.Minute, 0)
	want(t, 200, a, err)
	lock, err := before.GetExclusive(target)
	want(t, 200, lock, err)
	for range 2 {
		a, err = c.GetExclusive(target)
		if want(t, 423, a, err); a.LockCookie != lock.LockCookie {
			t.Errorf("locked with cookie %d, want %d", a.LockCookie, lock.LockCookie)
		}
	}
	a, err = c.ResetTimeout(target)
	want(t, 200, a, err)
	a, err = c.Set(target, []byte("stranger's"), 20*time.Minute, lock.LockCookie+5)
	want(t, 423, a, err)
	// And ends it here, where its web server has been sent meanwhile.
	a, err = c.Set(target, []byte("done"), 20*time.Minute, lock.LockCookie)
	want(t, 200, a, err)
	a, err = c.Get(target)
	if want(t, 200, a, err); string(a.Body) != "done" {
		t.Errorf("the session is %q, want done", a.Body)
	}

	// What is nowhere is missing, and what begins here stays here.
	target = newTarget()
	a, err = c.GetExclusive(target)
	want(t, 404, a, err)
	a, err = c.Set(target, []byte("new"), 20*time.Minute, 0)
	want(t, 200, a, err)
	gone, err = before.Get(target)
	want(t, 404, gone, err)
	if taken, missed, last, ok := next.sessions.TakenOver(); taken != 2 || missed == 0 || !ok || time.Since(last) > time.Minute {
		t.Errorf("%d sessions taken over, %d missed, want 2 and some", taken, missed)
	}
}

// An old server that does not answer has the page fail. "Missing" would lose the session.
func TestTakeOverFromNobody(t *testing.T) {
	next := start(t, memory.New(0), 300*time.Millisecond)
	next.sessions.TakeOver("nobody", Other{"127.0.0.1:1"})
	if a, err := next.dial(t).Get(newTarget()); err == nil {
		t.Errorf("answered %d", a.Status)
	}
	next.sessions.TakeOver("", nil)
	a, err := next.dial(t).Get(newTarget())
	want(t, 404, a, err)
}

// Many pages count in sessions that are all with the old server, and none is lost.
func TestTakeOverUnderLoad(t *testing.T) {
	old, next := succession(t)
	next.sessions.SetLockWait(time.Second)
	before := old.dial(t)
	const sessions, workers, pages = 50, 6, 300
	var targets [sessions]string
	var counted [sessions]atomic.Int64
	for i := range targets {
		targets[i] = client.Target("/LM/W3SVC/1/ROOT", transcript.NewID())
		a, err := before.Set(targets[i], []byte{0, 0, 0, 0}, 20*time.Minute, 0)
		want(t, 200, a, err)
	}
	var wg sync.WaitGroup
	for worker := range workers {
		c := next.dial(t)
		wg.Go(func() {
			for page := range pages {
				i := (page + worker*7) % sessions
				a, err := c.GetExclusive(targets[i])
				if err != nil || a.Status != 200 && a.Status != 423 {
					t.Errorf("get exclusive is answered %d, %v", a.Status, err)
					return
				}
				if a.Status == 423 {
					continue
				}
				next := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a.Body)+1)
				if a, err = c.Set(targets[i], next, 20*time.Minute, a.LockCookie); err != nil || a.Status != 200 {
					t.Errorf("set is answered %d, %v", a.Status, err)
					return
				}
				counted[i].Add(1)
			}
		})
	}
	wg.Wait()
	c := next.dial(t)
	for i := range targets {
		a, err := c.Get(targets[i])
		if want(t, 200, a, err); int64(binary.BigEndian.Uint32(a.Body)) != counted[i].Load() {
			t.Errorf("session %d counts %d, want %d", i, binary.BigEndian.Uint32(a.Body), counted[i].Load())
		}
	}
	if taken, _, _, _ := next.sessions.TakenOver(); taken != sessions {
		t.Errorf("%d sessions were taken over, want %d", taken, sessions)
	}
}

// A lender may answer what no state server should.
func TestTakeOverFromOddServer(t *testing.T) {
	for answer, missing := range map[string]bool{
		"200 OK\r\nContent-Length: 0\r\n\r\n":                                       false,
		"200 OK\r\nContent-Length: 1\r\nLockCookie: 0\r\nTimeout: 20\r\n\r\nx":      false,
		"200 OK\r\nContent-Length: 1\r\nLockCookie: 99999999999\r\n\r\nx":           false,
		"500 Oops\r\nContent-Length: 0\r\n\r\n":                                     false,
		"nonsense\r\n\r\n":                                                          false,
		"404 Not Found\r\nX-AspNet-Version: 4.0.30319\r\nContent-Length: 0\r\n\r\n": true,
	} {
		t.Run(strconv.Quote(strings.SplitN(answer, "\r\n", 2)[0]), func(t *testing.T) {
			item, err := Other{says(t, answer)}.GetExclusive(t.Context(), session(newTarget()))
			if errors.Is(err, backends.ErrNotFound) != missing || err == nil {
				t.Errorf("got %+v, %v", item, err)
			}
		})
	}
}

func session(target string) server.Session { return server.Session{Target: target} }

// says starts a server that answers every connection so.
func says(t *testing.T, answer string) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				bufio.NewReader(c).ReadString('\n')
				io.WriteString(c, answer)
			}()
		}
	}()
	return ln.Addr().String()
}
