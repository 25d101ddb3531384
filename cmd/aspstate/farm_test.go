//go:build unix

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

// farm is a number of servers on one database, as a farm has them.
func farm(t *testing.T, servers int, database string, args ...string) (addresses []string) {
	t.Helper()
	for range servers {
		args := append([]string{"--auto-migrate", "--sql-connection-string=" + database}, args...)
		addresses = append(addresses, start(t, args...).address)
	}
	return addresses
}

// Several servers on one database, directly and through a pooler, answer as one: the transcripts are
// played with each connection to another server, and pages that count visits under the lock lose none.
func TestFarm(t *testing.T) {
	server := pgtest.Shared(t)
	pooler := server.Bouncer(t)
	for _, servers := range []int{1, 2, 3} {
		for _, pooled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d servers, pooled %v", servers, pooled), func(t *testing.T) {
				database := server.Database(t)
				if pooled {
					database = through(t, database, pooler)
				}
				addresses := farm(t, servers, database, "--lock-wait=0s")
				next := 0
				playTranscripts(t, func() (net.Conn, error) {
					next++
					return net.Dial("tcp", addresses[next%servers])
				})
				v := newVisits(t, addresses, 16, 4)
				v.wait(400)
				v.check(t)
			})
		}
	}
}

// through returns the connection string of a database through a pooler.
func through(t *testing.T, database string, port int) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return u.String()
}

// A database that crashes and comes back within the budget costs nobody a page, and no visit.
func TestFarmThroughCrashesOfItsDatabase(t *testing.T) {
	server := pgtest.New(t)
	addresses := farm(t, 2, server.Database(t), "--request-budget=100s") // a busy machine takes its time to bring a database back
	v := newVisits(t, addresses, 16, 8)
	for range 2 {
		v.wait(v.made.Load() + 200)
		server.StopImmediately()
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	v.wait(v.made.Load() + 200)
	v.check(t)
}

// visits are clients that count in sessions, each page under the session's lock.
type visits struct {
	addresses []string
	targets   []string
	made      atomic.Int64 // acknowledged, in all
	errors    atomic.Int64
	firstErr  atomic.Value
	more      *sync.Cond
	end       chan struct{}
	clients   sync.WaitGroup
}

// newVisits starts clients, spread over the servers, that visit sessions until check.
func newVisits(t *testing.T, addresses []string, clients, sessions int) *visits {
	t.Helper()
	v := &visits{addresses: addresses, end: make(chan struct{}), more: sync.NewCond(new(sync.Mutex))}
	for range sessions {
		target := client.Target("/LM/W3SVC/1/ROOT", transcript.NewID())
		wantStatus(t, 200)(v.dial(t, 0).Set(target, make([]byte, 8), 20*time.Minute, 0))
		v.targets = append(v.targets, target)
	}
	for i := range clients {
		c := v.dial(t, i)
		v.clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-v.end:
					return
				default:
				}
				if err := visit(c, v.targets[(i+n)%len(v.targets)]); err != nil {
					v.firstErr.CompareAndSwap(nil, fmt.Errorf("client %d: %w", i, err))
					v.count(&v.errors)
					return
				}
				v.count(&v.made)
			}
		})
	}
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-v.end:
		default:
			close(v.end)
		}
	}))
	return v
}

// count adds one and wakes who waits for it.
func (v *visits) count(n *atomic.Int64) {
	v.more.L.Lock()
	defer v.more.L.Unlock()
	n.Add(1)
	v.more.Broadcast()
}

func (v *visits) dial(t *testing.T, i int) *client.Conn {
	t.Helper()
	c, err := client.Dial(v.addresses[i%len(v.addresses)])
	if err != nil {
		t.Fatal(err)
	}
	c.Timeout = 2 * time.Minute // longer than any budget
	t.Cleanup(func() { c.Close() })
	return c
}

// visit is a page: it locks the session, polling as long as it must, adds one and writes it back.
func visit(c *client.Conn, target string) error {
	for {
		a, err := c.GetExclusive(target)
		if err != nil {
			return err
		}
		if a.Status == 423 {
			continue
		}
		if a.Status != 200 || len(a.Body) != 8 {
			return fmt.Errorf("get exclusive: %s, %d bytes", a.StatusLine, len(a.Body))
		}
		n := binary.LittleEndian.Uint64(a.Body)
		a, err = c.Set(target, binary.LittleEndian.AppendUint64(nil, n+1), 20*time.Minute, a.LockCookie)
		if err != nil || a.Status != 200 {
			return fmt.Errorf("set: %s, %w", a.StatusLine, err)
		}
		return nil
	}
}

// wait returns when that many visits were made, or a client has failed.
func (v *visits) wait(made int64) {
	v.more.L.Lock()
	defer v.more.L.Unlock()
	for v.made.Load() < made && v.errors.Load() == 0 {
		v.more.Wait()
	}
}

// check ends the visits and compares what the sessions have counted.
func (v *visits) check(t *testing.T) {
	t.Helper()
	close(v.end)
	v.clients.Wait()
	if err := v.firstErr.Load(); err != nil {
		t.Errorf("%d clients failed, the first: %v", v.errors.Load(), err)
	}
	total := int64(0)
	for _, target := range v.targets {
		a := wantStatus(t, 200)(v.dial(t, 0).Get(target))
		total += int64(binary.LittleEndian.Uint64(a.Body))
	}
	if made := v.made.Load(); total != made {
		t.Errorf("the sessions count %d visits, %d were made", total, made)
	}
	t.Logf("%d visits", v.made.Load())
}
