package sqlserver_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/sqlserver"
	"aspstate/backends/sqlserver/mssqltest"
	"aspstate/migrations"
)

// webServer calls the procedures as web applications in mode="SQLServer" do.
type webServer struct {
	t  *testing.T
	db *sql.DB
}

// got is what a TempGetStateItem procedure answers with; locked is not valid where the session is missing.
type got struct {
	item        []byte
	locked      sql.NullBool
	age, cookie sql.NullInt64
	flags       sql.NullInt64
}

func (w webServer) get(procedure string, id string) (g got) {
	w.t.Helper()
	rows, err := w.db.Query(`DECLARE @short varbinary(7000), @locked bit, @age int, @cookie int, @flags int
EXEC dbo.`+procedure+` @p1, @short OUTPUT, @locked OUTPUT, @age OUTPUT, @cookie OUTPUT, @flags OUTPUT
SELECT @short, @locked, @age, @cookie, @flags`, id)
	if err != nil {
		w.t.Fatalf("%s: %v", procedure, err)
	}
	defer rows.Close()
	var short, long []byte
	for more := true; more; more = rows.NextResultSet() {
		for rows.Next() {
			if columns, _ := rows.Columns(); len(columns) == 1 {
				err = rows.Scan(&long)
			} else {
				err = rows.Scan(&short, &g.locked, &g.age, &g.cookie, &g.flags)
			}
			if err != nil {
				w.t.Fatalf("%s: %v", procedure, err)
			}
		}
	}
	if err := rows.Err(); err != nil {
		w.t.Fatalf("%s: %v", procedure, err)
	}
	g.item = short
	if long != nil {
		g.item = long
	}
	return g
}

func (w webServer) exec(procedure string, args ...any) error {
	params := []string{"@p1", "@p2", "@p3", "@p4"}
	_, err := w.db.Exec("EXEC dbo."+procedure+" "+strings.Join(params[:len(args)], ", "), args...)
	return err
}

func (w webServer) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w webServer) wantItem(g got, item []byte, cookie int64, flags int64) {
	w.t.Helper()
	if !g.locked.Valid || g.locked.Bool || !bytes.Equal(g.item, item) || g.cookie.Int64 != cookie || g.flags.Int64 != flags || !g.age.Valid || !g.flags.Valid {
		w.t.Fatalf("a web server gets %+v, want %d bytes, cookie %d, flags %d", g, len(item), cookie, flags)
	}
}

func newToken() (tok backends.Token) {
	rand.Read(tok[:])
	return tok
}

func random(n int) []byte {
	data := make([]byte, n)
	rand.Read(data)
	return data
}

func setup(t *testing.T) (webServer, *sqlserver.Store, backends.Key, string) {
	url, db := database(t)
	s := open(t, url)
	app, err := s.Application(t.Context(), "/lm/w3svc/1/root", true)
	if err != nil {
		t.Fatal(err)
	}
	key := backends.Key{App: app, ID: "1sc3aoog5u5zyko2tl3ghnvq"}
	return webServer{t, db}, s, key, key.ID + "2014c0f1"
}

