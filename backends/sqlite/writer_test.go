package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"

	"aspstate/backends"
)

const timeout = 20 * time.Minute

func data(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 100) }

func write(data []byte) backends.Write {
	return backends.Write{Data: data, Timeout: timeout, LockCookie: backends.NoCookie}
}

func key(n int) backends.Key { return backends.Key{App: 7, ID: fmt.Sprintf("session%d", n)} }

func holds(t testing.TB, s *Store, key backends.Key, data []byte, cookie backends.Cookie) {
	t.Helper()
	item, err := s.Get(t.Context(), key, newToken())
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

// stall gives the writer an operation that ends when resume is called, and returns when it has begun.
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
				// Whoever looks from outside does not see the lock yet, and its taker has not been told.
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

func TestFullIsAnAnswerOnlyToWhatStores(t *testing.T) {
	full := &resultError{code: sqlite3.SQLITE_FULL}
	for _, c := range []struct {
		stores bool
		answer bool
	}{{true, true}, {false, false}} {
		err := failed("test", full, c.stores)
		if backends.IsAnswer(err) != c.answer || errors.Is(err, backends.ErrNotApplied) == c.answer {
			t.Errorf("with stores %t a full disk is %v", c.stores, err)
		}
	}
}

func TestResultCodes(t *testing.T) {
	for code, want := range map[int32]error{
		sqlite3.SQLITE_FULL: backends.ErrFull, sqlite3.SQLITE_TOOBIG: backends.ErrFull,
		sqlite3.SQLITE_CORRUPT: backends.ErrPermanent, sqlite3.SQLITE_CORRUPT_INDEX: backends.ErrPermanent,
		sqlite3.SQLITE_NOTADB: backends.ErrPermanent, sqlite3.SQLITE_READONLY: backends.ErrPermanent,
		sqlite3.SQLITE_READONLY_DBMOVED: backends.ErrPermanent, sqlite3.SQLITE_ERROR: backends.ErrPermanent,
		sqlite3.SQLITE_PERM: backends.ErrPermanent, sqlite3.SQLITE_CONSTRAINT_UNIQUE: backends.ErrPermanent,
		sqlite3.SQLITE_BUSY: nil, sqlite3.SQLITE_LOCKED: nil, sqlite3.SQLITE_NOMEM: nil, sqlite3.SQLITE_CANTOPEN: nil,
		sqlite3.SQLITE_IOERR: nil, sqlite3.SQLITE_IOERR_FSYNC: nil, sqlite3.SQLITE_INTERRUPT: nil,
	} {
		if got := kind(fmt.Errorf("wrapped: %w", &resultError{code: code})); got != want {
			t.Errorf("result code %d is %v, want %v", code, got, want)
		}
	}
	if got := kind(errClosed); got != nil {
		t.Errorf("another error is %v", got)
	}
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

func TestDeleteExpiredInSlices(t *testing.T) {
	s := newStore(t)
	w := write(data(1))
	w.Timeout = -1
	for i := range 2*sliceRows + 10 {
		set(t, s, key(i), w)
	}
	resume := stall(t, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if n, err := s.DeleteExpired(context.Background(), 2*sliceRows+5); n != 2*sliceRows+5 || err != nil {
			t.Errorf("deleted %d sessions, error %v", n, err)
		}
	}()
	queued(t, s, 1)
	s.queue.mu.Lock()
	if limit := s.queue.ops[0].limit; limit != sliceRows {
		t.Errorf("one operation deletes %d sessions, want %d", limit, sliceRows)
	}
	s.queue.mu.Unlock()
	resume()
	<-done
	if n, err := s.DeleteExpired(t.Context(), 1000); n != 5 || err != nil {
		t.Errorf("deleted %d sessions, want the last 5; error %v", n, err)
	}
}

func TestReadsWriteNothing(t *testing.T) {
	s := newStore(t)
	db := s.file.DB()
	db.SetMaxOpenConns(1)
	version := func() (n int64) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "PRAGMA data_version").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	set(t, s, key(1), write(data(1)))
	set(t, s, key(2), write(data(2)))
	if _, err := s.GetExclusive(t.Context(), key(2), newToken()); err != nil {
		t.Fatal(err)
	}
	slack := backends.Slack(timeout)
	for range 2 {
		s.backdate(t, key(1), slack/3)
		s.backdate(t, key(2), slack/3)
		before := version()
		resume := stall(t, s) // and the writer is not asked
		holds(t, s, key(1), data(1), 1)
		_, err := s.Get(t.Context(), key(2), newToken())
		wantLocked(t, err, 2)
		_, err = s.Get(t.Context(), key(3), newToken())
		wantIs(t, err, backends.ErrNotFound)
		if err := errors.Join(s.ResetTimeout(t.Context(), key(1)), s.ResetTimeout(t.Context(), key(2))); err != nil {
			t.Fatal(err)
		}
		wantIs(t, s.ResetTimeout(t.Context(), key(3)), backends.ErrNotFound)
		resume()
		if after := version(); after != before {
			t.Fatal("reading recently renewed sessions wrote to the file")
		}
	}
	for i, touch := range []func() error{
		func() error { _, err := s.Get(t.Context(), key(1), newToken()); return err },
		func() error { return s.ResetTimeout(t.Context(), key(2)) },
	} {
		s.backdate(t, key(i+1), slack)
		before := version()
		if err := touch(); err != nil {
			t.Fatal(err)
		}
		if version() == before {
			t.Fatal("a session that was renewed more than Slack ago was not renewed")
		}
	}
}

func TestExpiresIsWrittenWithinSlack(t *testing.T) {
	s := newStore(t)
	expires := func(key backends.Key) (ms int64) {
		t.Helper()
		err := s.file.DB().QueryRowContext(t.Context(), "SELECT expires FROM sessions WHERE session_id = ?", []byte(key.ID)).Scan(&ms)
		if err != nil {
			t.Fatal(err)
		}
		return ms
	}
	for i, timeout := range []time.Duration{time.Millisecond, time.Second, time.Minute, 20 * time.Minute, 24 * time.Hour, 365 * 24 * time.Hour} {
		w := write(data(1))
		w.Timeout = timeout
		before := time.Now()
		set(t, s, key(i), w)
		after := time.Now()
		got := time.UnixMilli(expires(key(i)))
		earliest, latest := before.Add(timeout).Truncate(time.Millisecond), after.Add(timeout+backends.Slack(timeout))
		if got.Before(earliest) || got.After(latest) {
			t.Errorf("with timeout %v expires is %v, want from %v to %v", timeout, got, earliest, latest)
		}
	}
	w := write(data(1))
	w.Timeout = backends.NeverExpires
	set(t, s, key(99), w)
	if got := expires(key(99)); got != math.MaxInt64 {
		t.Errorf("expires of a session that never does is %d", got)
	}
	// The clock was put back: the kept value would be far too late.
	set(t, s, key(100), write(data(1)))
	s.backdate(t, key(100), -time.Hour)
	holds(t, s, key(100), data(1), 1)
	if left := time.Until(time.UnixMilli(expires(key(100)))); left > timeout+backends.Slack(timeout) {
		t.Errorf("the session has %v left, with a timeout of %v", left, timeout)
	}
}

func TestTimeouts(t *testing.T) {
	for d, want := range map[time.Duration]int64{
		0: 0, 1: 1, -1: -1, time.Millisecond: 1, time.Millisecond + 1: 2, -time.Millisecond - 1: -2, time.Minute: 60000,
		math.MaxInt64: 9223372036855, math.MinInt64: -9223372036855,
	} {
		if got := milliseconds(d); got != want {
			t.Errorf("%d ns are %d ms, want %d", d, got, want)
		}
	}
	if got := duration(9223372036855); got < 292*365*24*time.Hour {
		t.Errorf("the longest timeout comes back as %v", got)
	}
	if earliest, latest := expiry(time.Now().UnixMilli(), 9223372036855); earliest < 0 || latest < earliest {
		t.Errorf("the longest timeout ends from %d to %d", earliest, latest)
	}
}

func TestLockAgeIsNeverNegative(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	if _, err := s.GetExclusive(t.Context(), key(1), newToken()); err != nil {
		t.Fatal(err)
	}
	s.backdate(t, key(1), -time.Minute) // the clock was put back
	_, err := s.Get(t.Context(), key(1), newToken())
	if locked, ok := errors.AsType[*backends.LockedError](err); !ok || locked.Age != 0 {
		t.Fatalf("%v, want a lock of age 0", err)
	}
}

func TestCookiesBeginAgain(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	if _, err := s.file.DB().ExecContext(t.Context(), "UPDATE sessions SET lock_cookie = ?", math.MaxInt32-1); err != nil {
		t.Fatal(err)
	}
	for _, want := range []backends.Cookie{math.MaxInt32, 2, 3} {
		item, err := s.GetExclusive(t.Context(), key(1), newToken())
		if err != nil || item.LockCookie != want {
			t.Fatalf("cookie %d, error %v, want %d", item.LockCookie, err, want)
		}
		if _, err := s.Release(t.Context(), key(1), newToken(), want); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openStore(t, path)
	app, err := s.Application(t.Context(), "/lm/w3svc/1/root", true)
	if err != nil {
		t.Fatal(err)
	}
	in := func(n int) backends.Key { return backends.Key{App: app, ID: key(n).ID} }
	set(t, s, in(1), write(data(1)))
	set(t, s, in(2), write(data(2)))
	marked := write(data(3))
	marked.Uninitialized = true
	set(t, s, in(3), marked)
	endless := write(data(4))
	endless.Timeout = backends.NeverExpires
	set(t, s, in(4), endless)
	for range 4 {
		item, err := s.GetExclusive(t.Context(), in(2), newToken())
		if err != nil {
			t.Fatal(err)
		}
		if item.LockCookie < 5 {
			if _, err := s.Release(t.Context(), in(2), newToken(), item.LockCookie); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.backdate(t, in(1), timeout-time.Minute)
	s.backdate(t, in(2), time.Minute)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + "-wal"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close left the log behind (error %v)", err)
	}

	s = openStore(t, path)
	if again, err := s.Application(t.Context(), "/lm/w3svc/1/root", false); again != app || err != nil {
		t.Fatalf("AppID was %d and is now %d, error %v", app, again, err)
	}
	holds(t, s, in(1), data(1), 1)
	_, err = s.Get(t.Context(), in(2), newToken())
	wantLocked(t, err, 5)
	if locked, _ := errors.AsType[*backends.LockedError](err); locked.Age < time.Minute || locked.Age > 2*time.Minute {
		t.Errorf("the lock is %v old, want a minute", locked.Age)
	}
	if _, err := s.Release(t.Context(), in(2), newToken(), 5); err != nil {
		t.Fatal(err)
	}
	if item, err := s.GetExclusive(t.Context(), in(2), newToken()); item.LockCookie != 6 || err != nil {
		t.Fatalf("the next cookie is %d, error %v, want 6", item.LockCookie, err)
	}
	if item, err := s.Get(t.Context(), in(3), newToken()); !item.Uninitialized || err != nil {
		t.Fatalf("the mark is gone, error %v", err)
	}
	if item, err := s.Get(t.Context(), in(4), newToken()); item.Timeout != backends.NeverExpires || err != nil {
		t.Fatalf("timeout is %v, error %v", item.Timeout, err)
	}
}

func TestStatementsUseTheirIndexes(t *testing.T) {
	s := newStore(t)
	inWriter(t, s, func(w *writer) error {
		for _, prepared := range w.conn.stmts {
			sql := libc.GoString(sqlite3.Xsqlite3_sql(w.conn.tls, prepared.handle))
			plan, err := explain(w.conn, sql)
			if err != nil {
				return err
			}
			if sql != countApplications && strings.Contains(plan, "SCAN") && !strings.Contains(plan, "SCAN CONSTANT ROW") {
				t.Errorf("%s\nreads a whole table: %s", sql, plan)
			}
			for query, want := range map[string]string{
				findSession: "sqlite_autoindex_sessions_1 (app_id=? AND session_id=?)",
				findItem:    "sqlite_autoindex_sessions_1 (app_id=? AND session_id=?)",
				findExpired: "COVERING INDEX sessions_expires (expires<?)",
				setItem:     "INTEGER PRIMARY KEY (rowid=?)",
				lockSession: "INTEGER PRIMARY KEY (rowid=?)",
				appIDInUse:  "COVERING INDEX sqlite_autoindex_sessions_1 (app_id=?)",
			} {
				if sql == query && !strings.Contains(plan, want) {
					t.Errorf("%s\nis run by %q, want %q", sql, plan, want)
				}
			}
		}
		return nil
	})
}

func explain(c *conn, sql string) (string, error) {
	s, err := c.prepareOnce("EXPLAIN QUERY PLAN " + sql)
	if err != nil {
		return "", err
	}
	defer s.finalize()
	var plan []string
	for {
		row, err := s.step()
		if err != nil || !row {
			return strings.Join(plan, "; "), err
		}
		plan = append(plan, s.text(3))
	}
}

// logSize is the size of the write-ahead log.
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
			_, err = s.Release(t.Context(), key(1), newToken(), item.LockCookie)
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
		t.Skip("writes 150 MB")
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
			for i := range 600 {
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

func TestConnBindsAndReadsAnything(t *testing.T) {
	s := newStore(t)
	inWriter(t, s, func(w *writer) error {
		echo, err := w.conn.prepare("SELECT ?1, ?2, ?3")
		if err != nil {
			return err
		}
		for _, n := range []int{0, 1, 255, 256, 257, 100_000, keepBuffer + 1, 5} {
			blob := bytes.Repeat([]byte{0, 0xff, byte(n)}, n)
			echo.bindInt(1, math.MinInt64)
			bindBlob(echo, 2, blob)
			echo.bindText(3, strings.Repeat("ä\x00", n))
			if row, err := echo.step(); !row {
				return fmt.Errorf("no row: %w", err)
			}
			got, err := echo.blob(1)
			if err != nil || !bytes.Equal(got, blob) || echo.int(0) != math.MinInt64 || echo.text(2) != strings.Repeat("ä\x00", n) {
				t.Errorf("%d bytes came back as %d, %d, %d, error %v", len(blob), len(got), echo.int(0), len(echo.text(2)), err)
			}
			echo.reset()
			if kept := slices.MaxFunc(echo.params, func(a, b buffer) int { return a.size - b.size }); kept.size > keepBuffer {
				t.Errorf("a buffer of %d bytes is kept", kept.size)
			}
		}
		echo.bindInt(4, 0)
		if _, err := echo.step(); primary(err) != sqlite3.SQLITE_RANGE {
			t.Errorf("a parameter too many gives %v", err)
		}
		echo.reset()
		if row, err := echo.step(); !row {
			t.Errorf("a failed bind stays: %v", err)
		}
		echo.reset()
		_, err = w.conn.prepare("SELECT nothing")
		if primary(err) != sqlite3.SQLITE_ERROR || !strings.Contains(err.Error(), "nothing") {
			t.Errorf("a wrong statement gives %v", err)
		}
		return nil
	})
}
