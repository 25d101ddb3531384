//go:build unix

package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// expiring is a table of ASPState's sessions, living and expired.
type expiring struct {
	t  *testing.T
	db *sql.DB
}

// add makes n sessions that expire in so many minutes.
func (e expiring) add(name string, n, minutes int) {
	e.t.Helper()
	_, err := e.db.Exec(fmt.Sprintf(`DECLARE @i int
SET @i = 0
WHILE @i < %d
BEGIN
    INSERT dbo.ASPStateTempSessions (SessionId, Created, Expires, LockDate, LockDateLocal, LockCookie, Timeout, Locked, SessionItemShort)
    VALUES ('%s' + CONVERT(nvarchar(10), @i) + '2014c0f1', GETUTCDATE(), DATEADD(minute, %d, GETUTCDATE()), GETUTCDATE(), GETDATE(), 1, 20, 0, 0x140000000000FF)
    SET @i = @i + 1
END`, n, name, minutes))
	if err != nil {
		e.t.Fatal(err)
	}
}

// left counts the sessions whose names begin so.
func (e expiring) left(name string) (n int) {
	e.t.Helper()
	if err := e.db.QueryRow(`SELECT COUNT(*) FROM dbo.ASPStateTempSessions WHERE SessionId LIKE @p1 + '%'`, name).Scan(&n); err != nil {
		e.t.Fatal(err)
	}
	return n
}

// gone waits until none is left.
func (e expiring) gone(name string) {
	e.t.Helper()
	for begun := time.Now(); e.left(name) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > patience {
			e.t.Fatalf("%d of %s are left", e.left(name), name)
		}
	}
}

// sweeping is "aspstate sweep" in this process.
type sweeping struct {
	log  *logBuffer
	stop context.CancelFunc
	exit chan int
}

func startSweep(t *testing.T, db string) *sweeping {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sweeping{log: new(logBuffer), stop: cancel, exit: make(chan int, 1)}
	t.Cleanup(cancel)
	go func() {
		s.exit <- run(ctx, []string{"sweep", db, "--sweep-interval=1s", "--sweep-batch=100"}, s.log, s.log, nil)
	}()
	s.log.await(t, "msg=sweeping")
	return s
}

// end stops it and returns how many sessions it says to have deleted.
func (s *sweeping) end(t *testing.T) (sum int) {
	t.Helper()
	s.stop()
	select {
	case code := <-s.exit:
		if code != 0 {
			t.Errorf("exit code %d:\n%s", code, s.log)
		}
	case <-time.After(patience):
		t.Fatalf("sweep does not end:\n%s", s.log)
	}
	for _, m := range regexp.MustCompile(`swept expired sessions" sessions=(\d+)`).FindAllStringSubmatch(s.log.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		sum += n
	}
	return sum
}

// "aspstate sweep" deletes what has expired, in batches, and nothing else; of several one works at a time, and the others go on
// when it has ended.
func TestSweepOnSQLServer(t *testing.T) {
	flag := sqlServer(t)
	want(t, 0, []string{"up to date"}, "migrate", "up", flag)
	dsn, err := os.ReadFile(strings.TrimPrefix(flag, "--sql-connection-string=file:"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlserver", string(dsn))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	sessions := expiring{t, db}
	sessions.add("living", 30, 20)
	sessions.add("expired", 450, -1)

	// Somebody else sweeps.
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("EXEC sp_getapplock @Resource = 'aspstate sweep', @LockMode = 'Exclusive', @LockOwner = 'Transaction', @LockTimeout = 0"); err != nil {
		t.Fatal(err)
	}
	a, b := startSweep(t, flag), startSweep(t, flag)
	for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(100 * time.Millisecond) { // three intervals
		if n := sessions.left("expired"); n != 450 {
			t.Fatalf("%d are left while somebody else sweeps", n)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	sessions.gone("expired")

	// One is stopped, the other goes on.
	sum := a.end(t)
	sessions.add("later", 150, -1)
	sessions.gone("later")
	sum += b.end(t)
	if n := sessions.left("living"); n != 30 || sum != 600 {
		t.Errorf("%d of 30 living sessions are left, and %d of 600 swept ones were counted:\n%s\n%s", n, sum, a.log, b.log)
	}
	if log := a.log.String() + b.log.String(); strings.Contains(log, "failed") {
		t.Errorf("the log:\n%s", log)
	}
}
