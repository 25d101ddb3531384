package stateserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

var address = flag.String("address", "", "play the transcripts against the state server at this address instead; the two with a session ID of their own want it without that session")

var discard = slog.New(slog.DiscardHandler)

// rig is a running server.
type rig struct {
	address  string
	tcp      *server.Server
	front    *Server
	sessions *server.Sessions
}

// start serves store on a free port until the end of the test.
func start(t testing.TB, store backends.Store, budget time.Duration) *rig {
	t.Helper()
	sessions := server.NewSessions(store, budget, discard)
	front := New(sessions, "", "4.0.30319", discard)
	tcp := &server.Server{Handle: front.Handle, Access: server.NewAccessList(discard), Log: discard}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { tcp.Serve(ln) })
	running.Go(func() { sessions.Run(ctx) })
	t.Cleanup(func() {
		drain, done := context.WithTimeout(context.Background(), 5*time.Second)
		defer done()
		if err := tcp.Shutdown(drain); err != nil {
			t.Error(err)
		}
		cancel()
		running.Wait()
		store.Close()
	})
	return &rig{address: ln.Addr().String(), tcp: tcp, front: front, sessions: sessions}
}

func (r *rig) dial(t testing.TB) *client.Conn {
	t.Helper()
	c, err := client.Dial(r.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func newTarget() string { return client.Target("/LM/W3SVC/1/ROOT", transcript.NewID()) }

// want fails the test unless the answer has this status.
func want(t testing.TB, status int, a client.Answer, err error) client.Answer {
	t.Helper()
	if err != nil || a.Status != status {
		t.Fatalf("answer %d %v, want %d", a.Status, err, status)
	}
	return a
}

func TestTranscripts(t *testing.T) {
	for name, text := range transcripts(t) {
		t.Run(name, func(t *testing.T) {
			to := *address
			if to == "" {
				to = start(t, memory.New(0), time.Second).address
			}
			steps, err := transcript.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := transcript.Play(steps, func() (net.Conn, error) { return net.Dial("tcp", to) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// Every way to cut a conversation into segments gives the same answers.
func TestRequestsInManySegments(t *testing.T) {
	r := start(t, memory.New(0), 5*time.Second)
	text := strings.ReplaceAll(transcripts(t)["pipelined"], "{any}", "0")
	var sent []byte
	wanted := ""
	steps, err := transcript.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		sent = append(sent, step.Send...)
		wanted += step.Want
	}
	for _, size := range []int{1, 2, 3, 7, 64, 300, len(sent)} {
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		conn.(*net.TCPConn).SetNoDelay(true)
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(size, len(rest))
				conn.Write(rest[:n])
				rest = rest[n:]
			}
		}()
		in := bufio.NewReader(conn)
		var got []byte
		for range strings.Count(wanted, "X-AspNet-Version") {
			answer, err := transcript.ReadAnswer(in)
			if err != nil {
				t.Fatalf("segments of %d: %v", size, err)
			}
			if i := bytes.Index(answer, []byte("LockDate: ")); i >= 0 { // the only number that varies
				end := i + bytes.IndexByte(answer[i:], '\r')
				answer = append(append(bytes.Clone(answer[:i]), "LockDate: 0"...), answer[end:]...)
			}
			got = append(got, answer...)
		}
		if string(got) != wanted {
			t.Errorf("segments of %d: got %q, want %q", size, got, wanted)
		}
		conn.Close()
	}
}

func TestGarbageDisturbsNobody(t *testing.T) {
	r := start(t, memory.New(0), time.Second)
	target := newTarget()
	c := r.dial(t)
	a, err := c.Set(target, []byte("kept"), time.Minute, 0)
	want(t, 200, a, err)
	for seed := range 200 {
		conn, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		noise := make([]byte, 1+seed*37)
		rng := uint32(seed)
		for i := range noise {
			rng = rng*1664525 + 1013904223
			noise[i] = byte(rng >> 24)
		}
		conn.Write(noise)
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		got, _ := io.ReadAll(conn)
		if len(got) > 0 && !bytes.HasPrefix(got, []byte("400 Bad Request\r\n")) {
			t.Fatalf("garbage was answered %q", got)
		}
		conn.Close()
		a, err := c.Get(target)
		if string(want(t, 200, a, err).Body) != "kept" {
			t.Fatalf("the session is %q", a.Body)
		}
	}
}

func TestLockOutlivesItsConnection(t *testing.T) {
	r := start(t, memory.New(0), time.Second)
	target := newTarget()
	a := r.dial(t)
	answer, err := a.Set(target, []byte("1"), time.Minute, 0)
	want(t, 200, answer, err)
	answer, err = a.GetExclusive(target)
	cookie := want(t, 200, answer, err).LockCookie
	a.Close()
	waitFor(t, "the connection's end", func() bool { return r.tcp.Connections() == 0 })
	answer, err = r.dial(t).GetExclusive(target)
	if want(t, 423, answer, err).LockCookie != cookie {
		t.Fatalf("locked with %d, want %d", answer.LockCookie, cookie)
	}
	answer, err = r.dial(t).Set(target, []byte("2"), time.Minute, cookie)
	want(t, 200, answer, err)
}

// waitFor waits until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestNoUpdateIsLost(t *testing.T) {
	const clients, sessions, rounds = 16, 4, 40
	r := start(t, memory.New(0), 5*time.Second)
	var targets [sessions]string
	for i := range targets {
		targets[i] = newTarget()
		a, err := r.dial(t).Set(targets[i], make([]byte, 8), time.Minute, 0)
		want(t, 200, a, err)
	}
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	for n := range clients {
		c := r.dial(t)
		wg.Go(func() {
			for i := range rounds {
				if err := increment(c, targets[(n+i)%sessions]); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	total := uint64(0)
	for _, target := range targets {
		a, err := r.dial(t).Get(target)
		total += binary.LittleEndian.Uint64(want(t, 200, a, err).Body)
	}
	if total != clients*rounds {
		t.Errorf("the counters add up to %d, want %d", total, clients*rounds)
	}
}

func increment(c *client.Conn, target string) error {
	for {
		a, err := c.GetExclusive(target)
		if err != nil {
			return err
		}
		if a.Status == 423 {
			continue
		}
		if a.Status != 200 {
			return fmt.Errorf("get exclusive: %s", a.StatusLine)
		}
		n := binary.LittleEndian.Uint64(a.Body)
		a, err = c.Set(target, binary.LittleEndian.AppendUint64(nil, n+1), time.Minute, a.LockCookie)
		if err != nil || a.Status != 200 {
			return fmt.Errorf("set: %s, %v", a.StatusLine, err)
		}
		return nil
	}
}
