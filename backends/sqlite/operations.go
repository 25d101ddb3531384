package sqlite

import (
	"bytes"
	"time"

	"aspstate/backends"
)

// The operations as the writer runs them. Each decides by MS-ASP (ms-asp.md §5) and the contract
// what becomes of the session and then names the columns that change. The result is a failure of
// SQLite; the answer goes into the op.

// touch renews a session that was found.
func (w *writer) touch(se *session) error {
	if !se.overdue(w.now) {
		return nil
	}
	_, latest := expiry(w.now, se.timeout)
	return w.expireAt(se, latest)
}

func (w *writer) expireAt(se *session, expires int64) error {
	se.expires = expires
	w.setExpires.bindInt(1, se.row)
	w.setExpires.bindInt(2, expires)
	return w.setExpires.run()
}

// touchRefused renews a session that refuses a change, but for an ErrConflict.
func (w *writer) touchRefused(o *op, se *session) error {
	if o.err == backends.ErrConflict {
		return nil
	}
	return w.touch(se)
}

// takeMark clears the uninitialized mark and reports whether it was there.
func (w *writer) takeMark(se *session) (bool, error) {
	if !se.marked() {
		return false, nil
	}
	se.flags &^= uninitialized
	w.setFlags.bindInt(1, se.row)
	w.setFlags.bindInt(2, se.flags)
	return true, w.setFlags.run()
}

func (w *writer) get(o *op) error          { return w.fetch(o, false) }
func (w *writer) getExclusive(o *op) error { return w.fetch(o, true) }

func (w *writer) fetch(o *op, lock bool) error {
	se, item, err := w.findItem(o.key)
	if err != nil {
		return err
	}
	if se.missing(w.now) {
		o.err = backends.ErrNotFound
		return nil
	}
	unrenewed := se.expires
	if err := w.touch(se); err != nil {
		return err
	}
	if se.expires == unrenewed {
		unrenewed = 0
	}
	mark, err := w.takeMark(se)
	if err != nil {
		return err
	}
	if lock && !se.locked {
		cookie := se.next()
		w.lockSession.bindInt(1, se.row)
		w.lockSession.bindInt(2, int64(cookie))
		w.lockSession.bindInt(3, w.now)
		if err := w.lockSession.run(); err != nil {
			return err
		}
		se.cookie, se.lockDate = cookie, w.now
	}
	o.item, o.err = se.found(w.now, mark, item)
	o.item.Unrenewed = backends.Expiry(unrenewed)
	se.locked = se.locked || lock
	return nil
}

func (w *writer) release(o *op) error {
	se, err := w.find(o.key)
	if err != nil {
		return err
	}
	switch {
	case se.missing(w.now):
		o.err = backends.ErrNotFound
		return nil
	case o.cond == backends.IfCookie && o.cookie != se.cookie:
		o.err = backends.ErrConflict
		return nil
	}
	if err := w.touch(se); err != nil {
		return err
	}
	mark := false
	if o.cond == backends.IfUnlocked {
		if mark, err = w.takeMark(se); err != nil {
			return err
		}
	}
	switch {
	case se.locked && o.cookie != se.cookie:
		o.err = se.lockedError(w.now, mark)
		return nil
	case se.locked:
		err = w.unlock(se)
	}
	o.mark = mark
	return err
}

func (w *writer) unlock(se *session) error {
	se.locked = false
	w.unlockSession.bindInt(1, se.row)
	return w.unlockSession.run()
}

func (w *writer) set(o *op) error {
	se, err := w.find(o.key)
	if err != nil {
		return err
	}
	if se.missing(w.now) {
		if o.cond == backends.IfCookie {
			o.err = backends.ErrNotFound
			return nil
		}
		return w.create(o, se)
	}
	if o.err = se.refusal(w.now, o.cookie, o.cond); o.err != nil {
		return w.touchRefused(o, se)
	}
	if timeout := milliseconds(o.timeout); timeout != se.timeout {
		se.timeout = timeout
		_, se.expires = expiry(w.now, timeout)
		w.setTimeout.bindInt(1, se.row)
		w.setTimeout.bindInt(2, timeout)
		w.setTimeout.bindInt(3, se.expires)
		if o.cond != backends.IfCookie {
			se.flags &^= uninitialized
		}
		w.setTimeout.bindInt(4, se.flags)
		err = w.setTimeout.run()
	} else {
		err = w.touch(se)
	}
	if err != nil {
		return err
	}
	w.setItem.bindInt(1, se.row)
	bindBlob(w.setItem, 2, o.data)
	se.locked = false
	w.cache.keep(se, o.data)
	return w.setItem.run()
}

