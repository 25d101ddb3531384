//go:build unix

// Package bench compares. Its results are ratios, of two things measured in the same run.
package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/backends/postgres"
	"aspstate/backends/postgres/pgtest"
	"aspstate/backends/sqlite"
	"aspstate/migrations"
	"aspstate/server"
	"aspstate/server/stateserver"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

var quiet = slog.New(slog.DiscardHandler)

// serve serves a store on loopback and returns the address.
func serve(b *testing.B, store backends.Store, lockWait time.Duration) string {
	address, _ := serveSessions(b, store, lockWait)
	return address
}

func serveSessions(b *testing.B, store backends.Store, lockWait time.Duration) (address string, sessions *server.Sessions) {
	sessions = server.NewSessions(store, lockWait+8*time.Second, quiet)
	sessions.SetLockWait(lockWait)
	front := stateserver.New(sessions, "", "4.0.30319", quiet)
	tcp := &server.Server{Handle: front.Handle, Access: server.NewAccessList(quiet), Log: quiet}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { tcp.Serve(ln) })
	running.Go(func() { sessions.Run(ctx) })
	b.Cleanup(func() {
		sessions.Drain()
		tcp.Shutdown(context.Background())
		cancel()
		running.Wait()
		store.Close()
	})
	return ln.Addr().String(), sessions
}

func openSQLite(b *testing.B) backends.Store {
	file, err := sqlite.Open(filepath.Join(b.TempDir(), "bench.db"))
	if err != nil {
		b.Fatal(err)
	}
	m, err := migrations.SQLite(file.DB())
	if err == nil {
		err = m.Up(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	store, err := sqlite.New(file, quiet)
	if err != nil {
		b.Fatal(err)
	}
	return store
}

func migrated(b *testing.B) (url string) {
	url = pgtest.New(b).Database(b)
	m, db, err := migrations.Postgres(b.Context(), url, false, quiet)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	if err := m.Up(b.Context()); err != nil {
		b.Fatal(err)
	}
	return url
}

func openPostgres(b *testing.B, url string) backends.Store {
	store, err := postgres.Open(b.Context(), url, quiet)
	if err != nil {
		b.Fatal(err)
	}
	return store
}

const (
	pages    = 8
	pageTime = 40 * time.Millisecond // with the lock
)

// BenchmarkEightPages sends eight page requests of one session at once, which hold its lock
// for 40 ms each, and tells how many times as long as 8*40 ms they take. With lockWait=0 every
// server behaves as Microsoft's.
func BenchmarkEightPages(b *testing.B) {
	for _, lockWait := range []time.Duration{time.Second, 0} {
		for _, s := range []struct {
			name  string
			start func(b *testing.B) (addresses []string)
		}{
			{"memory", func(b *testing.B) []string { return []string{serve(b, memory.New(0), lockWait)} }},
			{"sqlite", func(b *testing.B) []string { return []string{serve(b, openSQLite(b), lockWait)} }},
			{"postgres", func(b *testing.B) []string { return []string{serve(b, openPostgres(b, migrated(b)), lockWait)} }},
			{"postgres-two-servers", func(b *testing.B) []string {
				url := migrated(b)
				return []string{serve(b, openPostgres(b, url), lockWait), serve(b, openPostgres(b, url), lockWait)}
			}},
		} {
			b.Run(fmt.Sprintf("%s/lockWait=%v", s.name, lockWait), func(b *testing.B) {
				addresses := s.start(b)
				var total time.Duration
				for b.Loop() {
					took, err := eightPages(addresses)
					if err != nil {
						b.Fatal(err)
					}
					total += took
				}
				b.ReportMetric(float64(total)/float64(b.N)/float64(pages*pageTime), "x-ideal")
			})
		}
	}
}

func eightPages(addresses []string) (time.Duration, error) {
	target := client.Target("/LM/W3SVC/1/ROOT", transcript.NewID())
	var conns [pages]*client.Conn
	for i := range conns {
		c, err := client.Dial(addresses[i%len(addresses)])
		if err != nil {
			return 0, err
		}
		defer c.Close()
		conns[i] = c
	}
	if _, err := conns[0].Set(target, make([]byte, 1<<10), 20*time.Minute, 0); err != nil {
		return 0, err
	}
	errs := make(chan error, pages)
	begun := time.Now()
	for _, c := range conns {
		go func() { errs <- page(c, target) }()
	}
	var err error
	for range pages {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return time.Since(begun), err
}

// page asks for the session as ASP.NET does: every 500 ms, but not within 250 ms of the last answer.
func page(c *client.Conn, target string) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		a, err := c.GetExclusive(target)
		if err != nil {
			return err
		}
		if a.Status == 200 {
			time.Sleep(pageTime)
			_, err := c.Set(target, a.Body, 20*time.Minute, a.LockCookie)
			return err
		}
		answered := time.Now()
		for <-tick.C; time.Since(answered) < 250*time.Millisecond; <-tick.C {
		}
	}
}
