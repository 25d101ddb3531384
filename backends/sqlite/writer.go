package sqlite

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"aspstate/backends"
)

// writerPragmas are run on the writer's connection, besides those of the file.
var writerPragmas = []string{
	"wal_autocheckpoint = 0",        // writtenLog does that
	"journal_size_limit = 67108864", // what a log that begins anew keeps of its file
	"cache_size = -32768",           // KiB; nobody else writes, so it stays valid
}

// The transaction, and the statements that change a session. Each of them leaves alone what it does
// not name: above all the item and, since an index is on it, expires.
const (
	begin    = `BEGIN IMMEDIATE`
	commit   = `COMMIT`
	rollback = `ROLLBACK`

	insertSession = `INSERT INTO sessions (app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked, flags, item)
VALUES (?1, ?2, ?3, ?4, ?3, 1, ?5, 0, ?6, ?7)`
	deleteSession = `DELETE FROM sessions WHERE rowid = ?1 RETURNING app_id, session_id`
	lockSession   = `UPDATE sessions SET locked = 1, lock_cookie = ?2, lock_date = ?3 WHERE rowid = ?1`
	unlockSession = `UPDATE sessions SET locked = 0 WHERE rowid = ?1`
	setItem       = `UPDATE sessions SET locked = 0, item = ?2 WHERE rowid = ?1`
	setTimeout    = `UPDATE sessions SET timeout = ?2, expires = ?3, flags = ?4 WHERE rowid = ?1`
	setExpires    = `UPDATE sessions SET expires = ?2 WHERE rowid = ?1`
	setFlags      = `UPDATE sessions SET flags = ?2 WHERE rowid = ?1`
	findExpired   = `SELECT rowid FROM sessions WHERE expires < ?2 ORDER BY expires LIMIT ?1`
	readItem      = `SELECT item FROM sessions WHERE rowid = ?1`
	dataVersion   = `PRAGMA data_version`
)

// writer is the one connection that writes. Its goroutine runs what is queued in batches of one
// transaction each, and answers when the commit has returned.
type writer struct {
	conn     *conn
	queue    *queue
	outcomes *outcomes
	apps     *applications
	log      *slog.Logger
	warned   time.Time
	written  writtenLog

	now       int64          // of the batch at hand
	cache     cache          // as of the transaction at hand
	moves     backends.Moves // as of the operation at hand
	committed *atomic.Pointer[backends.Moves]

	begin, commit, rollback             *stmt
	findSession, findWhole, findExpired *stmt
	readItem, dataVersion               *stmt
	insertSession, deleteSession        *stmt
	lockSession, unlockSession, setItem *stmt
	setTimeout, setExpires, setFlags    *stmt
	findApplication, countApplications  *stmt
	appIDInUse, insertApplication       *stmt
	touchApplication, forgetApplication *stmt
	putMove, clearArrivals              *stmt
	insertArrival, importSession        *stmt
	someSessions                        *stmt
}

