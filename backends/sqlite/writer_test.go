package sqlite

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"aspstate/backends"
)

func TestOneTransactionForMany(t *testing.T) {
	s := newStore(t)
	commits := func() (n int64) {
		// Each transaction that writes changes the file's data version for other connections.
		if err := s.file.DB().QueryRowContext(t.Context(), "PRAGMA data_version").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	s.file.DB().SetMaxOpenConns(1)
	before := commits()
	var calls []func()
	for i := range 50 {
		calls = append(calls, func() { set(t, s, key(i), write(data(i))) })
	}
	inOneBatch(t, s, calls...)
	if after := commits(); after != before+1 {
		t.Errorf("50 writes took %d commits, want 1", after-before)
	}
	for i := range 50 {
		holds(t, s, key(i), data(i), 1)
	}
}

func TestAnswersComeAfterTheCommit(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	var answered, open bool
	inOneBatch(t, s,
		func() {
			_, err := s.GetExclusive(context.Background(), key(1), newToken())
			answered = err == nil
		},
		func() {
			inWriter(t, s, func(w *writer) error {
				open = w.conn.inTransaction()
				// Whoever looks from outside does not see the lock yet, and its taker has not been
				// told.
				holds(t, s, key(1), data(1), 1)
				if answered {
					t.Error("the lock was acknowledged before it was committed")
				}
				return nil
			})
		})
	if !answered || !open {
		t.Errorf("answered is %t and the operations ran in a transaction is %t, want true", answered, open)
	}
}

func TestFailureInBatchLeavesOthersAlone(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	set(t, s, key(2), write(data(2)))
	inWriter(t, s, func(w *writer) error {
		pages, err := w.conn.query("PRAGMA page_count")
		if err == nil {
			_, err = w.conn.query("PRAGMA max_page_count = " + pages + "5") // tenfold
		}
		return err
	})
	broken := &resultError{code: sqlite3.SQLITE_IOERR_READ, message: "planted"}
	big := bytes.Repeat([]byte("x"), 4<<20)
	var errs [7]error
	inOneBatch(t, s,
		func() { errs[0] = s.Set(context.Background(), key(3), newToken(), write(data(3))) },
		func() { errs[1] = s.Set(context.Background(), key(1), newToken(), write(big)) },
		func() { _, errs[2] = s.GetExclusive(context.Background(), key(2), newToken()) },
		func() {
			errs[3] = s.finish(context.Background(), newOp("test", func(*writer, *op) error { return broken }, backends.Key{}, backends.Token{}))
		},
		func() { errs[4] = s.Set(context.Background(), key(4), newToken(), write(big)) },
		func() { errs[5] = s.Remove(context.Background(), key(9), newToken(), 1, backends.IfUnlocked) },
		func() { errs[6] = s.Set(context.Background(), key(5), newToken(), write(data(5))) },
	)
	for _, i := range []int{0, 2, 6} {
		if errs[i] != nil {
			t.Errorf("call %d failed with another's error: %v", i, errs[i])
		}
	}
	wantIs(t, errs[1], backends.ErrFull)
	wantIs(t, errs[4], backends.ErrFull)
	wantIs(t, errs[3], broken, backends.ErrNotApplied)
	wantIs(t, errs[5], backends.ErrNotFound)
	holds(t, s, key(1), data(1), 1) // the old content
	holds(t, s, key(3), data(3), 1)
	holds(t, s, key(5), data(5), 1)
	_, err := s.Get(t.Context(), key(2), newToken())
	wantLocked(t, err, 2) // locked once, not once a try
	_, err = s.Get(t.Context(), key(4), newToken())
	wantIs(t, err, backends.ErrNotFound)

	// The same store serves on when there is room.
	inWriter(t, s, func(w *writer) error { return w.conn.exec("PRAGMA max_page_count = 1000000") })
	set(t, s, key(1), write(big))
	holds(t, s, key(1), big, 1)
}

func TestHeldFileIsWaitedForOnce(t *testing.T) {
	s := newStore(t)
	set(t, s, key(0), write(data(0)))
	inWriter(t, s, func(w *writer) error { return w.conn.exec("PRAGMA busy_timeout = 500") })
	tx, err := s.file.DB().BeginTx(t.Context(), nil) // immediate
	if err != nil {
		t.Fatal(err)
	}
	var batch []*op
	for i := range 10 {
		o := newOp("set", (*writer).set, key(i), newToken())
		o.data, o.timeout, o.stores = data(1), timeout, true
		batch = append(batch, o)
	}
	start := time.Now()
	s.queue.mu.Lock() // so that they are one batch
	for _, o := range batch {
		o.given = true
		s.queue.ops = append(s.queue.ops, o)
	}
	s.queue.work.Signal()
	s.queue.mu.Unlock()
	for _, o := range batch {
		<-o.done
		wantIs(t, o.err, backends.ErrNotApplied)
		if primary(o.err) != sqlite3.SQLITE_BUSY || backends.IsAnswer(o.err) || errors.Is(o.err, backends.ErrPermanent) {
			t.Fatalf("a held file is %v", o.err)
		}
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("10 operations waited %v for the file, want half a second", took)
	}
	holds(t, s, key(0), data(0), 1) // reading goes on
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	set(t, s, key(0), write(data(1)))
}

func TestBatchBounds(t *testing.T) {
	q := &queue{}
	q.work.L = &q.mu
	add := func(n, bytes int) {
		for range n {
			q.add(&op{data: make([]byte, bytes)})
		}
	}
	take := func(want int) {
		t.Helper()
		if got := len(q.take(nil)); got != want {
			t.Fatalf("a batch has %d operations, want %d", got, want)
		}
	}
	add(batchOps+1, 10)
	take(batchOps)
	take(1)
	add(3, batchBytes/2)
	add(1, 2*batchBytes) // which must get its turn all the same
	add(1, 0)
	take(2)
	take(1)
	take(1)
	take(1)
	q.close()
	take(0)
	if q.add(&op{}) {
		t.Fatal("a closed queue takes operations")
	}
}

func logSize(t testing.TB, s *Store) int64 {
	t.Helper()
	info, err := os.Stat(s.file.Path() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestLockDoesNotRewriteTheItem(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(bytes.Repeat([]byte("x"), 256<<10)))
	cycle := func() {
		item, err := s.GetExclusive(t.Context(), key(1), newToken())
		if err == nil {
			_, err = s.Release(t.Context(), key(1), newToken(), item.LockCookie, backends.IfUnlocked)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cycle() // cookie 1 takes no room in SQLite's row, 2 does
	before := logSize(t, s)
	for range 10 {
		cycle()
	}
	if grown := logSize(t, s) - before; grown > 20*3*4200 {
		t.Errorf("20 changes of a lock wrote %d bytes: the item among them", grown)
	}
}

func TestLogStaysBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 100 MB")
	}
	s := newStore(t)
	const sessions, size = 32, 7000
	for i := range sessions {
		set(t, s, key(i), write(bytes.Repeat([]byte("x"), size)))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var readers, writers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			for i := r; ctx.Err() == nil; i++ {
				s.Get(ctx, key(i%sessions), newToken())
			}
		})
	}
	for w := range sessions {
		writers.Go(func() {
			blob := bytes.Repeat([]byte("x"), size)
			for i := range 250 {
				blob[i] = byte(i)
				set(t, s, key(w), write(blob))
			}
		})
	}
	writers.Wait()
	stop()
	readers.Wait()
	if size := logSize(t, s); size > 64<<20 {
		t.Errorf("the log has grown to %d MB", size>>20)
	}
}
