package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"aspstate/backends"
)

const sessionColumns = `s.app_id, s.session_id, s.now, s.created, s.expires, s.lock_date, s.lock_cookie, s.timeout, s.locked, s.flags, octet_length(s.item)`

// inspectSQL finds sessions. $1 application numbers, $2 session IDs.
const inspectSQL = `
SELECT i.n, ` + sessionColumns + `, s.item
FROM unnest($1::int4[], $2::bytea[]) WITH ORDINALITY AS i (app_id, session_id, n)
CROSS JOIN LATERAL (
    SELECT s.*, clock_timestamp() AS now FROM sessions s WHERE s.app_id = i.app_id AND s.session_id = i.session_id OFFSET 0
) s
WHERE s.expires >= s.now`

// The lists: from the key $1, $2 on, before $3, $4; $5 locked ones only, $6 what the ID begins with, $7 with data, $8 how many.
const (
	listRange = `
SELECT 0::int8, ` + sessionColumns + `, CASE WHEN $7::bool THEN s.item END
FROM (
    SELECT s.*, clock_timestamp() AS now FROM sessions s
    WHERE (app_id, session_id) >= ($1::int8, $2::bytea) AND (app_id, session_id) < ($3::int8, $4::bytea)`
	listChosen = ` OFFSET 0
) s
WHERE s.expires >= s.now AND (s.locked OR NOT $5::bool) AND substr(s.session_id, 1, octet_length($6::bytea)) = $6::bytea
ORDER BY `
	listByKeySQL     = listRange + ` ORDER BY app_id, session_id` + listChosen + `s.app_id, s.session_id LIMIT $8::int8`
	listBySizeSQL    = listRange + listChosen + `octet_length(s.item) DESC, s.app_id, s.session_id LIMIT $8::int8`
	listByLockAgeSQL = listRange + listChosen + `s.lock_date, s.app_id, s.session_id LIMIT $8::int8`
	listByCreatedSQL = listRange + listChosen + `s.created, s.app_id, s.session_id LIMIT $8::int8`
)

const countSQL = `
SELECT a.app_id, a.app_name, coalesce(s.sessions, 0), coalesce(s.locks, 0), coalesce(s.size, 0)
FROM applications a LEFT JOIN (
    SELECT app_id, count(*) AS sessions, count(*) FILTER (WHERE locked) AS locks, sum(octet_length(item)) AS size
    FROM sessions WHERE expires >= now() GROUP BY app_id
) s ON s.app_id = a.app_id
ORDER BY a.app_name`

// inspected is the session in a row.
func inspected(row [][]byte) backends.Session {
	now := instant(row[3])
	se := backends.Session{
		Key:           backends.Key{App: backends.AppID(int4(row[1])), ID: string(row[2])},
		Data:          bytes.Clone(row[12]),
		Size:          int(int4(row[11])),
		Created:       instant(row[4]),
		LockCookie:    backends.Cookie(int4(row[7])),
		LockAge:       max(0, now.Sub(instant(row[6]))),
		Timeout:       time.Duration(int8(row[8])) * time.Millisecond,
		Locked:        row[9][0] == 1,
		Uninitialized: int4(row[10])&1 == 1,
	}
	if se.Timeout != backends.NeverExpires {
		se.Left = instant(row[5]).Sub(now)
	}
	return se
}

// Inspect implements backends.Inspector. It reads a snapshot, as List does.
func (s *Store) Inspect(ctx context.Context, key backends.Key) (backends.Session, error) {
	c := &call{ctx: ctx, key: key}
	if err := s.do(s.looks, c); err != nil {
		return backends.Session{}, fmt.Errorf("postgres: inspect: %w", err)
	}
	if c.session == nil {
		return backends.Session{}, backends.ErrNotFound
	}
	return *c.session, nil
}

func execInspect(ctx context.Context, w *worker, batch []*call) error {
	if batch[0].run != nil {
		return execRun(ctx, w, batch)
	}
	for _, c := range batch {
		c.session = nil
	}
	var bad error
	err := w.conn.query(ctx, inspectSQL, keyParams(batch), func(row [][]byte) {
		n := int8(row[0])
		if n < 1 || n > int64(len(batch)) {
			bad = errRow
			return
		}
		session := inspected(row)
		batch[n-1].session = &session
	})
	if err == nil {
		err = bad
	}
	return err
}

// List implements backends.Inspector. Orders other than ByKey have a connection of their own.
func (s *Store) List(ctx context.Context, q backends.Query) ([]backends.Session, error) {
	sql := listByKeySQL
	switch q.Order {
	case backends.BySize:
		sql = listBySizeSQL
	case backends.ByLockAge:
		sql, q.Locked = listByLockAgeSQL, true
	case backends.ByCreated:
		sql = listByCreatedSQL
	}
	params := append(bounds(q.Range()), []byte{byte(bit(q.Locked))}, []byte(q.ID), []byte{byte(bit(q.Data))},
		binary.BigEndian.AppendUint64(nil, uint64(q.Limit)))
	list := func(ctx context.Context, c *conn) (sessions []backends.Session, err error) {
		err = c.query(ctx, sql, params, func(row [][]byte) { sessions = append(sessions, inspected(row)) })
		return sessions, err
	}
	if q.Order == backends.ByKey {
		return runIn(ctx, s, s.looks, "list", list)
	}
	return alone(ctx, s, "list", list)
}

// Applications implements backends.Inspector, on a connection of its own.
func (s *Store) Applications(ctx context.Context) ([]backends.ApplicationInfo, error) {
	return alone(ctx, s, "applications", func(ctx context.Context, c *conn) (infos []backends.ApplicationInfo, err error) {
		err = c.query(ctx, countSQL, nil, func(row [][]byte) {
			infos = append(infos, backends.ApplicationInfo{ID: backends.AppID(int4(row[0])), Name: string(row[1]),
				Sessions: int(int8(row[2])), Locked: int(int8(row[3])), Bytes: int8(row[4])})
		})
		return infos, err
	})
}

// Names implements backends.Namer.
func (s *Store) Names(ctx context.Context) ([]backends.ApplicationInfo, error) {
	return runIn(ctx, s, s.looks, "applications", func(ctx context.Context, c *conn) (infos []backends.ApplicationInfo, err error) {
		err = c.query(ctx, `SELECT app_id, app_name FROM applications ORDER BY app_name`, nil, func(row [][]byte) {
			infos = append(infos, backends.ApplicationInfo{ID: backends.AppID(int4(row[0])), Name: string(row[1])})
		})
		return infos, err
	})
}

// alone runs f on a connection of its own, for as long as it takes.
func alone[T any](ctx context.Context, s *Store, what string, f func(context.Context, *conn) (T, error)) (result T, err error) {
	if ctx.Err() != nil {
		return result, fmt.Errorf("postgres: %s: %w", what, notSent(ctx))
	}
	if err := s.begin(); err != nil {
		return result, fmt.Errorf("postgres: %s: %w", what, err)
	}
	defer s.calls.Done()
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	c, err := s.db.connect(ctx)
	if err == nil {
		defer c.close()
		result, err = f(ctx, c)
	}
	switch {
	case err == nil:
		return result, nil
	case caller.Err() != nil:
		err = context.Cause(caller)
	default:
		err = failure(err)
	}
	return *new(T), fmt.Errorf("postgres: %s: %w", what, err)
}
