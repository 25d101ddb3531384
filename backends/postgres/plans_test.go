//go:build unix

package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

// The server keeps one plan for each statement, which finds sessions by their key, also where it was made
// when there were none and one request came at a time.
func TestPlansAreKept(t *testing.T) {
	db, _, err := parse(migrated(t, pgtest.Shared(t).Database(t)), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []struct {
		name   string
		exec   func(context.Context, *worker, []*call) error
		op     int32
		params int
	}{
		{"read", execRead, opGet, 4},
		{"touch", execTouch, opGetExclusive, 9},
		{"set", execSet, int32(backends.IfUnlocked), 12},
	} {
		t.Run(statement.name, func(t *testing.T) {
			ctx := t.Context()
			w := &worker{store: &Store{db: db}}
			w.newStream()
			if w.conn, err = db.connect(ctx); err != nil {
				t.Fatal(err)
			}
			defer w.conn.close()
			const times = 40
			for i := range times {
				c := &call{ctx: ctx, key: backends.Key{App: 1, ID: fmt.Sprint(i)}, op: statement.op,
					cookie: backends.NoCookie, timeout: time.Hour.Milliseconds(), data: []byte("item")}
				rand.Read(c.token[:])
				if err := statement.exec(ctx, w, []*call{c}); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range w.conn.prepared {
				kept, err := w.conn.Exec(ctx, "SELECT generic_plans FROM pg_prepared_statements WHERE name = '"+name+"'").ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				// The server tries others first: five, or a few more where something changes meanwhile.
				if got, err := strconv.Atoi(string(kept[0].Rows[0][0])); err != nil || got < times/2 {
					t.Errorf("the server used the plan that it keeps %d times of %d (%v)", got, times, err)
				}
				plan, err := w.conn.Exec(ctx, "EXPLAIN EXECUTE "+name+"(NULL"+strings.Repeat(", NULL", statement.params-1)+")").ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				for _, row := range plan[0].Rows {
					if strings.Contains(string(row[0]), "Seq Scan on sessions") {
						t.Errorf("the plan reads the whole table: %s", row[0])
					}
				}
			}
		})
	}
}
