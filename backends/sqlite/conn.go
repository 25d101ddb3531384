package sqlite

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// This file is all of SQLite's C interface that the store uses, called without database/sql: the
// page cycle takes half the processor time that it takes through the driver.

// conn is a connection to a database file. Like its statements it is used by one goroutine at a
// time.
type conn struct {
	tls   *libc.TLS
	db    uintptr
	stmts []*stmt

	methods uintptr // of the log's file, where they are not SQLite's own
	hook    func(tls *libc.TLS, arg, db, name uintptr, pages int32) int32
}

// resultError is a failure of SQLite.
type resultError struct {
	code    int32 // an extended result code
	message string
}

func (e *resultError) Error() string { return fmt.Sprintf("%s (%d)", e.message, e.code) }

// openConn opens an existing file and runs the pragmas.
func openConn(path string, pragmas ...string) (*conn, error) {
	c := &conn{tls: libc.NewTLS()}
	name, err := libc.CString(path)
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(c.tls, name)
	rc := c.handle(&c.db, func(out uintptr) int32 {
		// A connection is used by one goroutine, so SQLite need not lock it.
		return sqlite3.Xsqlite3_open_v2(c.tls, name, out,
			sqlite3.SQLITE_OPEN_READWRITE|sqlite3.SQLITE_OPEN_NOMUTEX|sqlite3.SQLITE_OPEN_EXRESCODE, 0)
	})
	if rc != sqlite3.SQLITE_OK {
		err := c.failure(rc)
		c.close()
		return nil, err
	}
	for _, pragma := range pragmas {
		if err := c.exec("PRAGMA " + pragma); err != nil {
			c.close()
			return nil, fmt.Errorf("%s: %w", pragma, err)
		}
	}
	return c, nil
}

// handle runs f with the address of a pointer and stores in h what f puts there.
func (c *conn) handle(h *uintptr, f func(out uintptr) int32) int32 {
	out := sqlite3.Xsqlite3_malloc(c.tls, 8)
	if out == 0 {
		return sqlite3.SQLITE_NOMEM
	}
	defer sqlite3.Xsqlite3_free(c.tls, out)
	pointer := libc.GoBytes(out, 8) // not a copy
	clear(pointer)
	rc := f(out)
	*h = uintptr(binary.NativeEndian.Uint64(pointer))
	return rc
}

// close closes the connection and its statements.
func (c *conn) close() error {
	for _, s := range c.stmts {
		s.finalize()
	}
	c.stmts = nil
	rc := sqlite3.Xsqlite3_close(c.tls, c.db)
	if rc != sqlite3.SQLITE_OK {
		return c.failure(rc)
	}
	sqlite3.Xsqlite3_free(c.tls, c.methods)
	c.tls.Close()
	return nil
}

// failure is the error for a result code that the connection has just given.
func (c *conn) failure(rc int32) error {
	e := &resultError{code: rc, message: libc.GoString(sqlite3.Xsqlite3_errstr(c.tls, rc))}
	if c.db != 0 && sqlite3.Xsqlite3_extended_errcode(c.tls, c.db) == rc {
		e.message = libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db))
	}
	return e
}

// inTransaction reports whether a transaction is open.
func (c *conn) inTransaction() bool {
	return sqlite3.Xsqlite3_get_autocommit(c.tls, c.db) == 0
}

// lastRow is the row that was inserted last.
func (c *conn) lastRow() int64 { return sqlite3.Xsqlite3_last_insert_rowid(c.tls, c.db) }

// onCommit has f called after every commit of the connection that appended to the log, with how many pages the log has then.
func (c *conn) onCommit(f func(pages int)) {
	c.hook = func(_ *libc.TLS, _, _, _ uintptr, pages int32) int32 {
		f(int(pages))
		return sqlite3.SQLITE_OK
	}
	sqlite3.Xsqlite3_wal_hook(c.tls, c.db, *(*uintptr)(unsafe.Pointer(&c.hook)), 0) // the pointer as SQLite calls it; c keeps what it points to
}

// interrupt ends the statement that runs, if one does. It may be called from any goroutine.
func (c *conn) interrupt() { sqlite3.Xsqlite3_interrupt(c.tls, c.db) }

// exec runs one statement and ignores its rows.
func (c *conn) exec(sql string) error {
	s, err := c.prepareOnce(sql)
	if err != nil {
		return err
	}
	defer s.finalize()
	return s.run()
}

// query runs one statement and returns the text in the first column of its first row.
func (c *conn) query(sql string) (string, error) {
	s, err := c.prepareOnce(sql)
	if err != nil {
		return "", err
	}
	defer s.finalize()
	if row, err := s.step(); err != nil || !row {
		return "", err
	}
	return s.text(0), nil
}

// prepare compiles one statement, which lives as long as the connection.
func (c *conn) prepare(sql string) (*stmt, error) {
	s, err := c.prepareOnce(sql)
	if err == nil {
		c.stmts = append(c.stmts, s)
	}
	return s, err
}

