package tds

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
)

// standing is a session that was locked three minutes ago and has half of its twenty minutes left.
func standing(t *testing.T, locked, uninitialized bool) (*memory.Store, *caller, backends.Key) {
	t.Helper()
	store := memory.New(0)
	c := newCaller(t, start(t, store).db(t, "encrypt=disable"))
	app, bare, _ := splitSuffix(c.id)
	key := backends.Key{App: app, ID: bare}
	n, err := store.Import(t.Context(), "", []backends.Session{{
		Key: key, Data: pattern(10), Created: time.Now().Add(-time.Hour), Timeout: 20 * time.Minute, Left: 10 * time.Minute,
		LockCookie: 7, LockAge: 3 * time.Minute, Locked: locked, Uninitialized: uninitialized,
	}})
	if n != 1 || err != nil {
		t.Fatal(n, err)
	}
	return store, c, key
}

// The cookie is compared with the last one, locked or not. What comes with another one does nothing at all, not even renew
// the session; Release, Update and Reset with the right one renew it, and leave the uninitialized mark.
func TestCookiesAreAlwaysCompared(t *testing.T) {
	changes := map[string]func(c *caller, cookie int) int64{
		"Release": func(c *caller, n int) int64 { return c.call("dbo.TempReleaseStateItemExclusive", withCookie(n)) },
		"UpdateShort": func(c *caller, n int) int64 {
			return c.call("dbo.TempUpdateStateItemShort", short(pattern(9)), minutes(20), withCookie(n))
		},
		"other timeout": func(c *caller, n int) int64 {
			return c.call("dbo.TempUpdateStateItemShort", short(pattern(9)), minutes(21), withCookie(n))
		},
		"UpdateLong": func(c *caller, n int) int64 {
			return c.call("dbo.TempUpdateStateItemLong", long(pattern(8000)), minutes(20), withCookie(n))
		},
		"Remove": func(c *caller, n int) int64 { return c.call("dbo.TempRemoveStateItem", withCookie(n)) },
	}
	for name, change := range changes {
		for _, locked := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", locked ", locked), func(t *testing.T) {
				store, c, key := standing(t, locked, true)
				for _, cookie := range []int{-1 << 31, -1, 0, 1, 6, 8, 1<<31 - 1} {
					c.wants(fmt.Sprint("rows with cookie ", cookie), change(c, cookie), 0)
				}
				_, err := c.db.Exec("EXEC TempReleaseStateItemExclusive '" + c.id + "', NULL")
				c.wants("Release with NULL", err, nil)
				s, err := store.Inspect(t.Context(), key)
				if err != nil || s.Left > 10*time.Minute || s.Locked != locked || !s.Uninitialized || len(s.Data) != 10 || s.LockCookie != 7 {
					t.Fatalf("after refusals the session is %+v, %v", s, err)
				}
				c.wants("rows with the last cookie", change(c, 7), 1)
				s, err = store.Inspect(t.Context(), key)
				if name == "Remove" {
					c.wants("removed", err, backends.ErrNotFound)
					return
				}
				if err != nil || s.Left < 19*time.Minute || s.Locked || !s.Uninitialized || s.LockCookie != 7 {
					t.Fatalf("then the session is %+v, %v", s, err)
				}
				c.wants("the next page", *c.lock().actionFlags, 1)
				c.wants("and another", *c.get().actionFlags, 0)
			})
		}
	}
}

// lockAge is always told: of a session that is not locked it is the age of its last lock.
func TestLockAge(t *testing.T) {
	for _, locked := range []bool{false, true} {
		t.Run(fmt.Sprint("locked ", locked), func(t *testing.T) {
			_, c, _ := standing(t, locked, false)
			for range 2 {
				if s := c.get(); *s.locked != locked || *s.lockAge < 180 || *s.lockAge > 240 {
					t.Errorf("lock age is %d, want 180: %v", *s.lockAge, s)
				}
			}
			var date sql.NullTime
			if _, err := c.db.Exec("TempGetStateItem", sql.Named("id", c.id), sql.Named("itemShort", sql.Out{Dest: new([]byte)}),
				sql.Named("locked", sql.Out{Dest: new(sql.NullBool)}), sql.Named("lockDate", sql.Out{Dest: &date}),
				sql.Named("lockCookie", sql.Out{Dest: new(sql.NullInt64)})); err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			local := time.Date(now.Year(), now.Month(), now.Day(), now.Hour(), now.Minute(), now.Second(), now.Nanosecond(), time.UTC)
			if age := local.Sub(date.Time); age < 179*time.Second || age > 4*time.Minute {
				t.Errorf("the lock date is %v, %v ago, want 3 minutes", date.Time, age)
			}
			if locked {
				return
			}
			if s := c.lock(); *s.lockAge != 0 {
				t.Errorf("the lock just taken is %d s old", *s.lockAge)
			}
			c.call("dbo.TempReleaseStateItemExclusive", withCookie(8))
			c.wants("released", c.get(), "10 bytes, locked false, age young, cookie 8, flags 0")
		})
	}
	f := startMemory(t)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	c.wants("never locked", c.get(), "10 bytes, locked false, age young, cookie 1, flags 0")
}
