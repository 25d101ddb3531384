//go:build unix

package harness

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres"
	"aspstate/backends/postgres/pgtest"
	"aspstate/migrations"
	"aspstate/server/stateserver/client"
)

// TestSwitchOfAFarm has two servers under load move 100,000 sessions of 7 KB from one PostgreSQL database to another, and
// kills one of them half-way. It takes minutes: ASPSTATE_TEST_LONG=1, and ASPSTATE_TEST_SESSIONS for another number.
func TestSwitchOfAFarm(t *testing.T) {
	if !thorough {
		t.Skip("takes minutes: make test-all runs it, with ASPSTATE_TEST_LONG=1")
	}
	sessions := 100_000
	fmt.Sscan(os.Getenv("ASPSTATE_TEST_SESSIONS"), &sessions)
	const size, clients = 7 << 10, 32
	old, next := pgtest.Shared(t).Database(t), pgtest.Shared(t).Database(t)
	id := func(n int) string { return fmt.Sprintf("farm%020d", n) }
	begunFilling := time.Now()
	fillFarm(t, old, sessions, size, id)
	t.Logf("filled in %v", time.Since(begunFilling))

	settings := filepath.Join(t.TempDir(), "aspstate.yaml")
	write := func(database string) {
		text := fmt.Sprintf("sqlConnectionString: %s\nautoMigrate: true\nadmin: {listen: off}\n", database)
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(old)
	stays, dies := serve(t, fastProgram, "--config="+settings), serve(t, fastProgram, "--config="+settings)

	// Pages count in the first bytes of their sessions.
	counts, doubts := make([]atomic.Int32, sessions), make([]atomic.Int32, sessions)
	var phase atomic.Int32
	var slowest [3]atomic.Int64
	var pages [3]atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range clients {
		address, mayFail := stays.address, i%2 == 1
		if mayFail {
			address = dies.address
		}
		wg.Go(func() {
			w := &farmPage{t: t, address: address, mayFail: mayFail}
			for ctx.Err() == nil {
				if w.mayFail && phase.Load() > 1 {
					return // its server is dead
				}
				n, p := mathrand.IntN(min(sessions, 5000))*(sessions/min(sessions, 5000)), phase.Load()
				switch took, outcome := w.visit(client.Target(appID, id(n))); outcome {
				case counted:
					counts[n].Add(1)
					pages[p].Add(1)
					if !mayFail {
						atomicMax(&slowest[p], int64(took))
					}
				case doubtful:
					doubts[n].Add(1)
				}
			}
		})
	}
	time.Sleep(5 * time.Second) // of quiet load, to compare with
	phase.Store(1)
	begun := time.Now()
	write(next)
	stays.cmd.Process.Signal(syscall.SIGHUP)
	waitFor := func(text string) {
		for begun := time.Now(); !strings.Contains(stays.log.String(), text); time.Sleep(10 * time.Millisecond) {
			if time.Since(begun) > 5*time.Minute {
				t.Fatalf("the log does not say %q after 5 minutes", text)
			}
		}
	}
	waitFor("sessions are served from another store now")
	time.Sleep(2 * time.Second) // some are copied, most are not
	dies.kill()
	phase.Store(2)
	waitFor("the switch is complete")
	took := time.Since(begun)
	stop()
	wg.Wait()

	t.Logf("%d sessions of %d bytes moved in %v; pages: %d before, %d while both served, %d after one was killed; slowest request of the server that stays: %v before, %v, %v",
		sessions, size, took.Round(10*time.Millisecond), pages[0].Load(), pages[1].Load(), pages[2].Load(),
		time.Duration(slowest[0].Load()), time.Duration(slowest[1].Load()), time.Duration(slowest[2].Load()))
	found, wrong := 0, 0
	eachSession(t, next, func(session backends.Session) {
		var n int
		fmt.Sscanf(session.ID, "farm%d", &n)
		found++
		got, want := int32(binary.BigEndian.Uint32(session.Data)), counts[n].Load()
		if len(session.Data) != size || got < want || got > want+doubts[n].Load() || session.Locked && doubts[n].Load() == 0 {
			wrong++
		}
	})
	if found != sessions || wrong > 0 {
		t.Errorf("%d of %d sessions are there, %d of them have another count than their pages, or a lock that nobody has", found, sessions, wrong)
	}

	write(old)
	refused := runProgram(t, fastProgram, "serve", "--listen=127.0.0.1:0", "--config="+settings)
	if !strings.Contains(refused, "were moved from this store to postgres://") || !strings.Contains(refused, "sqlConnectionString") {
		t.Errorf("a start with the old settings says %q", refused)
	}
}

// openFarm opens a database that nobody needs to serve.
func openFarm(t *testing.T, database string) *postgres.Store {
	t.Helper()
	discard := slog.New(slog.DiscardHandler)
	m, db, err := migrations.Postgres(t.Context(), database, false, discard)
	if err == nil {
		defer db.Close()
		err = m.Up(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	store, err := postgres.Open(t.Context(), database, discard)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// eachSession reads all sessions of a database.
func eachSession(t *testing.T, database string, each func(backends.Session)) {
	t.Helper()
	store := openFarm(t, database)
	defer store.Close()
	for after := (backends.Key{}); ; {
		page, err := store.List(t.Context(), backends.Query{After: after, Limit: 500, Data: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, session := range page {
			each(session)
			after = session.Key
		}
		if len(page) < 500 {
			return
		}
	}
}

// fillFarm puts sessions into a database before anybody serves it.
func fillFarm(t *testing.T, database string, sessions, size int, id func(int) string) {
	t.Helper()
	store := openFarm(t, database)
	defer store.Close()
	app, err := store.Application(t.Context(), strings.ToLower(appID), true)
	if err != nil {
		t.Fatal(err)
	}
	numbers := make([]int, sessions)
	for n := range numbers {
		numbers[n] = n
	}
	for page := range slices.Chunk(numbers, 500) {
		var batch []backends.Session
		for _, n := range page {
			data := make([]byte, size)
			rand.Read(data[4:])
			batch = append(batch, backends.Session{Key: backends.Key{App: app, ID: id(n)}, Data: data, Size: size, Timeout: time.Hour, Left: time.Hour, LockCookie: 1})
		}
		if _, err := store.Import(t.Context(), "", batch); err != nil {
			t.Fatal(err)
		}
	}
}

// farmPage is a web server's worker.
type farmPage struct {
	t       *testing.T
	address string
	mayFail bool
	conn    *client.Conn
}

type outcome uint8

const (
	counted  outcome = iota
	refused          // the session is locked
	doubtful         // the connection was lost
)

// visit is a page that counts, and how long its slower request took.
func (w *farmPage) visit(target string) (took time.Duration, result outcome) {
	fail := func(what string, err error) (time.Duration, outcome) {
		if !w.mayFail {
			w.t.Errorf("%s: %v", what, err)
		}
		if w.conn != nil {
			w.conn.Close()
			w.conn = nil
		}
		return 0, doubtful
	}
	if w.conn == nil {
		var err error
		if w.conn, err = client.Dial(w.address); err != nil {
			time.Sleep(10 * time.Millisecond)
			return fail("dial", err)
		}
	}
	begun := time.Now()
	a, err := w.conn.GetExclusive(target)
	if err != nil || a.Status != 200 && a.Status != 423 {
		return fail("get exclusive", fmt.Errorf("%d %w", a.Status, err))
	}
	took = time.Since(begun)
	if a.Status == 423 {
		return took, refused
	}
	body := bytes.Clone(a.Body)
	binary.BigEndian.PutUint32(body, binary.BigEndian.Uint32(body)+1)
	begun = time.Now()
	a, err = w.conn.Set(target, body, time.Hour, a.LockCookie)
	if err != nil || a.Status != 200 {
		return fail("set", fmt.Errorf("%d %w", a.Status, err))
	}
	return max(took, time.Since(begun)), counted
}

func atomicMax(m *atomic.Int64, v int64) {
	for old := m.Load(); v > old && !m.CompareAndSwap(old, v); old = m.Load() {
	}
}
