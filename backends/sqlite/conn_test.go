package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"

	"aspstate/backends"
)

func TestFullIsAnAnswerOnlyToWhatStores(t *testing.T) {
	full := &resultError{code: sqlite3.SQLITE_FULL}
	for _, c := range []struct {
		stores bool
		answer bool
	}{{true, true}, {false, false}} {
		err := failed("test", full, c.stores)
		if backends.IsAnswer(err) != c.answer || errors.Is(err, backends.ErrNotApplied) == c.answer {
			t.Errorf("with stores %t a full disk is %v", c.stores, err)
		}
	}
}

func TestResultCodes(t *testing.T) {
	for code, want := range map[int32]error{
		sqlite3.SQLITE_FULL: backends.ErrFull, sqlite3.SQLITE_TOOBIG: backends.ErrFull,
		sqlite3.SQLITE_CORRUPT: backends.ErrPermanent, sqlite3.SQLITE_CORRUPT_INDEX: backends.ErrPermanent,
		sqlite3.SQLITE_NOTADB: backends.ErrPermanent, sqlite3.SQLITE_READONLY: backends.ErrPermanent,
		sqlite3.SQLITE_READONLY_DBMOVED: backends.ErrPermanent, sqlite3.SQLITE_ERROR: backends.ErrPermanent,
		sqlite3.SQLITE_PERM: backends.ErrPermanent, sqlite3.SQLITE_CONSTRAINT_UNIQUE: backends.ErrPermanent,
		sqlite3.SQLITE_BUSY: nil, sqlite3.SQLITE_LOCKED: nil, sqlite3.SQLITE_NOMEM: nil, sqlite3.SQLITE_CANTOPEN: nil,
		sqlite3.SQLITE_IOERR: nil, sqlite3.SQLITE_IOERR_FSYNC: nil, sqlite3.SQLITE_INTERRUPT: nil,
	} {
		if got := kind(fmt.Errorf("wrapped: %w", &resultError{code: code})); got != want {
			t.Errorf("result code %d is %v, want %v", code, got, want)
		}
	}
	if got := kind(errClosed); got != nil {
		t.Errorf("another error is %v", got)
	}
}

func TestStatementsUseTheirIndexes(t *testing.T) {
	s := newStore(t)
	inWriter(t, s, func(w *writer) error {
		for _, prepared := range w.conn.stmts {
			sql := libc.GoString(sqlite3.Xsqlite3_sql(w.conn.tls, prepared.handle))
			plan, err := explain(w.conn, sql)
			if err != nil {
				return err
			}
			if sql != countApplications && sql != someSessions && strings.Contains(plan, "SCAN") && !strings.Contains(plan, "SCAN CONSTANT ROW") {
				t.Errorf("%s\nreads a whole table: %s", sql, plan)
			}
			for query, want := range map[string]string{
				findSession: "sqlite_autoindex_sessions_1 (app_id=? AND session_id=?)",
				findItem:    "sqlite_autoindex_sessions_1 (app_id=? AND session_id=?)",
				findExpired: "COVERING INDEX sessions_expires (expires<?)",
				setItem:     "INTEGER PRIMARY KEY (rowid=?)",
				lockSession: "INTEGER PRIMARY KEY (rowid=?)",
				appIDInUse:  "COVERING INDEX sqlite_autoindex_sessions_1 (app_id=?)",
			} {
				if sql == query && !strings.Contains(plan, want) {
					t.Errorf("%s\nis run by %q, want %q", sql, plan, want)
				}
			}
		}
		return nil
	})
}

func explain(c *conn, sql string) (string, error) {
	s, err := c.prepareOnce("EXPLAIN QUERY PLAN " + sql)
	if err != nil {
		return "", err
	}
	defer s.finalize()
	var plan []string
	for {
		row, err := s.step()
		if err != nil || !row {
			return strings.Join(plan, "; "), err
		}
		plan = append(plan, s.text(3))
	}
}

func TestConnBindsAndReadsAnything(t *testing.T) {
	s := newStore(t)
	inWriter(t, s, func(w *writer) error {
		echo, err := w.conn.prepare("SELECT ?1, ?2, ?3")
		if err != nil {
			return err
		}
		for _, n := range []int{0, 1, 255, 256, 257, 100_000, keepBuffer + 1, 5} {
			blob := bytes.Repeat([]byte{0, 0xff, byte(n)}, n)
			echo.bindInt(1, math.MinInt64)
			bindBlob(echo, 2, blob)
			echo.bindText(3, strings.Repeat("ä\x00", n))
			if row, err := echo.step(); !row {
				return fmt.Errorf("no row: %w", err)
			}
			got, err := echo.blob(1)
			if err != nil || !bytes.Equal(got, blob) || echo.int(0) != math.MinInt64 || echo.text(2) != strings.Repeat("ä\x00", n) {
				t.Errorf("%d bytes came back as %d, %d, %d, error %v", len(blob), len(got), echo.int(0), len(echo.text(2)), err)
			}
			echo.reset()
			if kept := slices.MaxFunc(echo.params, func(a, b buffer) int { return a.size - b.size }); kept.size > keepBuffer {
				t.Errorf("a buffer of %d bytes is kept", kept.size)
			}
		}
		echo.bindInt(4, 0)
		if _, err := echo.step(); primary(err) != sqlite3.SQLITE_RANGE {
			t.Errorf("a parameter too many gives %v", err)
		}
		echo.reset()
		if row, err := echo.step(); !row {
			t.Errorf("a failed bind stays: %v", err)
		}
		echo.reset()
		_, err = w.conn.prepare("SELECT nothing")
		if primary(err) != sqlite3.SQLITE_ERROR || !strings.Contains(err.Error(), "nothing") {
			t.Errorf("a wrong statement gives %v", err)
		}
		return nil
	})
}
