package sqlite

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
)

func imported(n, size int) backends.Session {
	data := make([]byte, size)
	rand.Read(data)
	return backends.Session{Key: key(n), Data: data, Created: time.Now(), Timeout: timeout, Left: timeout, LockCookie: 1}
}

// Moves and arrivals are in the file.
func TestMovesOutliveTheStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	m := backends.Move{ID: "one", From: "StateServer", To: "sqlite:" + path}
	again := func(s *Store) *Store {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return openStore(t, path)
	}
	wantMoves := func(s *Store, away, into backends.Move) {
		t.Helper()
		gotAway, gotInto, err := s.Moves(t.Context())
		if err != nil || gotAway != away || gotInto != into {
			t.Fatalf("moves are %v and %v, error %v, want %v and %v", gotAway, gotInto, err, away, into)
		}
	}
	s := openStore(t, path)
	if err := s.Enter(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	one, two := imported(1, 100), imported(2, 100)
	if n, err := s.Import(t.Context(), "one", []backends.Session{one}); n != 1 || err != nil {
		t.Fatalf("imported %d, error %v", n, err)
	}
	if err := s.Remove(t.Context(), one.Key, newToken(), 1, backends.IfUnlocked); err != nil {
		t.Fatal(err)
	}
	s = again(s)
	m.Stage = backends.Moving
	wantMoves(s, backends.Move{}, m)
	if n, err := s.Import(t.Context(), "one", []backends.Session{one, two}); n != 1 || err != nil {
		t.Fatalf("imported %d, error %v, want one and not the session that was removed", n, err)
	}
	if err := s.Complete(t.Context(), backends.Move{ID: "one", From: "short"}); err != nil {
		t.Fatal(err)
	}
	s = again(s)
	m = backends.Move{ID: "one", From: "short", Stage: backends.Moved}
	wantMoves(s, backends.Move{}, m)
	away := backends.Move{ID: "two", From: "here", To: "there"}
	if err := s.Leave(t.Context(), away); err != nil {
		t.Fatal(err)
	}
	s = again(s)
	away.Stage = backends.Moving
	wantMoves(s, away, m)
	_, err := s.Get(t.Context(), two.Key, newToken())
	wantIs(t, err, backends.ErrMoved)
	if got, err := s.Inspect(t.Context(), two.Key); err != nil || len(got.Data) != 100 {
		t.Fatalf("Inspect: %v, %v", got, err)
	}
	if err := s.Complete(t.Context(), backends.Move{ID: "two", To: "short"}); err != nil {
		t.Fatal(err)
	}
	s = again(s)
	away = backends.Move{ID: "two", To: "short", Stage: backends.Moved}
	wantMoves(s, away, m)
	back := backends.Move{ID: "three"}
	if err := s.Enter(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	s = again(s)
	back.Stage = backends.Moving
	wantMoves(s, backends.Move{}, back)
	_, err = s.Get(t.Context(), two.Key, newToken())
	wantIs(t, err, backends.ErrNotFound)
}

// A step that is not committed has not happened.
func TestLeaveThatFails(t *testing.T) {
	s := newStore(t)
	db := s.file.DB()
	if _, err := db.Exec("CREATE TRIGGER stop BEFORE INSERT ON moves BEGIN SELECT raise(ABORT, 'planted'); END"); err != nil {
		t.Fatal(err)
	}
	if err := s.Leave(t.Context(), backends.Move{ID: "one"}); err == nil || !strings.Contains(err.Error(), "planted") {
		t.Fatalf("Leave: %v", err)
	}
	if err := s.Set(t.Context(), key(1), newToken(), write(data(1))); err != nil {
		t.Fatal(err)
	}
	holds(t, s, key(1), data(1), 1)
	if away, _, err := s.Moves(t.Context()); err != nil || away.Stage != backends.NoMove {
		t.Fatalf("Moves: %v, %v", away, err)
	}
	if _, err := db.Exec("DROP TRIGGER stop"); err != nil {
		t.Fatal(err)
	}
	if err := s.Leave(t.Context(), backends.Move{ID: "one"}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(t.Context(), key(1), newToken())
	wantIs(t, err, backends.ErrMoved)
}

// A page by key is found in the index, and sorts nothing.
func TestPagesByKeyUseTheIndex(t *testing.T) {
	s := newStore(t)
	rows, err := s.file.DB().Query("EXPLAIN QUERY PLAN "+listByKey, 1, []byte("a"), 2, []byte("b"), 0, 0, []byte{}, 1, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, detail)
	}
	want := "SEARCH sessions USING INDEX sqlite_autoindex_sessions_1 ((app_id,session_id)>(?,?) AND (app_id,session_id)<(?,?))"
	if len(plan) != 1 || plan[0] != want {
		t.Fatalf("the plan is %q, want %q", plan, want)
	}
}

// A long look ends with its context, and holds up neither requests nor Close.
func TestLongLook(t *testing.T) {
	s := newStore(t)
	c := <-s.lists
	if _, err := s.Inspect(t.Context(), key(1)); err == nil {
		t.Fatal("a missing session was found")
	}
	if err := s.Set(t.Context(), key(1), newToken(), write(data(1))); err != nil {
		t.Fatal(err)
	}
	holds(t, s, key(1), data(1), 1)
	s.lists <- c
	const endless = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n`
	nothing := func(*stmt) error { return nil }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantIs(t, s.look(ctx, "look", endless, func(*stmt) {}, nothing), ctx.Err())
	if apps, err := s.Applications(t.Context()); err != nil || len(apps) != 0 {
		t.Fatalf("the next look: %v, %v", apps, err)
	}
	early, end := context.WithCancel(t.Context())
	before := func(*stmt) { // the statement begins
		end()
		time.Sleep(20 * time.Millisecond) // or it may be interrupted too late to show the fault
	}
	wantIs(t, s.look(early, "look", endless, before, nothing), context.Canceled)
	failed := make(chan error)
	go func() { failed <- s.look(t.Context(), "look", endless, func(*stmt) {}, nothing) }()
	for len(s.lists) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantIs(t, <-failed, errClosed)
}

func BenchmarkImport(b *testing.B) {
	for _, size := range []int{1 << 10, 7 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s, err := New(openFile(b, filepath.Join(b.TempDir(), "test.db")), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			if err := s.Enter(b.Context(), backends.Move{ID: "one"}); err != nil {
				b.Fatal(err)
			}
			page := make([]backends.Session, 300)
			b.ResetTimer()
			for done := 0; done < b.N; done += len(page) {
				b.StopTimer()
				for i := range page {
					page[i] = imported(done+i, size)
				}
				b.StartTimer()
				if n, err := s.Import(b.Context(), "one", page); n != len(page) || err != nil {
					b.Fatalf("imported %d, error %v", n, err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}