// A session goes back and forth between a web server in mode="SQLServer" and the store.
func TestSessionsAreSharedWithWebServers(t *testing.T) {
	w, s, key, id := setup(t)
	ctx := t.Context()
	first := []byte{0x14, 0, 0, 0, 0, 0, 0xff}
	if g := w.get("TempGetStateItemExclusive3", id); g.locked.Valid || g.cookie.Valid || g.age.Valid || g.flags.Valid || g.item != nil {
		t.Fatalf("a missing session: %+v", g)
	}
	w.must(w.exec("TempInsertUninitializedItem", id, first, 20))
	if err := w.exec("TempInsertUninitializedItem", id, first, 20); err == nil || !strings.Contains(err.Error(), "2627") {
		t.Fatalf("a second insert: %v", err)
	}
	w.wantItem(w.get("TempGetStateItemExclusive3", id), first, 2, 1)
	locked, err := s.GetExclusive(ctx, key, newToken())
	if l, ok := errors.AsType[*backends.LockedError](err); !ok || l.Cookie != 2 || l.Uninitialized || l.Age > time.Minute {
		t.Fatalf("GetExclusive of a session that a web server locked: %+v, %v", locked, err)
	}

	for _, size := range []int{7000, 7001, 7, 100000} {
		item := random(size)
		cookie := w.get("TempGetStateItem3", id).cookie.Int64
		procedure := "TempUpdateStateItemShortNullLong"
		if size > 7000 {
			procedure = "TempUpdateStateItemLongNullShort"
		}
		w.must(w.exec(procedure, id, item, 30, cookie+1)) // not its lock: without effect, and silent
		w.must(w.exec(procedure, id, item, 30, cookie))
		got, err := s.GetExclusive(ctx, key, newToken())
		if err != nil || !bytes.Equal(got.Data, item) || int64(got.LockCookie) != cookie+1 || got.Timeout != 30*time.Minute || got.Uninitialized {
			t.Fatalf("%d bytes: GetExclusive: %d bytes, cookie %d, %v, %v", size, len(got.Data), got.LockCookie, got.Timeout, err)
		}
		for _, procedure := range []string{"TempGetStateItem3", "TempGetStateItemExclusive3"} {
			if g := w.get(procedure, id); !g.locked.Bool || g.cookie.Int64 != cookie+1 || !g.age.Valid || g.item != nil || g.flags.Int64 != 0 {
				t.Fatalf("%s of a session that the store locked: %+v", procedure, g)
			}
		}
		item = random(size)
		w.must(s.Set(ctx, key, newToken(), backends.Write{Data: item, Timeout: 20 * time.Minute, LockCookie: got.LockCookie}))
		w.wantItem(w.get("TempGetStateItem3", id), item, cookie+1, 0)
		w.wantItem(w.get("TempGetStateItemExclusive3", id), item, cookie+2, 0)
		w.must(w.exec("TempReleaseStateItemExclusive", id, cookie+1)) // not its lock
		if _, err := s.Get(ctx, key, newToken()); backends.IsAnswer(err) && err == nil {
			t.Fatal("a release with another cookie unlocked the session")
		}
		w.must(w.exec("TempReleaseStateItemExclusive", id, cookie+2))
	}

	// The other procedures for short and long items, and those of 1.1.
	cookie := w.get("TempGetStateItem3", id).cookie.Int64
	long := random(9000)
	w.must(w.exec("TempUpdateStateItemLong", id, long, 20, cookie))
	w.wantItem(w.get("TempGetStateItem3", id), long, cookie, 0)
	w.must(w.exec("TempUpdateStateItemShortNullLong", id, first, 20, cookie))
	w.must(w.exec("TempUpdateStateItemShort", id, long[:9], 20, cookie))
	w.wantItem(w.get("TempGetStateItem3", id), long[:9], cookie, 0)
	w.must(w.exec("TempResetTimeout", id))

	w.must(w.exec("TempRemoveStateItem", id, cookie+1)) // not its lock
	w.must(w.exec("TempRemoveStateItem", id, cookie))
	if _, err := s.Get(ctx, key, newToken()); !errors.Is(err, backends.ErrNotFound) {
		t.Fatalf("Get of a session that a web server removed: %v", err)
	}
	w.must(w.exec("TempInsertStateItemLong", id, long, 20))
	w.wantItem(w.get("TempGetStateItem3", id), long, 1, 0)

	// The mark that the store made, reported by a web server, once.
	w.must(s.Remove(ctx, key, newToken(), 1, backends.IfUnlocked))
	w.must(s.Set(ctx, key, newToken(), backends.Write{Data: first, Timeout: time.Minute, Condition: backends.IfMissing, Uninitialized: true}))
	w.wantItem(w.get("TempGetStateItem3", id), first, 1, 1)
	w.wantItem(w.get("TempGetStateItem3", id), first, 1, 0)
}

