package sqlite

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/migrations"
	"aspstate/server/seal"
)

// openFile opens a migrated file, which the test's end closes.
func openFile(tb testing.TB, path string) *File {
	tb.Helper()
	file, err := Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { file.Close() })
	m, err := migrations.SQLite(file.DB())
	if err == nil {
		err = m.Up(tb.Context())
	}
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

// openStore opens a store on a file, which the test's end closes.
func openStore(tb testing.TB, path string) *Store {
	tb.Helper()
	file := openFile(tb, path)
	s, err := New(file, slog.New(slog.NewTextHandler(tb.Output(), nil)))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
	})
	return s
}

func newStore(tb testing.TB) *Store {
	tb.Helper()
	return openStore(tb, filepath.Join(tb.TempDir(), "test.db"))
}

// backdate makes a session d older than it is.
func (s *Store) backdate(tb testing.TB, key backends.Key, d time.Duration) {
	tb.Helper()
	res, err := s.file.DB().ExecContext(tb.Context(), `UPDATE sessions
		SET created = created - ?1, lock_date = lock_date - ?1, expires = CASE expires WHEN ?2 THEN expires ELSE expires - ?1 END
		WHERE app_id = ?3 AND session_id = ?4`, d.Milliseconds(), int64(never), key.App, []byte(key.ID))
	if err != nil {
		tb.Fatal(err)
	}
	if n, err := res.RowsAffected(); n != 1 || err != nil {
		tb.Fatalf("backdated %d sessions, want 1 (error %v)", n, err)
	}
}

func fixture(tb testing.TB) backendtest.Fixture {
	s := newStore(tb)
	return backendtest.Fixture{Store: s, Backdate: s.backdate}
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture { return fixture(t) })
}

// The suite holds as well where items are encrypted on their way. In make test the store in memory shows it; here it takes long.
func TestConformanceSealed(t *testing.T) {
	if os.Getenv("ASPSTATE_TEST_LONG") == "" {
		t.Skip("takes a minute: make test-all runs it, with ASPSTATE_TEST_LONG=1")
	}
	k, err := seal.NewKey(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		return backendtest.Sealed(fixture(t), &backendtest.Sealing{Seal: k.Seal, Overhead: seal.Overhead,
			Open: func(application, id string, sealed []byte) ([]byte, error) {
				return seal.Open([]*seal.Key{k}, application, id, sealed)
			}})
	})
}

func BenchmarkStore(b *testing.B) { backendtest.Bench(b, fixture) }

const timeout = 20 * time.Minute

func data(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 100) }

func write(data []byte) backends.Write {
	return backends.Write{Data: data, Timeout: timeout, LockCookie: backends.NoCookie}
}

func key(n int) backends.Key { return backends.Key{App: 7, ID: fmt.Sprintf("session%d", n)} }

func holds(t testing.TB, s *Store, key backends.Key, data []byte, cookie backends.Cookie) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // the writer may be held up
	defer cancel()
	item, err := s.Get(ctx, key, newToken())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(item.Data, data) || item.LockCookie != cookie {
		t.Fatalf("the session holds %d bytes (%.8x) with cookie %d, want %d bytes (%.8x) with cookie %d",
			len(item.Data), item.Data, item.LockCookie, len(data), data, cookie)
	}
}

func wantLocked(t testing.TB, err error, cookie backends.Cookie) {
	t.Helper()
	if locked, ok := errors.AsType[*backends.LockedError](err); !ok || locked.Cookie != cookie {
		t.Fatalf("%v, want a lock with cookie %d", err, cookie)
	}
}

func wantIs(t testing.TB, err error, wants ...error) {
	t.Helper()
	for _, want := range wants {
		if !errors.Is(err, want) {
			t.Fatalf("%v is not %v", err, want)
		}
	}
}

// stall gives the writer an operation that ends when resume is called, and returns when it has

// begun.

func stall(t testing.TB, s *Store) (resume func()) {
	t.Helper()
	begun, end := make(chan struct{}), make(chan struct{})
	o := newOp("stall", func(*writer, *op) error {
		close(begun)
		<-end
		return nil
	}, backends.Key{}, backends.Token{})
	go s.finish(context.Background(), o)
	<-begun
	resume = sync.OnceFunc(func() { close(end) })
	t.Cleanup(resume)
	return resume
}

// queued waits until so many operations wait for the writer.

func queued(t testing.TB, s *Store, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		s.queue.mu.Lock()
		have := len(s.queue.ops)
		s.queue.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d operations are queued, want %d", have, n)
		}
	}
}

// inOneBatch runs calls whose operations the writer gets in one batch, in their order.

func inOneBatch(t testing.TB, s *Store, calls ...func()) {
	t.Helper()
	resume := stall(t, s)
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(call)
		queued(t, s, i+1)
	}
	resume()
	wg.Wait()
}

// logSize is the size of the write-ahead log.

// inWriter runs f in the writer's goroutine, in a transaction.
func inWriter(t testing.TB, s *Store, f func(w *writer) error) {
	t.Helper()
	o := newOp("test", func(w *writer, _ *op) error { return f(w) }, backends.Key{}, backends.Token{})
	if err := s.finish(context.Background(), o); err != nil {
		t.Fatal(err)
	}
}

func set(t testing.TB, s *Store, key backends.Key, w backends.Write) {
	t.Helper()
	if err := s.Set(t.Context(), key, newToken(), w); err != nil {
		t.Fatal(err)
	}
}

func newToken() (tok backends.Token) {
	rand.Read(tok[:])
	return tok
}