// create begins a session, in the place of an expired one if that is still there.
func (w *writer) create(o *op, expired *session) error {
	if expired.row != 0 {
		if err := w.delete(expired.row); err != nil {
			return err
		}
	}
	timeout := milliseconds(o.timeout)
	_, expires := expiry(w.now, timeout)
	var flags int64
	if o.uninitialized {
		flags = uninitialized
	}
	s := w.insertSession
	s.bindInt(1, int64(o.key.App))
	bindBlob(s, 2, o.key.ID)
	s.bindInt(3, w.now)
	s.bindInt(4, expires)
	s.bindInt(5, timeout)
	s.bindInt(6, flags)
	bindBlob(s, 7, o.data)
	if err := s.run(); err != nil {
		return err
	}
	se := &session{row: w.conn.lastRow(), expires: expires, lockDate: w.now, cookie: 1, timeout: timeout, flags: flags}
	w.cache.put(o.key, se)
	w.cache.keep(se, o.data)
	return nil
}

func (w *writer) remove(o *op) error {
	se, err := w.find(o.key)
	if err != nil {
		return err
	}
	if se.missing(w.now) {
		o.err = backends.ErrNotFound
		return nil
	}
	if o.err = se.refusal(w.now, o.cookie, o.cond); o.err != nil {
		return w.touchRefused(o, se)
	}
	return w.delete(se.row)
}

func (w *writer) resetTimeout(o *op) error {
	se, err := w.find(o.key)
	if err != nil {
		return err
	}
	if se.missing(w.now) {
		o.err = backends.ErrNotFound
		return nil
	}
	return w.touch(se)
}

func (w *writer) unread(o *op) error {
	se, err := w.find(o.key)
	if err != nil || se.missing(w.now) {
		return err
	}
	if se.locked && o.cookie == se.cookie {
		if err := w.unlock(se); err != nil {
			return err
		}
	}
	if o.unrenewed == 0 || se.expires <= int64(o.unrenewed) {
		return nil
	}
	item := se.item
	if item == nil {
		if item, err = w.itemOf(se.row); err != nil {
			return err
		}
	}
	if !bytes.Equal(item, o.data) {
		return nil
	}
	return w.expireAt(se, int64(o.unrenewed))
}

// Bounds of what one operation of DeleteExpired deletes, so that others get in between.
const (
	sliceRows = 100
	sliceTime = 10 * time.Millisecond
)

// deleteExpired deletes up to o.limit expired sessions and counts them.
func (w *writer) deleteExpired(o *op) error {
	rows, err := w.expired(o.limit)
	if err != nil {
		return err
	}
	o.count = 0
	for start := time.Now(); o.count < len(rows) && time.Since(start) < sliceTime; o.count++ {
		if err := w.delete(rows[o.count]); err != nil {
			return err
		}
	}
	return nil
}

// delete deletes a session. The file knows its key, under which it may be remembered.
func (w *writer) delete(row int64) error {
	s := w.deleteSession
	defer s.reset()
	s.bindInt(1, row)
	for {
		more, err := s.step()
		if err != nil || !more {
			return err
		}
		id, err := s.blob(1)
		if err != nil {
			return err
		}
		w.cache.drop(backends.Key{App: backends.AppID(s.int(0)), ID: string(id)})
	}
}

func (w *writer) expired(limit int) ([]int64, error) {
	w.findExpired.bindInt(2, w.now)
	return rowsOf(w.findExpired, limit)
}

// rowsOf runs a statement that finds rows, up to its first parameter.
func rowsOf(s *stmt, limit int) (rows []int64, err error) {
	defer s.reset()
	s.bindInt(1, int64(limit))
	for {
		row, err := s.step()
		if err != nil || !row {
			return rows, err
		}
		rows = append(rows, s.int(0))
	}
}