func TestColumnsAreAsWebServersExpect(t *testing.T) {
	w, s, key, id := setup(t)
	w.must(s.Set(t.Context(), key, newToken(), backends.Write{Data: random(8000), Timeout: 90 * time.Second}))
	_, err := s.GetExclusive(t.Context(), key, newToken())
	w.must(err)
	row := func() (short, long bool, timeout, flags, cookie int, locked bool, local, life int) {
		t.Helper()
		w.must(w.db.QueryRow(`SELECT CASE WHEN SessionItemShort IS NULL THEN 0 ELSE 1 END, CASE WHEN SessionItemLong IS NULL THEN 0 ELSE 1 END, Timeout, Flags, LockCookie, Locked,
			DATEDIFF(second, DATEADD(second, DATEDIFF(second, GETUTCDATE(), GETDATE()), LockDate), LockDateLocal),
			CASE WHEN Timeout < 60 THEN DATEDIFF(second, LockDate, Expires) ELSE DATEDIFF(year, LockDate, Expires) END
			FROM dbo.ASPStateTempSessions WHERE SessionId = @p1`, id).Scan(&short, &long, &timeout, &flags, &cookie, &locked, &local, &life))
		return
	}
	short, long, timeout, flags, cookie, locked, local, life := row()
	if short || !long || timeout != 2 || flags != 0 || cookie != 2 || !locked || local < -1 || local > 1 || life < 120 || life > 127 {
		t.Fatalf("a long item's row: short %t, long %t, timeout %d, flags %d, cookie %d, locked %t, LockDateLocal off by %d s, expires after %d s",
			short, long, timeout, flags, cookie, locked, local, life)
	}
	w.must(s.Set(t.Context(), key, newToken(), backends.Write{Data: random(7000), Timeout: backends.NeverExpires, LockCookie: 2}))
	short, long, timeout, _, _, locked, _, life = row()
	if !short || long || timeout != 1<<31-1 || locked || life < 4000 {
		t.Fatalf("a short item's row: short %t, long %t, timeout %d, locked %t, expires after %d years", short, long, timeout, locked, life)
	}
	w.get("TempGetStateItem3", id) // renews it in its own way
	if item, err := s.Get(t.Context(), key, newToken()); err != nil || item.Timeout != backends.NeverExpires {
		t.Fatalf("Get: %v, %v", item.Timeout, err)
	}
}

// Web servers revive what has expired in a database of aspnet_regsql; in one of ours it is missing for them too.
func TestExpiredSessionsAreMissingForWebServers(t *testing.T) {
	w, s, key, id := setup(t)
	for _, procedure := range []string{"TempGetStateItem3", "TempGetStateItemExclusive3"} {
		w.must(s.Set(t.Context(), key, newToken(), backends.Write{Data: random(10), Timeout: -1}))
		if g := w.get(procedure, id); g.locked.Valid {
			t.Fatalf("%s of an expired session: %+v", procedure, g)
		}
		item := random(10)
		w.must(w.exec("TempInsertStateItemShort", id, item, 20)) // no 2627
		w.wantItem(w.get(procedure, id), item, w.get("TempGetStateItem3", id).cookie.Int64+0, 0)
		w.must(w.exec("TempReleaseStateItemExclusive", id, 2))
		w.must(s.Remove(t.Context(), key, newToken(), 2, backends.IfUnlocked))
	}
	for range 3 {
		w.must(s.Set(t.Context(), key, newToken(), backends.Write{Data: random(10), Timeout: -1}))
	}
	other := key
	other.ID = "other"
	w.must(s.Set(t.Context(), other, newToken(), backends.Write{Data: random(10), Timeout: time.Minute}))
	w.must(w.exec("DeleteExpiredSessions"))
	var n int
	w.must(w.db.QueryRow("SELECT COUNT(*) FROM dbo.ASPStateTempSessions").Scan(&n))
	if n != 1 {
		t.Fatalf("DeleteExpiredSessions leaves %d sessions, want 1", n)
	}
}

func TestApplicationsHaveTheirNumberHereAndThere(t *testing.T) {
	w, s, _, _ := setup(t)
	number := func(name string) (id int32, err error) {
		err = w.db.QueryRow("DECLARE @id int EXEC dbo.TempGetAppID @p1, @id OUTPUT SELECT @id", name).Scan(&id)
		return id, err
	}
	for name, suffix := range map[string]string{
		"/LM/W3SVC/1/ROOT": "2014c0f1", "/LM/W3SVC/5/Root": "28d8c075", "/lm/w3svc/2/root": "2b7731d2", "/LM/W3SVC/1/ROOT/SessionTest": "a30e2956",
	} {
		id, err := number(name)
		ours, err2 := s.Application(t.Context(), strings.ToLower(name), false)
		if err != nil || err2 != nil || backends.AppID(id).Suffix() != suffix || ours != backends.AppID(id) {
			t.Errorf("%s is %s, %v; ours is %s, %v; want %s", name, backends.AppID(id).Suffix(), err, ours.Suffix(), err2, suffix)
		}
	}
	ours, err := s.Application(t.Context(), "/lm/w3svc/77/root", true)
	if id, err2 := number("/LM/W3SVC/77/ROOT"); err != nil || err2 != nil || ours != backends.AppID(id) {
		t.Errorf("registered as %d, %v; TempGetAppID gives %d, %v", ours, err, id, err2)
	}
	if _, err := number("/LM/W3SVC/1/ROOT/ozbyjek"); err != nil {
		t.Error(err)
	}
	if _, err := number("/LM/W3SVC/1/ROOT/vewemtr"); err == nil || !strings.Contains(err.Error(), "same hash code") {
		t.Errorf("TempGetAppID of a name whose number is taken: %v", err)
	}
}