func (s *Store) newWriter(path string) (*writer, error) {
	c, err := openConn(path, slices.Concat(filePragmas, writerPragmas)...)
	if err != nil {
		return nil, err
	}
	w := &writer{conn: c, queue: &s.queue, outcomes: &s.outcomes, apps: &s.apps, log: s.log, committed: &s.moves}
	w.cache.clear()
	c.onCommit(func(pages int) { w.written.pages = pages })
	for _, p := range []struct {
		stmt **stmt
		sql  string
	}{
		{&w.begin, begin}, {&w.commit, commit}, {&w.rollback, rollback},
		{&w.findSession, findSession}, {&w.findWhole, findItem}, {&w.findExpired, findExpired},
		{&w.readItem, readItem}, {&w.dataVersion, dataVersion},
		{&w.insertSession, insertSession}, {&w.deleteSession, deleteSession},
		{&w.lockSession, lockSession}, {&w.unlockSession, unlockSession}, {&w.setItem, setItem},
		{&w.setTimeout, setTimeout}, {&w.setExpires, setExpires}, {&w.setFlags, setFlags},
		{&w.findApplication, findApplication}, {&w.countApplications, countApplications},
		{&w.appIDInUse, appIDInUse}, {&w.insertApplication, insertApplication},
		{&w.touchApplication, touchApplication}, {&w.forgetApplication, forgetApplication},
		{&w.putMove, putMove}, {&w.clearArrivals, clearArrivals},
		{&w.insertArrival, insertArrival}, {&w.importSession, importSession},
		{&w.someSessions, someSessions},
	} {
		if *p.stmt, err = c.prepare(p.sql); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	if w.written.behind, err = newBehind(path, s.log); err != nil {
		return nil, errors.Join(err, c.close())
	}
	go w.written.behind.run()
	return w, nil
}

// run is the writer's goroutine. It ends when the queue is closed and empty.
func (w *writer) run() {
	var batch []*op
	for {
		batch = w.queue.take(batch[:0])
		if len(batch) == 0 {
			return
		}
		w.execute(batch)
		w.outcomes.settle(batch)
		for i, o := range batch {
			batch[i] = nil
			o.done <- struct{}{}
		}
		w.written.tend(w.conn)
	}
}

// execute runs a batch in one transaction. If that fails, it runs each operation in a transaction
// of its own, so that each has the outcome that it would have alone.
func (w *writer) execute(batch []*op) {
	err := w.transact(batch)
	if err == nil {
		return
	}
	if time.Since(w.warned) > time.Minute {
		w.warned = time.Now()
		w.log.Warn("a transaction on the SQLite file failed", "operations", len(batch), "error", err)
	}
	if primary(err) == sqlite3.SQLITE_BUSY {
		return // another program holds the file, and would hold up each operation as long again
	}
	if kind(err) == backends.ErrFull {
		// The log's pages that are written back can be used again, enough at least to release
		// locks.
		w.written.await(w.conn)
		w.conn.exec(writeBack)
	} else if len(batch) == 1 {
		return
	}
	for i := range batch {
		w.transact(batch[i : i+1])
	}
}

// transact runs operations in one transaction and gives each its outcome.
func (w *writer) transact(batch []*op) error {
	err := w.begin.run()
	if err == nil {
		err = w.refresh()
	}
	w.now = time.Now().UnixMilli() // after whatever these operations must see
	w.moves = *w.committed.Load()
	for _, o := range batch {
		o.item, o.mark, o.err = backends.Item{}, false, nil
		switch {
		case err != nil:
		case w.moves.Left() && !o.always:
			o.err = movedError(o.name)
		default:
			err = o.apply(w, o)
		}
	}
	var inDoubt bool
	if err == nil {
		err = w.commit.run()
		// What was written before an fsync failed would come back in a crash that happens now.
		inDoubt = primary(err) == sqlite3.SQLITE_IOERR
	}
	if err == nil {
		if w.moves != *w.committed.Load() {
			is := w.moves
			w.committed.Store(&is)
		}
		return nil
	}
	w.cache.clear()
	if w.conn.inTransaction() {
		w.rollback.run()
	}
	for _, o := range batch {
		o.item, o.mark = backends.Item{}, false
		if o.err = failed(o.name, err, o.stores); inDoubt {
			o.err = fmt.Errorf("sqlite: %s: the outcome is not known: %w", o.name, err)
		}
	}
	return err
}

// close writes everything into the database file. The goroutine must have ended.
func (w *writer) close() error {
	if err := w.written.behind.close(); err != nil {
		return errors.Join(err, w.conn.close())
	}
	busy, err := w.conn.query(emptyLog)
	if err == nil && busy != "0" {
		err = errors.New("another program reads the file")
	}
	if err != nil {
		// Nothing is lost: the next one to open the file reads the log.
		w.log.Warn("the SQLite file's log could not be written back", "error", err)
	}
	return w.conn.close()
}
