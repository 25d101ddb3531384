package sqlite

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"aspstate/backends"
)

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

func TestDeleteExpiredTakesItsTurn(t *testing.T) {
	s := newStore(t)
	w := write(data(1))
	w.Timeout = -1
	for i := range sliceRows {
		set(t, s, key(i), w)
	}
	// Each row takes some milliseconds.
	if _, err := s.file.DB().ExecContext(t.Context(), `CREATE TRIGGER slow BEFORE DELETE ON sessions BEGIN SELECT count(*) FROM
		(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n); END`); err != nil {
		t.Fatal(err)
	}
	o := newOp("test", (*writer).deleteExpired, backends.Key{}, backends.Token{})
	o.limit = sliceRows
	if err := s.do(t.Context(), o); err != nil || o.err != nil {
		t.Fatal(err, o.err)
	}
	if o.count < 1 || o.count >= sliceRows {
		t.Errorf("one turn deleted %d slow rows", o.count)
	}
	execute(t, s, `DROP TRIGGER slow`)
	if n, err := s.DeleteExpired(t.Context(), 1000); n != sliceRows-o.count || err != nil {
		t.Errorf("deleted %d sessions, want the other %d; error %v", n, sliceRows-o.count, err)
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
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, err := s.Get(ctx, key(2), newToken())
		wantLocked(t, err, 2)
		_, err = s.Get(ctx, key(3), newToken())
		wantIs(t, err, backends.ErrNotFound)
		if err := errors.Join(s.ResetTimeout(ctx, key(1)), s.ResetTimeout(ctx, key(2))); err != nil {
			t.Fatal(err)
		}
		wantIs(t, s.ResetTimeout(ctx, key(3)), backends.ErrNotFound)
		cancel()
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

func expires(t testing.TB, s *Store, key backends.Key) (ms int64) {
	t.Helper()
	err := s.file.DB().QueryRowContext(t.Context(), "SELECT expires FROM sessions WHERE session_id = ?", []byte(key.ID)).Scan(&ms)
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

// A renewal may wait for its commit while the session expires for those who look at what is
// committed. Only the writer knows.
func TestReadersDoNotDecideThatASessionHasExpired(t *testing.T) {
	s := newStore(t)
	w := write(data(1))
	w.Timeout = -1
	set(t, s, key(1), w)
	var get, reset error
	inOneBatch(t, s, // which waits until the writer has been asked
		func() { _, get = s.Get(context.Background(), key(1), newToken()) },
		func() { reset = s.ResetTimeout(context.Background(), key(1)) },
	)
	wantIs(t, get, backends.ErrNotFound)
	wantIs(t, reset, backends.ErrNotFound)
}

func TestPageCycleRenewsSeldom(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	cycle := func() {
		t.Helper()
		item, err := s.GetExclusive(t.Context(), key(1), newToken())
		if err != nil {
			t.Fatal(err)
		}
		w := write(data(2))
		w.LockCookie = item.LockCookie
		set(t, s, key(1), w)
		if _, err := s.Release(t.Context(), key(1), newToken(), item.LockCookie, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
	}
	s.backdate(t, key(1), backends.Slack(timeout)/2)
	before := expires(t, s, key(1))
	cycle()
	if expires(t, s, key(1)) != before {
		t.Error("a recently renewed session was renewed")
	}
	s.backdate(t, key(1), backends.Slack(timeout))
	cycle()
	if expires(t, s, key(1)) <= before {
		t.Error("the session was not renewed")
	}
}

func TestExpiresIsWrittenWithinSlack(t *testing.T) {
	s := newStore(t)
	for i, timeout := range []time.Duration{time.Millisecond, time.Second, time.Minute, 20 * time.Minute, 24 * time.Hour, 365 * 24 * time.Hour} {
		w := write(data(1))
		w.Timeout = timeout
		before := time.Now()
		set(t, s, key(i), w)
		after := time.Now()
		got := time.UnixMilli(expires(t, s, key(i)))
		earliest, latest := before.Add(timeout).Truncate(time.Millisecond), after.Add(timeout+backends.Slack(timeout))
		if got.Before(earliest) || got.After(latest) {
			t.Errorf("with timeout %v expires is %v, want from %v to %v", timeout, got, earliest, latest)
		}
	}
	w := write(data(1))
	w.Timeout = backends.NeverExpires
	set(t, s, key(99), w)
	if got := expires(t, s, key(99)); got != math.MaxInt64 {
		t.Errorf("expires of a session that never does is %d", got)
	}
	// The clock was put back: the kept value would be far too late.
	set(t, s, key(100), write(data(1)))
	s.backdate(t, key(100), -time.Hour)
	holds(t, s, key(100), data(1), 1)
	if left := time.Until(time.UnixMilli(expires(t, s, key(100)))); left > timeout+backends.Slack(timeout) {
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
		if _, err := s.Release(t.Context(), key(1), newToken(), want, backends.IfUnlocked); err != nil {
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
			if _, err := s.Release(t.Context(), in(2), newToken(), item.LockCookie, backends.IfUnlocked); err != nil {
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
	if _, err := s.Release(t.Context(), in(2), newToken(), 5, backends.IfUnlocked); err != nil {
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
