package sqlserver_test

import (
	"bytes"
	"database/sql"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
)

// isInUse fails the test unless the step is refused because of web applications, in words that hold what.
func (w webServer) isInUse(err error, what string) {
	w.t.Helper()
	if !errors.Is(err, backends.ErrPermanent) || !errors.Is(err, backends.ErrNotApplied) || backends.IsAnswer(err) ||
		!strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "try again after five minutes") {
		w.t.Fatalf("in a database that web applications use: %v, want %q", err, what)
	}
}

// older has the session's last use lie further back.
func (w webServer) older(id string, d time.Duration) {
	w.t.Helper()
	_, err := w.db.Exec(`UPDATE dbo.ASPStateTempSessions SET Expires = DATEADD(second, -@p2, Expires) WHERE SessionId = @p1`, id, int(d/time.Second))
	w.must(err)
}

func TestDatabasesInDirectUseAreNotLeft(t *testing.T) {
	w, s, key, id := setup(t)
	m := backends.Move{ID: "one", From: "sqlserver://", To: "sqlite:x"}
	const who = `sessions of /lm/w3svc/1/root were used in the last five minutes`
	w.must(w.exec("TempInsertStateItemShort", id, random(10), 20))
	for try := 0; ; try++ {
		// Of 300 uses one is at a whole second.
		err := s.Leave(t.Context(), m)
		if err != nil {
			w.isInUse(err, who)
			break
		}
		if try == 3 {
			t.Fatal("a database is left that a web application uses")
		}
		w.must(w.exec("TempResetTimeout", id))
	}
	if away, _, err := s.Moves(t.Context()); err != nil || away != (backends.Move{}) {
		t.Fatalf("Moves: %v, %v", away, err)
	}
	item, err := s.GetExclusive(t.Context(), key, newToken()) // renews it, so that nothing is left of the web application
	w.must(err)
	w.must(w.exec("TempReleaseStateItemExclusive", id, int(item.LockCookie)))
	w.isInUse(s.Leave(t.Context(), m), who)
	w.older(id, 4*time.Minute+50*time.Second)
	w.isInUse(s.Leave(t.Context(), m), who)
	w.older(id, 15*time.Second)
	w.must(s.Leave(t.Context(), m))
	w.must(s.Complete(t.Context(), m))

	// An application that nobody stopped would lose what it stored since.
	w.must(w.exec("TempResetTimeout", id))
	back := backends.Move{ID: "back", From: "sqlite:x", To: "sqlserver://"}
	w.isInUse(s.Enter(t.Context(), back), who)
	if g := w.get("TempGetStateItem3", id); !g.locked.Valid {
		t.Fatal("a refused Enter has forgotten a session")
	}
	w.older(id, 5*time.Minute+time.Second)
	w.must(s.Enter(t.Context(), back))
	if g := w.get("TempGetStateItem3", id); g.locked.Valid {
		t.Fatal("Enter has not forgotten the sessions")
	}
}

func TestDatabasesOfConnectedWebApplicationsAreNotLeft(t *testing.T) {
	place, db := database(t)
	w, s := webServer{t, db}, open(t, place)
	u, err := url.Parse(place)
	w.must(err)
	q := u.Query()
	q.Set("app name", ".Net SqlClient Data Provider")
	u.RawQuery = q.Encode()
	web, err := sql.Open("sqlserver", u.String())
	w.must(err)
	w.must(web.Ping())
	m := backends.Move{ID: "one"}
	w.isInUse(s.Leave(t.Context(), m), "is connected")
	w.must(web.Close())
	for s.Leave(t.Context(), m) != nil { // the server hears of the end soon
		if t.Context().Err() != nil {
			t.Fatal("a connection that has ended is taken for a web application's")
		}
	}
}

// What this store writes is never taken for direct use, whatever it does.
func TestOwnSessionsAreNoDirectUse(t *testing.T) {
	w, s, key, _ := setup(t)
	key.ID = "own"
	for i, timeout := range []time.Duration{time.Minute, 90 * time.Second, 20 * time.Minute, 525600 * time.Minute, backends.NeverExpires} {
		key.ID += "x"
		w.must(s.Set(t.Context(), key, newToken(), backends.Write{Data: random(10), Timeout: timeout, Uninitialized: i%2 == 0}))
		item, err := s.GetExclusive(t.Context(), key, newToken())
		w.must(err)
		if i%2 == 0 {
			_, err := s.Release(t.Context(), key, newToken(), item.LockCookie, backends.IfUnlocked)
			w.must(err)
		}
		w.must(s.ResetTimeout(t.Context(), key))
		key.ID += "x"
		session := backends.Session{Key: key, Data: random(10), Timeout: timeout, Left: timeout - 12345*time.Microsecond, LockCookie: 1}
		n, err := s.Import(t.Context(), "", []backends.Session{session})
		if w.must(err); n != 1 {
			t.Fatalf("%d sessions are imported", n)
		}
	}
	w.must(s.Leave(t.Context(), backends.Move{ID: "one"}))
}

