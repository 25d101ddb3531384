package tds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	mssql "github.com/microsoft/go-mssqldb"

	"aspstate/backends"
)

// open opens a database as go-mssqldb's users do. options are of its connection string.
func (f *front) open(t testing.TB, user, password, options string) *sql.DB {
	t.Helper()
	u := url.URL{Scheme: "sqlserver", User: url.UserPassword(user, password), Host: f.address, RawQuery: options}
	db, err := sql.Open("sqlserver", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func (f *front) db(t testing.TB, options string) *sql.DB {
	t.Helper()
	return f.open(t, testUser, testPassword, "database=ASPState&TrustServerCertificate=true&"+options)
}

// state is what TempGetStateItem3 gives: NULL is nil.
type state struct {
	item        []byte
	locked      *bool
	lockAge     *int64
	lockCookie  *int64
	actionFlags *int64
	taken       bool // by TempGetStateItemExclusive3
}

func (s state) String() string {
	show := func(n *int64) string {
		if n == nil {
			return "NULL"
		}
		return fmt.Sprint(*n)
	}
	if s.locked == nil {
		return fmt.Sprintf("no session (%s %s %s %d)", show(s.lockAge), show(s.lockCookie), show(s.actionFlags), len(s.item))
	}
	age := show(s.lockAge)
	if !s.taken && s.lockAge != nil && *s.lockAge >= 0 && *s.lockAge <= 60 {
		age = "young" // the seconds that began since, of which a test may see some; a lock just taken has seen none
	}
	return fmt.Sprintf("%d bytes, locked %v, age %s, cookie %s, flags %s", len(s.item), *s.locked, age, show(s.lockCookie), show(s.actionFlags))
}

// query calls a Get as the in-box client does: the result set first, then the parameters.
func query(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, procedure, id string) (s state, err error) {
	var short []byte
	var locked sql.NullBool
	var age, cookie, flags sql.NullInt64
	rows, err := db.QueryContext(ctx, procedure, sql.Named("id", id),
		sql.Named("itemShort", sql.Out{Dest: &short}), sql.Named("locked", sql.Out{Dest: &locked}),
		sql.Named("lockAge", sql.Out{Dest: &age}), sql.Named("lockCookie", sql.Out{Dest: &cookie}),
		sql.Named("actionFlags", sql.Out{Dest: &flags}))
	if err != nil {
		return s, err
	}
	defer rows.Close()
	var long []byte
	for rows.Next() {
		if err := rows.Scan(&long); err != nil {
			return s, err
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return s, err
	}
	if s.item = short; long != nil {
		s.item = long
		if short != nil {
			return s, errors.New("there are two items")
		}
	}
	if locked.Valid {
		s.locked = &locked.Bool
		s.taken = !locked.Bool && strings.Contains(procedure, "Exclusive")
	}
	for _, n := range []struct {
		from sql.NullInt64
		to   **int64
	}{{age, &s.lockAge}, {cookie, &s.lockCookie}, {flags, &s.actionFlags}} {
		if n.from.Valid {
			*n.to = &n.from.Int64
		}
	}
	return s, nil
}

// caller calls procedures and fails the test when that fails.
type caller struct {
	t  testing.TB
	db *sql.DB
	id string
}

func newCaller(t testing.TB, db *sql.DB) *caller {
	t.Helper()
	return &caller{t, db, "bpr4mimb2vjnvtn2jc4yp3uo" + suffixOf(t, db, testApp)}
}

func suffixOf(t testing.TB, db *sql.DB, app string) string {
	t.Helper()
	var id int32
	if _, err := db.Exec("dbo.TempGetAppID", sql.Named("appName", mssql.VarChar(app)), sql.Named("appId", sql.Out{Dest: &id})); err != nil {
		t.Fatal(err)
	}
	return backends.AppID(id).Suffix()
}

func (c *caller) get() state {
	c.t.Helper()
	return c.ask("dbo.TempGetStateItem3")
}

func (c *caller) lock() state {
	c.t.Helper()
	return c.ask("dbo.TempGetStateItemExclusive3")
}

func (c *caller) ask(procedure string) state {
	c.t.Helper()
	s, err := query(c.t.Context(), c.db, procedure, c.id)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// call calls a procedure that changes something, and returns the rows that it changed.
func (c *caller) call(procedure string, args ...any) int64 {
	c.t.Helper()
	result, err := c.db.Exec(procedure, append([]any{sql.Named("id", c.id)}, args...)...)
	if err != nil {
		c.t.Fatalf("%s: %v", procedure, err)
	}
	n, _ := result.RowsAffected()
	return n
}

func (c *caller) wants(what string, got any, want any) {
	c.t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		c.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func short(b []byte) sql.NamedArg    { return sql.Named("itemShort", b) }
func long(b []byte) sql.NamedArg     { return sql.Named("itemLong", b) }
func minutes(n int) sql.NamedArg     { return sql.Named("timeout", n) }
func withCookie(n int) sql.NamedArg  { return sql.Named("lockCookie", n) }
func pattern(n int) []byte           { return bytes.Repeat([]byte{1, 2, 3, 5, 0, 0xff, 0x7f}, n/7+1)[:n] }
func number(err error) (n int32)     { return numberOf(err).Number }
func numberOf(err error) mssql.Error { e, _ := errors.AsType[mssql.Error](err); return e }
