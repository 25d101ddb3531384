package sqlserver_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/sqlserver"
	"aspstate/backends/sqlserver/mssqltest"
)

var tables = []string{"ASPStateTempSessions", "ASPStateTempApplications", "ASPStateRequests"}

func grant(t *testing.T, db *sql.DB, user, rights string, tables ...string) {
	t.Helper()
	for _, table := range tables {
		if _, err := db.Exec("GRANT " + rights + " ON dbo." + table + " TO " + user); err != nil {
			t.Fatal(err)
		}
	}
}

// operations are all that a server asks of its store, on a session that is there.
func operations(s *sqlserver.Store, key backends.Key) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Application": func(ctx context.Context) error { _, err := s.Application(ctx, "/lm/w3svc/9/root", true); return err },
		"Set": func(ctx context.Context) error {
			return s.Set(ctx, key, newToken(), backends.Write{Data: random(9000), Timeout: time.Minute})
		},
		"GetExclusive": func(ctx context.Context) error { _, err := s.GetExclusive(ctx, key, newToken()); return err },
		"Release": func(ctx context.Context) error {
			_, err := s.Release(ctx, key, newToken(), 1, backends.IfCookie)
			return err
		},
		"Remove":        func(ctx context.Context) error { return s.Remove(ctx, key, newToken(), 1, backends.IfCookie) },
		"DeleteExpired": func(ctx context.Context) error { _, err := s.DeleteExpired(ctx, 10); return err },
		"Attend":        func(ctx context.Context) error { _, err := s.Attend(ctx, backends.Attendance{ID: "one"}); return err },
	}
}

// wantRightsNamed wants an error that says what to grant, and that no retry helps.
func wantRightsNamed(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, backends.ErrPermanent) || backends.IsAnswer(err) || !strings.Contains(err.Error(), "GRANT ") || !strings.Contains(err.Error(), "ON dbo.ASPState") {
		t.Errorf("%s without the right: %v", what, err)
	}
}

// What a login may not do fails at once, saying which right is missing; with the rights of the README everything works.
func TestMissingRights(t *testing.T) {
	dsn, db := database(t)
	owner := open(t, dsn)
	app, err := owner.Application(t.Context(), "/lm/w3svc/1/root", true)
	if err != nil {
		t.Fatal(err)
	}
	key := backends.Key{App: app, ID: "session"}
	item := random(20)
	if err := owner.Set(t.Context(), key, newToken(), backends.Write{Data: item, Timeout: 20 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	url, user := mssqltest.Login(t, dsn)

	_, err = sqlserver.Open(t.Context(), url, slog.New(slog.DiscardHandler)) // which waits a minute for what may mend itself
	wantRightsNamed(t, "Open", err)

	grant(t, db, user, "SELECT", tables...)
	s := open(t, url)
	for what, operation := range operations(s, key) {
		err := operation(t.Context())
		wantRightsNamed(t, what, err)
		if !errors.Is(err, backends.ErrNotApplied) {
			t.Errorf("%s may have been applied: %v", what, err)
		}
	}
	if got, err := s.Get(t.Context(), key, newToken()); err != nil || string(got.Data) != string(item) {
		t.Errorf("Get, which may read: %v", err)
	}

	grant(t, db, user, "SELECT, INSERT, UPDATE, DELETE", tables...)
	for what, operation := range operations(s, key) {
		if err := operation(t.Context()); !backends.IsAnswer(err) {
			t.Errorf("%s with all rights: %v", what, err)
		}
	}
}

// A login that is not let in fails at once, and the error names what to look at. (A wrong password has the same number; Babelfish may be set
// to trust everybody.) A database that is missing, or that the login is no user of, may be
// starting: that is waited for, and named.
func TestLoginsThatFail(t *testing.T) {
	dsn, _ := database(t)
	login, _ := mssqltest.Login(t, dsn)
	change := func(f func(*url.URL)) string {
		u, err := url.Parse(login)
		if err != nil {
			t.Fatal(err)
		}
		f(u)
		return u.String()
	}
	wrong := change(func(u *url.URL) { u.User = url.UserPassword("no"+u.User.Username(), "s3cret") })
	_, err := sqlserver.Open(t.Context(), wrong, slog.New(slog.DiscardHandler))
	if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), "check the login, its password") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("an unknown login: %v", err)
	}
	missing := change(func(u *url.URL) { u.RawQuery = strings.Replace(u.RawQuery, "database=aspstate_", "database=no_", 1) })
	foreign, _ := database(t)
	elsewhere := change(func(u *url.URL) { f, _ := url.Parse(foreign); u.RawQuery = f.RawQuery })
	for what, dsn := range map[string]string{"a database that is missing": missing, "one whose user the login is not": elsewhere} {
		log := new(strings.Builder)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := sqlserver.Open(ctx, dsn, slog.New(cancelling{slog.NewTextHandler(log, nil), cancel}))
		if err == nil || errors.Is(err, backends.ErrPermanent) || !errors.Is(err, backends.ErrNotApplied) || !strings.Contains(err.Error(), "CREATE USER") {
			t.Errorf("%s: %v; the log:\n%s", what, err, log)
		}
	}
}

// cancelling ends the wait that is logged.
type cancelling struct {
	slog.Handler
	cancel context.CancelFunc
}

func (c cancelling) Handle(ctx context.Context, r slog.Record) error {
	c.cancel()
	return c.Handler.Handle(ctx, r)
}
