package sqlite

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
)

// crashChild is set for the process that TestKill kills: the file to write to.
const crashChild = "ASPSTATE_TEST_CRASH"

const (
	crashWorkers = 16
	crashIDs     = 4   // sessions of each worker
	killAfter    = 150 // acknowledged operations, and a random while more
)

// ack is what the child reports once a call has returned. It is written by one write(2), so it is
// in the pipe when the child is killed after it.
type ack struct {
	ID     string
	Op     string // "set", "lock", "release" or "remove", or "begin" before a set, lock, release or remove
	Cookie backends.Cookie
	Sum    uint32 // of the data set
	Next   string // of begin: the operation that begins
}

// writeUntilKilled is the child: each worker goes through page cycles on sessions of its own and
// reports what it is about to do and what has been acknowledged.
func writeUntilKilled(path string) int {
	ctx := context.Background()
	file, err := Open(path)
	if err == nil {
		var s *Store
		if s, err = New(file, slog.New(slog.DiscardHandler)); err == nil {
			var mu sync.Mutex
			report := func(a ack) {
				line, _ := json.Marshal(a)
				mu.Lock()
				defer mu.Unlock()
				os.Stdout.Write(append(line, '\n'))
			}
			var wg sync.WaitGroup
			for worker := range crashWorkers {
				wg.Go(func() {
					for i := 0; ; i++ {
						id := fmt.Sprintf("worker%d-session%d", worker, i%crashIDs)
						if err := crashCycle(ctx, s, id, report); err != nil {
							os.Stderr.WriteString(err.Error() + "\n")
							os.Exit(1)
						}
					}
				})
			}
			wg.Wait()
		}
	}
	os.Stderr.WriteString(err.Error())
	return 1
}

// crashCycle locks and writes a session, or now and then does something else with it.
func crashCycle(ctx context.Context, s *Store, id string, report func(ack)) error {
	key := backends.Key{App: 1, ID: id}
	data := make([]byte, 1+mathrand.IntN(9000))
	rand.Read(data)
	w := backends.Write{Data: data, Timeout: time.Hour, LockCookie: backends.NoCookie}
	write := func() error {
		a := ack{ID: id, Op: "set", Cookie: w.LockCookie, Sum: crc32.ChecksumIEEE(data)}
		report(ack{ID: id, Op: "begin", Next: "set", Sum: a.Sum})
		err := s.Set(ctx, key, newToken(), w)
		if err == nil {
			report(a)
		}
		return err
	}

	report(ack{ID: id, Op: "begin", Next: "lock"})
	item, err := s.GetExclusive(ctx, key, newToken())
	var locked *backends.LockedError
	switch {
	case errors.Is(err, backends.ErrNotFound):
		return write()
	case errors.As(err, &locked): // by an earlier life of this worker
		w.LockCookie = locked.Cookie
		return write()
	case err != nil:
		return err
	}
	report(ack{ID: id, Op: "lock", Cookie: item.LockCookie})
	w.LockCookie = item.LockCookie
	switch mathrand.IntN(8) {
	case 0:
		report(ack{ID: id, Op: "begin", Next: "release"})
		_, err := s.Release(ctx, key, newToken(), w.LockCookie, backends.IfUnlocked)
		if err == nil {
			report(ack{ID: id, Op: "release"})
		}
		return err
	case 1:
		report(ack{ID: id, Op: "begin", Next: "remove"})
		err := s.Remove(ctx, key, newToken(), w.LockCookie, backends.IfCookie)
		if err == nil {
			report(ack{ID: id, Op: "remove"})
		}
		return err
	default:
		return write()
	}
}

// believed is what the parent knows of a session from the child's reports.
type believed struct {
	exists bool
	sum    uint32
	locked bool
	cookie backends.Cookie
	under  *ack // the operation that had begun and was not acknowledged
}

func (b *believed) apply(a ack) {
	if a.Op == "begin" {
		b.under = &a
		return
	}
	b.under = nil
	switch a.Op {
	case "set":
		if !b.exists {
			b.cookie = 1
		}
		b.exists, b.locked, b.sum = true, false, a.Sum
	case "lock":
		b.locked, b.cookie = true, a.Cookie
	case "release":
		b.locked = false
	case "remove":
		*b = believed{}
	}
}

