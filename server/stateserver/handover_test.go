package stateserver

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"aspstate/backends/memory"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

// waitingRig is a server on which one session is locked with cookie 2, by a connection of its own.
func waitingRig(t *testing.T) (r *rig, target string, holder *client.Conn) {
	r = start(t, memory.New(0), 8*time.Second)
	r.sessions.SetLockWait(5 * time.Second)
	target = newTarget()
	holder = r.dial(t)
	a, err := holder.Set(target, []byte("first"), time.Minute, 0)
	want(t, 200, a, err)
	a, err = holder.GetExclusive(target)
	if want(t, 200, a, err).LockCookie != 2 {
		t.Fatalf("cookie %d", a.LockCookie)
	}
	return r, target, holder
}

func (r *rig) waiters(t *testing.T, n int) {
	t.Helper()
	waitFor(t, "waiters", func() bool { return r.sessions.Waiting() == n })
}

func TestLockIsHandedOver(t *testing.T) {
	r, target, holder := waitingRig(t)
	next := r.dial(t)
	type result struct {
		answer client.Answer
		err    error
	}
	got := make(chan result, 1)
	go func() {
		a, err := next.GetExclusive(target)
		got <- result{a, err}
	}()
	r.waiters(t, 1)
	a, err := holder.Set(target, []byte("second"), time.Minute, 2)
	want(t, 200, a, err)
	res := <-got
	if a := want(t, 200, res.answer, res.err); a.LockCookie != 3 || string(a.Body) != "second" {
		t.Errorf("got cookie %d and %q", a.LockCookie, a.Body)
	}
	// The connection serves on as before.
	a, err = next.Set(target, []byte("third"), time.Minute, 3)
	want(t, 200, a, err)
	a, err = next.Get(target)
	want(t, 200, a, err)
}

func TestWaiterThatHangsUpLeavesTheQueue(t *testing.T) {
	r, target, holder := waitingRig(t)
	gone := r.dial(t)
	io.WriteString(gone, "GET "+target+" HTTP/1.1\r\nExclusive: acquire\r\n\r\n")
	r.waiters(t, 1)
	gone.Close()
	r.waiters(t, 0)
	a, err := holder.Release(target, 2)
	want(t, 200, a, err)
	a, err = holder.GetExclusive(target)
	if want(t, 200, a, err).LockCookie != 3 {
		t.Errorf("the lock is %d: the one who hung up got a lock", a.LockCookie)
	}
}

// What a client sends while its request waits is answered afterwards, in order.
func TestRequestsBehindOneThatWaits(t *testing.T) {
	for name, late := range map[string]bool{"in one segment": false, "while it waits": true} {
		t.Run(name, func(t *testing.T) {
			r, target, holder := waitingRig(t)
			c := r.dial(t)
			first := "GET " + target + " HTTP/1.1\r\nExclusive: acquire\r\n\r\n"
			behind := "HEAD " + target + " HTTP/1.1\r\n\r\n" + "PUT " + target + " HTTP/1.1\r\nContent-Length: 5\r\nLockCookie: 3\r\n\r\nsec" + "GET " + target + " HTTP/1.1\r\n\r\n"
			cut := strings.Index(behind, "sec") + 3
			if late {
				io.WriteString(c, first)
				r.waiters(t, 1)
				io.WriteString(c, behind[:cut])
			} else {
				io.WriteString(c, first+behind[:cut])
				r.waiters(t, 1)
			}
			a, err := holder.Release(target, 2)
			want(t, 200, a, err)
			io.WriteString(c, "nd"+behind[cut:])
			in := bufio.NewReader(c)
			c.SetDeadline(time.Now().Add(10 * time.Second))
			for i, wanted := range []string{"200 OK\r\nX-AspNet-Version: 4.0.30319\r\nLockCookie: 3\r\n", "200 OK", "200 OK", "200 OK"} {
				answer, err := transcript.ReadAnswer(in)
				if err != nil || !strings.HasPrefix(string(answer), wanted) {
					t.Fatalf("answer %d is %q, %v", i, answer, err)
				}
				if i == 3 && !strings.HasSuffix(string(answer), "\r\n\r\nsecnd") {
					t.Errorf("the item is %q", answer)
				}
			}
		})
	}
}

func TestShutdownAnswersWaitersAtOnce(t *testing.T) {
	r, target, _ := waitingRig(t)
	c := r.dial(t)
	got := make(chan int, 1)
	go func() {
		a, _ := c.GetExclusive(target)
		got <- a.Status
	}()
	r.waiters(t, 1)
	r.sessions.Drain()
	if status := <-got; status != 423 {
		t.Errorf("answered %d, want 423", status)
	}
}