// In a database of aspnet_regsql the key does not tell letter case.
func TestIDsThatTheKeyTakesForOneAreRefused(t *testing.T) {
	url := mssqltest.Database(t)
	m, db, err := migrations.SQLServer(t.Context(), url)
	w := webServer{t, db}
	w.must(err)
	t.Cleanup(func() { db.Close() })
	for _, batch := range []string{
		`CREATE TABLE dbo.ASPStateTempSessions (SessionId nvarchar(88) NOT NULL PRIMARY KEY, Created datetime NOT NULL DEFAULT GETUTCDATE(),
			Expires datetime NOT NULL, LockDate datetime NOT NULL, LockDateLocal datetime NOT NULL, LockCookie int NOT NULL, Timeout int NOT NULL,
			Locked bit NOT NULL, SessionItemShort varbinary(7000) NULL, SessionItemLong image NULL, Flags int NOT NULL DEFAULT 0)`,
		`CREATE TABLE dbo.ASPStateTempApplications (AppId int NOT NULL PRIMARY KEY, AppName char(280) NOT NULL)`,
	} {
		_, err := db.Exec(batch)
		w.must(err)
	}
	w.must(m.Up(t.Context()))
	var log strings.Builder
	s, err := sqlserver.Open(t.Context(), url, slog.New(slog.NewTextHandler(&log, nil)))
	w.must(err)
	defer s.Close()
	app, err := s.Application(t.Context(), "/lm/w3svc/1/root", true)
	w.must(err)
	small, capital := backends.Key{App: app, ID: "session-one"}, backends.Key{App: app, ID: "Session-One"}
	item := random(20)
	w.must(s.Set(t.Context(), small, newToken(), backends.Write{Data: item, Timeout: time.Minute}))
	for name, call := range map[string]func(ctx context.Context) error{
		"Get":          func(ctx context.Context) error { _, err := s.Get(ctx, capital, newToken()); return err },
		"GetExclusive": func(ctx context.Context) error { _, err := s.GetExclusive(ctx, capital, newToken()); return err },
		"Release": func(ctx context.Context) error {
			_, err := s.Release(ctx, capital, newToken(), 1, backends.IfUnlocked)
			return err
		},
		"Remove":       func(ctx context.Context) error { return s.Remove(ctx, capital, newToken(), 1, backends.IfUnlocked) },
		"ResetTimeout": func(ctx context.Context) error { return s.ResetTimeout(ctx, capital) },
	} {
		if err := call(t.Context()); !errors.Is(err, backends.ErrNotFound) {
			t.Errorf("%s of an ID in other letters: %v", name, err)
		}
	}
	for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfMissing} {
		err := s.Set(t.Context(), capital, newToken(), backends.Write{Data: random(20), Timeout: time.Minute, Condition: cond})
		if !errors.Is(err, backends.ErrPermanent) || !errors.Is(err, backends.ErrNotApplied) {
			t.Errorf("Set of an ID in other letters: %v", err)
		}
	}
	if !strings.Contains(log.String(), "refused") || strings.Contains(log.String(), capital.ID) {
		t.Errorf("the log says %q", log.String())
	}
	if got, err := s.Get(t.Context(), small, newToken()); err != nil || !bytes.Equal(got.Data, item) {
		t.Errorf("the session itself: %v", err)
	}
	// Once the session has expired there is room.
	backdate(t, db, small, time.Hour)
	w.must(s.Set(t.Context(), capital, newToken(), backends.Write{Data: item, Timeout: time.Minute, Condition: backends.IfMissing}))
	if _, err := s.Get(t.Context(), small, newToken()); !errors.Is(err, backends.ErrNotFound) {
		t.Errorf("Get of the one that expired: %v", err)
	}
	if _, err := s.Get(t.Context(), capital, newToken()); err != nil {
		t.Error(err)
	}
}
