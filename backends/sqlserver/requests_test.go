package sqlserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/sqlserver/mssqltest"
	"aspstate/migrations"
)

func testStore(t *testing.T) *Store {
	t.Helper()
	url := mssqltest.Database(t)
	m, db, err := migrations.SQLServer(t.Context(), url)
	if err == nil {
		defer db.Close()
		err = m.Up(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), url, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A first try may arrive after its retry was answered, however late. Then it does nothing.
func TestFirstTriesThatComeLateDoNothing(t *testing.T) {
	s := testStore(t)
	key := backends.Key{App: 1, ID: "late"}
	w := backends.Write{Data: []byte("first"), Timeout: time.Minute}
	if err := s.Set(t.Context(), key, backends.Token{1}, w); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		// The try is lost on its way: its slot is put aside before the batch arrives.
		tok := backends.Token{2}
		sl := s.slots.take()
		sl.seq++
		arrives := func() row {
			r, err := s.row(t.Context(), anyItem, lockSQL, keyDeclared+", @slot binary(16), @seq bigint",
				keyArg(key), sql.Named("slot", sl.id[:]), sql.Named("seq", sl.seq))
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		s.slots.doubt(tok, sl)
		item, err := s.GetExclusive(t.Context(), key, tok)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Release(t.Context(), key, backends.Token{3}, item.LockCookie, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
		sl.seq-- // the retry used it once more
		if r := arrives(); r.done != late {
			t.Fatalf("the first try did %d", r.done)
		}
		got, err := s.Get(t.Context(), key, backends.Token{4})
		if err != nil || got.LockCookie != item.LockCookie {
			t.Fatalf("the session after the first try has cookie %d, %v; want %d, unlocked", got.LockCookie, err, item.LockCookie)
		}
		sl.seq++
	}
}

// A try that was applied, and whose answer is lost, is repeated from its slot.
func TestLostAnswersAreRepeated(t *testing.T) {
	s := testStore(t)
	key := backends.Key{App: 1, ID: "lost"}
	if err := s.Set(t.Context(), key, backends.Token{1}, backends.Write{Data: []byte("x"), Timeout: time.Minute, Uninitialized: true}); err != nil {
		t.Fatal(err)
	}
	lose := func(tok backends.Token, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		s.slots.doubt(tok, s.slots.take()) // the one that was used last
	}
	tok := backends.Token{2}
	lose(tok, func() error { _, err := s.Get(t.Context(), key, tok); return err })
	if item, err := s.Get(t.Context(), key, tok); err != nil || !item.Uninitialized {
		t.Fatalf("Get tried again: %v, %v", item, err)
	}
	if item, err := s.Get(t.Context(), key, backends.Token{9}); err != nil || item.Uninitialized {
		t.Fatalf("another Get: %v, %v", item, err)
	}
	tok = backends.Token{3}
	lose(tok, func() error { _, err := s.GetExclusive(t.Context(), key, tok); return err })
	if item, err := s.GetExclusive(t.Context(), key, tok); err != nil || item.LockCookie != 2 || string(item.Data) != "x" {
		t.Fatalf("GetExclusive tried again: %v, %v", item, err)
	}
	tok = backends.Token{4}
	w := backends.Write{Data: []byte("y"), Timeout: time.Minute, LockCookie: 2}
	lose(tok, func() error { return s.Set(t.Context(), key, tok, w) })
	later := backends.Write{Data: []byte("later"), Timeout: time.Minute}
	if err := s.Set(t.Context(), key, backends.Token{5}, later); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), key, tok, w); err != nil {
		t.Fatal(err)
	}
	if item, err := s.Get(t.Context(), key, backends.Token{6}); err != nil || !bytes.Equal(item.Data, later.Data) {
		t.Fatalf("Set tried again has overwritten a later write: %q, %v", item.Data, err)
	}
}

// The sweeper deletes rows of requests that nobody has used for an hour; who used them goes on.
func TestSlotsThatWereSweptAreMadeAgain(t *testing.T) {
	s := testStore(t)
	key := backends.Key{App: 1, ID: "swept"}
	for i := range 3 {
		if err := s.Set(t.Context(), key, backends.Token{byte(i)}, backends.Write{Data: []byte("x"), Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		if err := s.exec(t.Context(), "UPDATE dbo.ASPStateRequests SET LastUse = DATEADD(minute, -61, LastUse) WHERE Slot <> 0x00000000000000000000000000000000", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := s.DeleteExpired(t.Context(), 10); err != nil {
			t.Fatal(err)
		}
		n, err := query(t.Context(), s, "SELECT COUNT(*) FROM dbo.ASPStateRequests", "", nil, func(rows *sql.Rows) (n int, err error) {
			err = rows.Scan(&n)
			return n, err
		})
		if err != nil || n != 1 {
			t.Fatalf("%d rows are left, %v; want that of the migrations", n, err)
		}
	}
}

// While one server sweeps another deletes nothing, and does not wait.
func TestOneServerSweepsAtATime(t *testing.T) {
	s := testStore(t)
	if err := s.Set(t.Context(), backends.Key{App: 1, ID: "expired"}, backends.Token{1}, backends.Write{Data: []byte("x"), Timeout: -1}); err != nil {
		t.Fatal(err)
	}
	tx, err := s.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("EXEC sp_getapplock @Resource = 'aspstate sweep', @LockMode = 'Exclusive', @LockOwner = 'Transaction', @LockTimeout = 0"); err != nil {
		t.Fatal(err)
	}
	for range 20 { // Babelfish bears five on a connection unless each ends in an error
		if n, err := s.DeleteExpired(t.Context(), 10); n != 0 || err != nil {
			t.Fatalf("DeleteExpired beside another sweeper: %d, %v", n, err)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.DeleteExpired(t.Context(), 10); n != 1 || err != nil {
		t.Fatalf("DeleteExpired: %d, %v", n, err)
	}
}

// A call that is over leaves its batch running, and its retry knows what became of it.
func TestCallsEndWithTheirContext(t *testing.T) {
	s := testStore(t)
	key := backends.Key{App: 1, ID: "held"}
	w := backends.Write{Data: []byte("x"), Timeout: time.Minute}
	if err := s.Set(t.Context(), key, backends.Token{1}, w); err != nil {
		t.Fatal(err)
	}
	tx, err := s.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE dbo.ASPStateTempSessions SET Timeout = Timeout"); err != nil { // holds the row
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	tok := backends.Token{2}
	begun := time.Now()
	_, err = s.GetExclusive(ctx, key, tok)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, backends.ErrNotApplied) || backends.IsAnswer(err) || time.Since(begun) > 2*time.Second {
		t.Fatalf("GetExclusive of a session whose row is held: %v after %v", err, time.Since(begun))
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	item, err := s.GetExclusive(t.Context(), key, tok)
	if err != nil || item.LockCookie != 2 {
		t.Fatalf("GetExclusive tried again: cookie %d, %v", item.LockCookie, err)
	}
}

// The sweeper leaves a session whose row a request holds for the next time, and does not wait for it.
func TestSweeperPassesOverRowsThatAreHeld(t *testing.T) {
	s := testStore(t)
	for _, id := range []string{"a", "held", "z"} {
		if err := s.Set(t.Context(), backends.Key{App: 1, ID: id}, backends.Token{id[0]}, backends.Write{Data: []byte("x"), Timeout: -1}); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := s.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE dbo.ASPStateTempSessions SET Flags = Flags WHERE SessionId LIKE 'held%'"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience/2)
	defer cancel()
	n, err := s.DeleteExpired(ctx, 10)
	if errors.Is(err, context.DeadlineExceeded) && babelfish(t, s) {
		t.Skip("Babelfish ignores READPAST: its sweeper waits for the rows that requests hold. On SQL Server this test has to pass")
	}
	if n != 2 || err != nil {
		t.Fatalf("DeleteExpired beside a row that is held: %d, %v; want 2", n, err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.DeleteExpired(t.Context(), 10); n != 1 || err != nil {
		t.Fatalf("DeleteExpired afterwards: %d, %v; want 1", n, err)
	}
}

func babelfish(t *testing.T, s *Store) (is bool) {
	t.Helper()
	if err := s.db.QueryRow(`SELECT CASE WHEN SERVERPROPERTY('Babelfish') IS NULL THEN 0 ELSE 1 END`).Scan(&is); err != nil {
		t.Fatal(err)
	}
	return is
}
