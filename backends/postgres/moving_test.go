//go:build unix

package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

func elsewhere(app backends.AppID, n, size int) backends.Session {
	data := make([]byte, size)
	rand.Read(data)
	return backends.Session{Key: backends.Key{App: app, ID: fmt.Sprintf("session%017d", n)}, Data: data, Size: size,
		Created: time.Now(), Timeout: 20 * time.Minute, Left: 20 * time.Minute, LockCookie: 1}
}

// Looking does not wait for row locks, nor for a step of a move that waits.
func TestLookingWaitsForNobody(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	store, db := open(t, url), connectTo(t, url)
	app, err := store.Application(t.Context(), "app", true)
	if err != nil {
		t.Fatal(err)
	}
	key := backends.Key{App: app, ID: "a"}
	if err := store.Set(t.Context(), key, newToken(), backends.Write{Data: item(10), Timeout: time.Hour, LockCookie: backends.NoCookie}); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "LOCK TABLE moves IN EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM sessions FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := store.Inspect(ctx, key); err != nil {
		t.Error(err)
	}
	for order := backends.ByKey; order <= backends.ByCreated; order++ {
		if _, err := store.List(ctx, backends.Query{Order: order, Limit: 10, Data: true}); err != nil {
			t.Errorf("order %d: %v", order, err)
		}
	}
	if _, err := store.Applications(ctx); err != nil {
		t.Error(err)
	}
	if _, _, err := store.Moves(ctx); err != nil {
		t.Error(err)
	}
}

// A Leave waits for statements under way, but not so long that others wait with it; and it ends with its context.
func TestLeaveWaitsInTurns(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	store, db := open(t, url), connectTo(t, url)
	app, err := store.Application(t.Context(), "app", true)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), "LOCK TABLE moves IN ROW SHARE MODE"); err != nil { // a statement that takes long
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- store.Leave(ctx, backends.Move{ID: "one"}) }()
	for i := 0; ctx.Err() == nil; i++ {
		begun := time.Now()
		err := store.Set(t.Context(), backends.Key{App: app, ID: "a"}, newToken(), backends.Write{Data: item(10), Timeout: time.Hour, LockCookie: backends.NoCookie})
		if took := time.Since(begun); err != nil || took > 2*time.Second {
			t.Fatalf("Set %d: %v, after %v", i, err, took)
		}
	}
	if err := <-left; !errors.Is(err, context.DeadlineExceeded) || backends.IsAnswer(err) {
		t.Fatalf("Leave: %v, want the end of its context", err)
	}
	if away, _, err := store.Moves(t.Context()); err != nil || away.Stage != backends.NoMove {
		t.Fatalf("Moves: %v, %v", away, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := store.Leave(t.Context(), backends.Move{ID: "one"}); err != nil {
		t.Fatal(err)
	}
}

// A statement that waits for a Leave sees it, though it was sent before.
func TestStatementThatWaitedForALeave(t *testing.T) {
	server := pgtest.Shared(t)
	url := migrated(t, server.Database(t))
	store, db := open(t, url), connectTo(t, url)
	app, err := store.Application(t.Context(), "app", true)
	if err != nil {
		t.Fatal(err)
	}
	key := backends.Key{App: app, ID: "a"}
	w := backends.Write{Data: item(10), Timeout: time.Hour, LockCookie: backends.NoCookie}
	large := w
	large.Data = item(largeItem)
	if err := store.Set(t.Context(), key, newToken(), w); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"GetExclusive": func() error { _, err := store.GetExclusive(t.Context(), key, newToken()); return err },
		"Set":          func() error { return store.Set(t.Context(), key, newToken(), w) },
		"a large Set":  func() error { return store.Set(t.Context(), key, newToken(), large) },
		"a new session": func() error {
			return store.Set(t.Context(), backends.Key{App: app, ID: "new"}, newToken(), w)
		},
		"Unread":      func() error { return store.Unread(t.Context(), key, backends.Item{}) },
		"Expect":      func() error { _, err := store.Expect(t.Context(), key); return err },
		"Application": func() error { _, err := store.Application(t.Context(), "new", true); return err },
		"Import": func() error {
			_, err := store.Import(t.Context(), "", []backends.Session{elsewhere(app, 1, 10)})
			return err
		},
	}
	for name, call := range calls {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "LOCK TABLE moves IN EXCLUSIVE MODE"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- call() }()
		for waits := false; !waits; {
			if err := tx.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'moves'::regclass)").Scan(&waits); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tx.Exec(t.Context(), "INSERT INTO moves VALUES (true, 'one', '', '', 2)"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, backends.ErrMoved) {
			t.Errorf("%s: %v, want ErrMoved", name, err)
		}
		if _, err := db.Exec(t.Context(), "DELETE FROM moves"); err != nil {
			t.Fatal(err)
		}
	}
	var rows int
	if err := db.QueryRow(t.Context(), "SELECT count(*) FROM sessions").Scan(&rows); err != nil || rows != 1 {
		t.Errorf("there are %d sessions, %v", rows, err)
	}
}