// TestKill kills a writing process at random moments. Whatever it reported as acknowledged must be
// there afterwards: data, locks with their cookies, removals; and no cookie is given out twice.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	if err := openFile(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	sessions := map[string]*believed{}
	var total, held int
	for range rounds {
		acks := runAndKill(t, path)
		for _, a := range acks {
			b := sessions[a.ID]
			if b == nil {
				b = &believed{}
				sessions[a.ID] = b
			}
			// Cookies grow by one, also over crashes. A lock that was not acknowledged may have
			// used one up.
			if a.Op == "lock" && a.Cookie <= b.cookie {
				t.Fatalf("%s: cookie %d was given out after %d", a.ID, a.Cookie, b.cookie)
			}
			if a.Op != "begin" {
				total++
			}
			b.apply(a)
		}
		s := openStore(t, path)
		for id, b := range sessions {
			if b.locked {
				held++
			}
			checkAfterKill(t, s, id, b)
		}
		if result, err := s.file.DB().QueryContext(t.Context(), "PRAGMA integrity_check"); err != nil {
			t.Fatal(err)
		} else {
			for result.Next() {
				var text string
				if err := result.Scan(&text); err != nil || text != "ok" {
					t.Fatalf("integrity check: %s, error %v", text, err)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d operations were acknowledged in %d lives, %d locks were held at their ends", total, rounds, held)
	if total < 100*rounds || held == 0 {
		t.Errorf("only %d acknowledged operations and %d held locks: this proves little", total, held)
	}
}

// runAndKill lets a child write, kills it at a random moment and returns its reports.
func runAndKill(t *testing.T, path string) []ack {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), crashChild+"="+path)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var acks []ack
	var killed atomic.Bool
	done := 0
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var a ack
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			break // the kill cut it
		}
		acks = append(acks, a)
		if a.Op == "begin" {
			continue
		}
		if done++; done == killAfter { // however long a slow disk takes for that
			time.AfterFunc(mathrand.N(500*time.Millisecond), func() {
				killed.Store(true)
				child.Process.Kill()
			})
		}
	}
	if err := child.Wait(); !killed.Load() {
		t.Fatalf("the child ended by itself: %v", err)
	}
	return acks
}

// checkAfterKill compares a session with what is believed of it, and learns what became of the
// operation that was under way.
func checkAfterKill(t *testing.T, s *Store, id string, b *believed) {
	t.Helper()
	key := backends.Key{App: 1, ID: id}
	item, err := s.Get(t.Context(), key, newToken())
	now := believed{exists: true}
	var locked *backends.LockedError
	switch {
	case errors.Is(err, backends.ErrNotFound):
		now.exists = false
	case errors.As(err, &locked):
		now.locked, now.cookie = true, locked.Cookie
	case err != nil:
		t.Fatalf("%s: %v", id, err)
	default:
		now.cookie, now.sum = item.LockCookie, crc32.ChecksumIEEE(item.Data)
	}
	if now.locked {
		// The item is behind the lock. Its cookie opens it.
		if _, err := s.Release(t.Context(), key, newToken(), now.cookie, backends.IfUnlocked); err != nil {
			t.Fatalf("%s: release with the lock's cookie: %v", id, err)
		}
		item, err := s.Get(t.Context(), key, newToken())
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		now.sum = crc32.ChecksumIEEE(item.Data)
	}
	was := *b
	was.under = nil
	possible := []believed{was}
	if u := b.under; u != nil {
		after := was
		applied := *u
		applied.Op, applied.Cookie = u.Next, was.cookie+1
		after.apply(applied)
		possible = append(possible, after)
	}
	for _, p := range possible {
		if !p.exists {
			p = believed{}
		}
		if p == now {
			now.locked = false // this check has released it
			*b = now
			return
		}
	}
	t.Fatalf("%s is %+v; the reports allow %+v", id, now, possible)
}
