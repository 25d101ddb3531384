package sqlite

import (
	"context"
	"time"

	"aspstate/backends"
)

const sessionColumns = `app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked, flags, length(item)`

const inspectSession = `SELECT ` + sessionColumns + `, item FROM sessions WHERE app_id = ?1 AND session_id = ?2 AND expires >= ?3`

// The lists: from ?1, ?2 on, before ?3, ?4; ?5 now, ?6 locked ones only, ?7 what the ID begins with, ?8 with data, ?9 how many.
// The plus keeps SQLite from taking the index on expires.
const (
	listSessions = `SELECT ` + sessionColumns + `, CASE WHEN ?8 THEN item END FROM sessions
WHERE (app_id, session_id) >= (?1, ?2) AND (app_id, session_id) < (?3, ?4)
  AND +expires >= ?5 AND (locked OR NOT ?6) AND substr(session_id, 1, length(?7)) = ?7
ORDER BY `
	listByKey     = listSessions + `app_id, session_id LIMIT ?9`
	listBySize    = listSessions + `length(item) DESC, app_id, session_id LIMIT ?9`
	listByLockAge = listSessions + `lock_date, app_id, session_id LIMIT ?9`
	listByCreated = listSessions + `created, app_id, session_id LIMIT ?9`
)

// countSessions reads each session once, in the order of the file.
const countSessions = `SELECT a.app_id, a.app_name, coalesce(n, 0), coalesce(locks, 0), coalesce(size, 0)
FROM applications a LEFT JOIN (
    SELECT app_id, count(*) AS n, sum(locked) AS locks, sum(length(item)) AS size
    FROM sessions NOT INDEXED WHERE expires >= ?1 GROUP BY app_id
) s ON s.app_id = a.app_id
ORDER BY a.app_name`

// inspected is the session in the current row, as of now.
func inspected(s *stmt, now int64) (backends.Session, error) {
	id, err := s.blob(1)
	if err != nil {
		return backends.Session{}, err
	}
	se := backends.Session{
		Key:           backends.Key{App: backends.AppID(s.int(0)), ID: string(id)},
		Size:          int(s.int(9)),
		Created:       time.UnixMilli(s.int(2)),
		Timeout:       duration(s.int(6)),
		LockCookie:    backends.Cookie(s.int(5)),
		LockAge:       duration(max(0, now-s.int(4))),
		Locked:        s.int(7) != 0,
		Uninitialized: s.int(8)&uninitialized != 0,
	}
	if se.Timeout != backends.NeverExpires {
		se.Left = duration(s.int(3) - now)
	}
	se.Data, err = s.blob(10)
	return se, err
}

// Inspect implements backends.Inspector.
func (s *Store) Inspect(ctx context.Context, key backends.Key) (backends.Session, error) {
	r, err := free(ctx, s, "inspect", s.readers)
	if err != nil {
		return backends.Session{}, err
	}
	defer func() { s.readers <- r }()
	q := r.inspectSession
	defer q.reset()
	now := time.Now().UnixMilli()
	q.bindInt(1, int64(key.App))
	bindBlob(q, 2, key.ID)
	q.bindInt(3, now)
	row, err := q.step()
	if err == nil && !row {
		return backends.Session{}, backends.ErrNotFound
	}
	var se backends.Session
	if err == nil {
		se, err = inspected(q, now)
	}
	if err != nil {
		return backends.Session{}, failed("inspect", err, false)
	}
	return se, nil
}

// List implements backends.Inspector.
func (s *Store) List(ctx context.Context, query backends.Query) (sessions []backends.Session, err error) {
	sql := listByKey
	switch query.Order {
	case backends.BySize:
		sql = listBySize
	case backends.ByLockAge:
		sql, query.Locked = listByLockAge, true
	case backends.ByCreated:
		sql = listByCreated
	}
	var now int64
	err = s.look(ctx, "list", sql, func(q *stmt) {
		now = time.Now().UnixMilli() // when the statement begins, which may have waited
		first, end := query.Range()
		q.bindInt(1, first.App)
		bindBlob(q, 2, first.ID)
		q.bindInt(3, end.App)
		bindBlob(q, 4, end.ID)
		q.bindInt(5, now)
		q.bindInt(6, bit(query.Locked))
		bindBlob(q, 7, query.ID)
		q.bindInt(8, bit(query.Data))
		q.bindInt(9, int64(query.Limit))
	}, func(q *stmt) error {
		se, err := inspected(q, now)
		sessions = append(sessions, se)
		return err
	})
	return sessions, err
}

// Applications implements backends.Inspector.
func (s *Store) Applications(ctx context.Context) (infos []backends.ApplicationInfo, err error) {
	err = s.look(ctx, "applications", countSessions, func(q *stmt) { q.bindInt(1, time.Now().UnixMilli()) }, func(q *stmt) error {
		infos = append(infos, backends.ApplicationInfo{
			ID: backends.AppID(q.int(0)), Name: q.text(1), Sessions: int(q.int(2)), Locked: int(q.int(3)), Bytes: q.int(4),
		})
		return nil
	})
	return infos, err
}

// Names implements backends.Namer.
func (s *Store) Names(ctx context.Context) (infos []backends.ApplicationInfo, err error) {
	err = s.look(ctx, "applications", `SELECT app_id, app_name FROM applications ORDER BY app_name`, func(*stmt) {}, func(q *stmt) error {
		infos = append(infos, backends.ApplicationInfo{ID: backends.AppID(q.int(0)), Name: q.text(1)})
		return nil
	})
	return infos, err
}

// look runs a statement that may take long, on a connection that requests do not use. It ends with ctx and with the store.
func (s *Store) look(ctx context.Context, op, sql string, bind func(*stmt), each func(*stmt) error) error {
	c, err := free(ctx, s, op, s.lists)
	if err != nil {
		return err
	}
	defer func() { s.lists <- c }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.closing:
			cancel(errClosed)
		case <-ctx.Done():
		}
	}()
	over, interrupted := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		for { // a statement that has not begun is not interrupted
			c.interrupt()
			select {
			case <-over:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	err = c.each(sql, bind, each)
	close(over)
	if !stop() {
		<-interrupted // so that it does not hit the next one
	}
	switch {
	case ctx.Err() != nil:
		return notApplied(op, ended(ctx))
	case err != nil:
		return failed(op, err, false)
	}
	return nil
}

// each runs one statement and calls each with every row.
func (c *conn) each(sql string, bind func(*stmt), each func(*stmt) error) error {
	s, err := c.prepareOnce(sql)
	if err != nil {
		return err
	}
	defer s.finalize()
	bind(s)
	for {
		row, err := s.step()
		if err != nil || !row {
			return err
		}
		if err := each(s); err != nil {
			return err
		}
	}
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