// The fence relies on READ COMMITTED.
func TestLeaveUnderStricterIsolation(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	store := open(t, url+"&default_transaction_isolation=repeatable%20read")
	err := store.Leave(t.Context(), backends.Move{ID: "one"})
	if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), "ALTER ROLE") {
		t.Fatalf("Leave: %v", err)
	}
}

// A server of schema version 1 works on beside this one, as long as nobody moves.
func TestBesideTheSchemaBefore(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	store, db := open(t, url), connectTo(t, url)
	for _, sql := range []string{ // what version 1 inserts, in its own words
		`INSERT INTO applications (app_id, name_hash, app_name, last_use) VALUES (7, sha256('app'), 'app', now())`,
		`INSERT INTO sessions (app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked, flags, sweep_at, recent, item)
			VALUES (7, 'a', now(), now() + interval '1 hour', now(), 1, 3600000, false, 0, now() + interval '1 hour', '', 'data')`,
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if app, err := store.Application(t.Context(), "app", false); err != nil || app != 7 {
		t.Fatalf("Application: %d, %v", app, err)
	}
	if item, err := store.Get(t.Context(), backends.Key{App: 7, ID: "a"}, newToken()); err != nil || string(item.Data) != "data" {
		t.Fatalf("Get: %v, %v", item, err)
	}
}

// A page by key is a scan of the index, and sorts nothing.
func TestPagesByKeyUseTheIndex(t *testing.T) {
	url := migrated(t, pgtest.Shared(t).Database(t))
	db := connectTo(t, url)
	if _, err := db.Exec(t.Context(), `INSERT INTO sessions SELECT 1, convert_to('s' || n, 'UTF8'), now(), 'infinity', now(), 1, 0, false, 0, 'infinity', '', 'x' FROM generate_series(1, 20000) n; ANALYZE sessions`); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(t.Context(), "EXPLAIN "+listByKeySQL, int64(1), []byte("a"), int64(2), []byte("b"), false, []byte{}, true, int64(300))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	plan := ""
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan += line + "\n"
	}
	if strings.Contains(plan, "Sort") || !strings.Contains(plan, "Index Cond: ((ROW(app_id, session_id) >=") || !strings.Contains(plan, "AND (ROW(app_id, session_id) <") {
		t.Fatalf("the plan is\n%s", plan)
	}
}

func BenchmarkImport(b *testing.B) {
	server := pgtest.New(b)
	for _, size := range []int{1 << 10, 7 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			store := open(b, migrated(b, server.Database(b)))
			if err := store.Enter(b.Context(), backends.Move{ID: "one"}); err != nil {
				b.Fatal(err)
			}
			page := make([]backends.Session, 300)
			b.ResetTimer()
			for done := 0; done < b.N; done += len(page) {
				b.StopTimer()
				for i := range page {
					page[i] = elsewhere(1, done+i, size)
				}
				b.StartTimer()
				if n, err := store.Import(b.Context(), "one", page); n != len(page) || err != nil {
					b.Fatalf("imported %d, error %v", n, err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}
