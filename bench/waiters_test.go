//go:build unix

package bench

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"aspstate/backends/memory"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

// BenchmarkThousandWaiters tells how much of a processor 1,000 requests cost that wait for locks for
// 10 s, clients included: 25 for each of 40 sessions, from 20 addresses.
func BenchmarkThousandWaiters(b *testing.B) {
	const sessions, waiters, clients, wait = 40, 25, 20, 10 * time.Second
	for b.Loop() {
		address, all := serveSessions(b, memory.New(0), wait+2*time.Second)
		for s := range sessions {
			target := client.Target("/LM/W3SVC/1/ROOT", transcript.NewID())
			holder := dialFrom(b, address, 1)
			if _, err := holder.Set(target, make([]byte, 1<<10), 20*time.Minute, 0); err != nil {
				b.Fatal(err)
			}
			if _, err := holder.GetExclusive(target); err != nil {
				b.Fatal(err)
			}
			for w := range waiters {
				c := dialFrom(b, address, 1+(s*waiters+w)%clients)
				c.Timeout = time.Minute
				go c.GetExclusive(target)
			}
		}
		for begun := time.Now(); all.Waiting() < sessions*waiters; time.Sleep(time.Millisecond) {
			if time.Since(begun) > wait {
				b.Fatalf("%d requests wait", all.Waiting())
			}
		}
		before := processorTime(b)
		time.Sleep(wait)
		b.ReportMetric(100*float64(processorTime(b)-before)/float64(wait), "%core")
		if all.Waiting() == 0 {
			b.Fatal("nobody waits any more")
		}
	}
}

// dialFrom connects from 127.0.0.n.
func dialFrom(b *testing.B, address string, n int) *client.Conn {
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(n))}
	conn, err := (&net.Dialer{LocalAddr: from}).Dial("tcp", address)
	if err != nil {
		b.Fatal(fmt.Errorf("from %v: %w", from, err))
	}
	b.Cleanup(func() { conn.Close() })
	return client.New(conn)
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