func TestImportedSessionsAreAsWebServersExpect(t *testing.T) {
	w, s, key, _ := setup(t)
	var all []backends.Session
	created := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	for i, size := range []int{1, 7000, 7001, 300_000} {
		key.ID = strings.Repeat("i", i+1)
		all = append(all, backends.Session{Key: key, Data: random(size), Created: created, Timeout: 90 * time.Second, Left: 45 * time.Second,
			LockCookie: backends.Cookie(5 + i), LockAge: 100 * time.Second, Uninitialized: i == 0, Locked: i == 3})
	}
	n, err := s.Import(t.Context(), "", all)
	if w.must(err); n != len(all) {
		t.Fatalf("%d sessions are imported", n)
	}
	for i, se := range all {
		id := se.ID + se.App.Suffix()
		var short, long, locked bool
		var timeout, flags, age, left, local int
		var since time.Time
		w.must(w.db.QueryRow(`SELECT CASE WHEN SessionItemShort IS NULL THEN 0 ELSE 1 END, CASE WHEN SessionItemLong IS NULL THEN 0 ELSE 1 END, Locked, Timeout, Flags,
			DATEDIFF(second, LockDate, GETUTCDATE()), DATEDIFF(second, GETUTCDATE(), Expires), DATEDIFF(second, LockDateLocal, GETDATE()), Created
			FROM dbo.ASPStateTempSessions WHERE SessionId = @p1`, id).Scan(&short, &long, &locked, &timeout, &flags, &age, &left, &local, &since))
		if isShort := len(se.Data) <= 7000; short != isShort || long == isShort || timeout != 2 || flags != bitOf(se.Uninitialized) || locked != se.Locked ||
			age < 100 || age > 130 || local < 100 || local > 130 || left < 10 || left > 45 || !since.Equal(created) {
			t.Fatalf("%d bytes: short %t, long %t, locked %t, timeout %d, flags %d, LockDate %d s ago, LockDateLocal %d s ago, expires in %d s, created %v, want %v",
				len(se.Data), short, long, locked, timeout, flags, age, local, left, since, created)
		}
		g := w.get("TempGetStateItemExclusive3", id)
		if i == 3 {
			if !g.locked.Bool || g.cookie.Int64 != 8 || g.age.Int64 < 100 || g.age.Int64 > 130 {
				t.Fatalf("a web server gets %+v of a locked session", g)
			}
			continue
		}
		w.wantItem(g, se.Data, int64(se.LockCookie)+1, int64(bitOf(se.Uninitialized)))
	}
}

func bitOf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What is in the table beside the sessions of registered applications.
func TestStrangersInTheTable(t *testing.T) {
	w, s, key, id := setup(t)
	unknown := "someone" + backends.AppID(-2).Suffix()
	for _, row := range []string{id, unknown, "upper" + "B3003E84", "short", "12345678", "nohexdigitszzzzzzzz"} {
		w.must(w.exec("TempInsertStateItemShort", row, []byte("x"), 20))
	}
	// The newer provider leaves both columns set; the long one counts.
	_, err := w.db.Exec(`UPDATE dbo.ASPStateTempSessions SET SessionItemLong = 0x010203 WHERE SessionId = @p1`, unknown)
	w.must(err)
	want := []backends.Key{{App: -2, ID: "someone"}, key}
	for _, order := range []backends.Order{backends.ByKey, backends.BySize, backends.ByCreated} {
		list, err := s.List(t.Context(), backends.Query{Order: order, Limit: 10, Data: true})
		w.must(err)
		if order == backends.ByCreated && len(list) == 2 { // the order in which they were made
			list[0], list[1] = list[1], list[0]
		}
		if len(list) != 2 || list[0].Key != want[0] || list[1].Key != want[1] {
			t.Fatalf("order %d: %v, want %v", order, list, want)
		}
		if !bytes.Equal(list[0].Data, []byte{1, 2, 3}) || list[0].Size != 3 || list[1].Size != 1 {
			t.Fatalf("order %d: %v", order, list)
		}
	}
	page, err := s.List(t.Context(), backends.Query{Limit: 1})
	w.must(err)
	next, err := s.List(t.Context(), backends.Query{Limit: 1, After: page[0].Key})
	w.must(err)
	if len(page) != 1 || len(next) != 1 || page[0].Key != want[0] || next[0].Key != want[1] {
		t.Fatalf("pages: %v, %v", page, next)
	}
	infos, err := s.Applications(t.Context())
	if w.must(err); len(infos) != 1 || infos[0] != (backends.ApplicationInfo{ID: key.App, Name: "/lm/w3svc/1/root", Sessions: 1, Bytes: 1}) {
		t.Fatalf("Applications: %v", infos)
	}
}