// prepareOnce compiles one statement. The caller finalizes it.
func (c *conn) prepareOnce(sql string) (*stmt, error) {
	text, err := libc.CString(sql)
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(c.tls, text)
	s := &stmt{c: c}
	rc := c.handle(&s.handle, func(out uintptr) int32 {
		return sqlite3.Xsqlite3_prepare_v2(c.tls, c.db, text, -1, out, 0)
	})
	if rc != sqlite3.SQLITE_OK {
		return nil, c.failure(rc)
	}
	return s, nil
}

// stmt is a prepared statement. Bind its parameters (counted from 1), step through its rows and
// reset it; a failed bind is reported by step.
type stmt struct {
	c      *conn
	handle uintptr
	rc     int32 // of the first bind that failed
	params []buffer
}

// buffer is memory outside Go's heap that a parameter is bound to.
type buffer struct {
	p    uintptr
	size int
}

// keepBuffer is the largest parameter whose buffer is kept for the next one.
const keepBuffer = 1 << 20

func (s *stmt) bindInt(param int, v int64) {
	s.bound(sqlite3.Xsqlite3_bind_int64(s.c.tls, s.handle, int32(param), v))
}

// bindBlob binds a copy of v, which is a blob for SQLite also where it is a string here.
func bindBlob[T []byte | string](s *stmt, param int, v T) {
	if p := s.buffer(param, len(v)); p != 0 {
		copy(libc.GoBytes(p, len(v)), v)
		s.bound(sqlite3.Xsqlite3_bind_blob64(s.c.tls, s.handle, int32(param), p, uint64(len(v)), 0))
	}
}

func (s *stmt) bindText(param int, v string) {
	if p := s.buffer(param, len(v)); p != 0 {
		copy(libc.GoBytes(p, len(v)), v)
		s.bound(sqlite3.Xsqlite3_bind_text(s.c.tls, s.handle, int32(param), p, int32(len(v)), 0))
	}
}

func (s *stmt) bound(rc int32) {
	if s.rc == sqlite3.SQLITE_OK {
		s.rc = rc
	}
}

// buffer returns memory of at least n bytes for a parameter, or 0.
func (s *stmt) buffer(param, n int) uintptr {
	for len(s.params) < param {
		s.params = append(s.params, buffer{})
	}
	b := &s.params[param-1]
	if b.size < n || b.p == 0 {
		sqlite3.Xsqlite3_free(s.c.tls, b.p)
		b.size = max(n, 256)
		if b.p = sqlite3.Xsqlite3_malloc64(s.c.tls, uint64(b.size)); b.p == 0 {
			b.size = 0
			s.bound(sqlite3.SQLITE_NOMEM)
		}
	}
	return b.p
}

// step goes to the next row and reports whether there is one.
func (s *stmt) step() (bool, error) {
	if s.rc != sqlite3.SQLITE_OK {
		return false, s.c.failure(s.rc)
	}
	switch rc := sqlite3.Xsqlite3_step(s.c.tls, s.handle); rc {
	case sqlite3.SQLITE_ROW:
		return true, nil
	case sqlite3.SQLITE_DONE:
		return false, nil
	default:
		return false, s.c.failure(rc)
	}
}

// run steps to the end and resets.
func (s *stmt) run() error {
	row, err := s.step()
	for row && err == nil {
		row, err = s.step()
	}
	s.reset()
	return err
}

// reset ends the statement and makes it ready for the next use.
func (s *stmt) reset() {
	sqlite3.Xsqlite3_reset(s.c.tls, s.handle) // its result repeats step's
	s.rc = sqlite3.SQLITE_OK
	for i, b := range s.params {
		if b.size > keepBuffer {
			sqlite3.Xsqlite3_bind_null(s.c.tls, s.handle, int32(i+1))
			sqlite3.Xsqlite3_free(s.c.tls, b.p)
			s.params[i] = buffer{}
		}
	}
}

// int is the integer in a column (counted from 0) of the current row.
func (s *stmt) int(column int) int64 {
	return sqlite3.Xsqlite3_column_int64(s.c.tls, s.handle, int32(column))
}

// blob is a copy of the bytes in a column of the current row; nil if there is none. It fails if
// there is no memory to read it into.
func (s *stmt) blob(column int) ([]byte, error) {
	p := sqlite3.Xsqlite3_column_blob(s.c.tls, s.handle, int32(column))
	n := sqlite3.Xsqlite3_column_bytes(s.c.tls, s.handle, int32(column))
	if p == 0 {
		if sqlite3.Xsqlite3_errcode(s.c.tls, s.c.db) == sqlite3.SQLITE_NOMEM {
			return nil, s.c.failure(sqlite3.SQLITE_NOMEM)
		}
		return nil, nil
	}
	return append([]byte(nil), libc.GoBytes(p, int(n))...), nil
}

// text is the text in a column of the current row.
func (s *stmt) text(column int) string {
	p := sqlite3.Xsqlite3_column_text(s.c.tls, s.handle, int32(column))
	return string(libc.GoBytes(p, int(sqlite3.Xsqlite3_column_bytes(s.c.tls, s.handle, int32(column)))))
}

// finalize frees the statement.
func (s *stmt) finalize() {
	sqlite3.Xsqlite3_finalize(s.c.tls, s.handle)
	for _, b := range s.params {
		sqlite3.Xsqlite3_free(s.c.tls, b.p)
	}
}
