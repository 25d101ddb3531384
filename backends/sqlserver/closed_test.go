package sqlserver

import (
	"bytes"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
)

// A batch that has looked whether the database was left, and goes on after that, changes nothing.
func TestBatchesUnderWayChangeNothingInADatabaseThatWasLeft(t *testing.T) {
	s := testStore(t)
	ctx := t.Context()
	key := backends.Key{App: 1, ID: "under way"}
	w := backends.Write{Data: []byte("before"), Timeout: 20 * time.Minute}
	if err := s.Set(ctx, key, backends.Token{1}, w); err != nil {
		t.Fatal(err)
	}
	sl := s.slots.take() // has been used, and is not given back
	sl.seq++
	set := func(batch string) (row, error) {
		short, long := columnsOf([]byte("after"))
		return s.row(ctx, noItem, batch, setDeclared+", @slot binary(16), @seq bigint", keyArg(key), sql.Named("cookie", int32(1)), sql.Named("timeout", 20),
			sql.Named("short", short), sql.Named("long", long), sql.Named("mark", false), sql.Named("updates", true), sql.Named("ifCookie", false),
			sql.Named("creates", true), sql.Named("slot", sl.id[:]), sql.Named("seq", sl.seq))
	}
	after := func(batch string) string { return strings.Replace(batch, shut, "", 1) }
	if err := s.Leave(ctx, backends.Move{ID: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.ExecContext(ctx, `UPDATE dbo.ASPStateTempSessions SET Expires = DATEADD(minute, -10, Expires)`); err != nil {
		t.Fatal(err)
	}
	before, err := s.Inspect(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set(setSQL); !errors.Is(err, backends.ErrMoved) {
		t.Fatalf("a Set: %v", err)
	}
	if r, err := set(after(setSQL)); err != nil || r.done != late {
		t.Fatalf("a Set under way did %d, %v", r.done, err)
	}
	_, err = s.row(ctx, noItem, after(touchSQL), keyDeclared+", @clears bit, @onlyLocked bit, @slot binary(16), @seq bigint",
		keyArg(key), sql.Named("clears", false), sql.Named("onlyLocked", false), sql.Named("slot", sl.id[:]), sql.Named("seq", sl.seq))
	if !errors.Is(err, backends.ErrMoved) {
		t.Fatalf("a renewal under way: %v", err)
	}
	// A slot that is made, or fenced, after the Leave is closed as well.
	for _, other := range []*slot{{id: [16]byte{2}}, sl} {
		if before, err := s.fence(ctx, other); before != nil || err != nil {
			t.Fatalf("a fence: %v, %v", before, err)
		}
		other.seq++
		sl = other
		if r, err := set(after(setSQL)); err != nil || r.done != late {
			t.Fatalf("a Set with a new slot did %d, %v", r.done, err)
		}
	}
	now, err := s.Inspect(ctx, key)
	if err != nil || !bytes.Equal(now.Data, before.Data) || now.Left > before.Left {
		t.Fatalf("the session was %+v and is %+v, %v", before, now, err)
	}
	// Whoever enters the database uses these slots again.
	if err := errors.Join(s.Complete(ctx, backends.Move{ID: "one"}), s.Enter(ctx, backends.Move{ID: "two"})); err != nil {
		t.Fatal(err)
	}
	s.slots.put(sl)
	if err := s.Set(ctx, key, backends.Token{2}, w); err != nil {
		t.Fatal(err)
	}
}

// A batch that holds the lock of moves keeps a Leave waiting, and no longer.
func TestLeaveWaitsForRenewals(t *testing.T) {
	s := testStore(t)
	ctx := t.Context()
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `DECLARE @granted int`+hold); err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() { left <- s.Leave(ctx, backends.Move{ID: "one"}) }()
	for n := 0; n < 3; n++ { // the Leave has tried by then, or not: it must not have come through
		if _, err := s.Application(ctx, "/a"+string(rune('0'+n)), true); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-left:
		t.Fatalf("Leave did not wait: %v", err)
	case <-time.After(time.Second):
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Application(ctx, "/b", true); !errors.Is(err, backends.ErrMoved) {
		t.Fatalf("Application: %v", err)
	}
}
