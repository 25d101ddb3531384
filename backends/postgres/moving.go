package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"aspstate/backends"
)

const movesSQL = `SELECT away, move_id, source, target, stage FROM moves`

// stepSQL keeps the moves if they are as they were read. It is text, because all of it has to go to the server at once: a client
// that stopped between the lock and the commit would stop all servers. Nobody waits for the lock longer than stepWait, since
// the statements that come after wait behind it.
const stepSQL = `SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT set_config('lock_timeout', '%d', true);
LOCK TABLE moves IN EXCLUSIVE MODE;
INSERT INTO moves (away, move_id, source, target, stage)
SELECT * FROM (VALUES (true, %s, %s, %s, %d), (false, %s, %s, %s, %d)) AS m
WHERE clock_timestamp() < '%s'::timestamptz
  AND (SELECT coalesce(string_agg(away::text || stage || encode(move_id, 'hex'), ',' ORDER BY away), '') FROM moves WHERE stage > 0) = '%s'
ON CONFLICT (away) DO UPDATE SET move_id = excluded.move_id, source = excluded.source, target = excluded.target, stage = excluded.stage`

const stepWait = 400 * time.Millisecond

// farewellSQL ends what Listen does in every process.
const farewellSQL = `;
SELECT pg_notify(` + channel + `, '` + farewell + `')::text FROM moves WHERE away AND stage = 2`

// Moves implements backends.Movable.
func (s *Store) Moves(ctx context.Context) (away, into backends.Move, err error) {
	m, err := s.moves(ctx)
	return m.Away, m.Into, err
}

func (s *Store) moves(ctx context.Context) (backends.Moves, error) {
	return runIn(ctx, s, s.looks, "moves", func(ctx context.Context, c *conn) (moves backends.Moves, err error) {
		err = c.query(ctx, movesSQL, nil, func(row [][]byte) {
			m := backends.Move{ID: string(row[1]), From: string(row[2]), To: string(row[3]), Stage: backends.Stage(int4(row[4]))}
			switch {
			case m.Stage == backends.NoMove:
			case row[0][0] == 1:
				moves.Away = m
			default:
				moves.Into = m
			}
		})
		return moves, err
	})
}

// Leave implements backends.Movable. It waits for the statements under way.
func (s *Store) Leave(ctx context.Context, m backends.Move) error {
	if err := s.fenced(ctx); err != nil {
		return err
	}
	return s.step(ctx, "leave", func(was backends.Moves) (backends.Moves, error) { return was.Leave(m) })
}

// fenced is nil where the fence works: under stricter isolation than READ COMMITTED a statement that waited for a step
// goes on with what it saw before.
func (s *Store) fenced(ctx context.Context) error {
	_, err := runIn(ctx, s, s.looks, "leave", func(ctx context.Context, c *conn) (struct{}, error) {
		level := ""
		err := c.query(ctx, `SELECT current_setting('transaction_isolation')`, nil, func(row [][]byte) { level = string(row[0]) })
		if err == nil && level != "read committed" {
			err = fmt.Errorf("transactions are %s: run: ALTER ROLE … SET default_transaction_isolation = 'read committed', and restart all servers: %w", level, backends.ErrPermanent)
		}
		return struct{}{}, err
	})
	return err
}

// Enter implements backends.Movable.
func (s *Store) Enter(ctx context.Context, m backends.Move) error {
	was, err := s.moves(ctx)
	if err != nil {
		return err
	}
	if is, err := was.Enter(m); err == nil && is != was {
		if err := s.forgetAll(ctx, forgetArrivalsSQL); err != nil {
			return err
		}
		if was.Left() {
			if err := s.forgetAll(ctx, forgetSessionsSQL); err != nil {
				return err
			}
		}
	}
	// If the store was left only now, or entered, its rows are still there and the step is refused.
	return s.step(ctx, "enter", func(now backends.Moves) (backends.Moves, error) {
		is, err := now.Enter(m)
		if err == nil && is != now && now.Left() != was.Left() {
			err = fmt.Errorf("another move was quicker: %w", backends.ErrMoved)
		}
		return is, err
	})
}

// Announce implements backends.SharedMovable.
func (s *Store) Announce(ctx context.Context, m backends.Move) error {
	return s.step(ctx, "announce", func(was backends.Moves) (backends.Moves, error) { return was.Announce(m) })
}

// Complete implements backends.Movable.
func (s *Store) Complete(ctx context.Context, m backends.Move) error {
	into := false
	err := s.step(ctx, "complete", func(was backends.Moves) (is backends.Moves, err error) {
		is, err = was.Complete(m)
		into = is.Into.ID == m.ID
		return is, err
	})
	if err != nil || !into {
		return err
	}
	return s.forgetAll(ctx, forgetArrivalsSQL)
}

// step takes a step of a move. It tries until ctx ends.
func (s *Store) step(ctx context.Context, what string, rule func(backends.Moves) (backends.Moves, error)) error {
	for {
		was, err := s.moves(ctx)
		if err != nil {
			return err
		}
		is, err := rule(was)
		if err != nil {
			return fmt.Errorf("postgres: %s: %w", what, err)
		}
		if is == was {
			return nil
		}
		kept, err := runIn(ctx, s, s.imports, what, func(ctx context.Context, c *conn) (bool, error) { return s.keep(ctx, c, was, is) })
		switch {
		case isCode(err, "55P03"): // somebody holds rows; let others write meanwhile
			select {
			case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
			case <-ctx.Done():
				return fmt.Errorf("postgres: %s: statements hold the table: %w", what, notSent(ctx))
			}
		case err != nil:
			return err
		case kept:
			return nil
		}
	}
}

// keep runs stepSQL, and reports whether it found the moves as they were.
func (s *Store) keep(ctx context.Context, c *conn, was, is backends.Moves) (bool, error) {
	sql := fmt.Sprintf(stepSQL, stepWait.Milliseconds(),
		literal(is.Away.ID), literal(is.Away.From), literal(is.Away.To), is.Away.Stage,
		literal(is.Into.ID), literal(is.Into.From), literal(is.Into.To), is.Into.Stage,
		c.now().Add(patience).UTC().Format("2006-01-02 15:04:05.000000Z07:00"), summary(was))
	if is.Left() && !was.Left() && !s.noNotify.Load() {
		sql += farewellSQL
	}
	results, err := c.script(ctx, sql)
	if isCode(err, "42883") && s.noNotify.CompareAndSwap(false, true) {
		return s.keep(ctx, c, was, is)
	}
	return err == nil && results[3].CommandTag.RowsAffected() > 0, err
}

// literal needs no quoting: it is a bytea in hexadecimal digits.
func literal(text string) string { return fmt.Sprintf(`decode('%x', 'hex')`, text) }

// summary is what stepSQL compares.
func summary(m backends.Moves) (text string) {
	if m.Into.Stage != backends.NoMove {
		text = fmt.Sprintf("false%d%x", m.Into.Stage, m.Into.ID)
	}
	if m.Away.Stage != backends.NoMove {
		if text != "" {
			text += ","
		}
		text += fmt.Sprintf("true%d%x", m.Away.Stage, m.Away.ID)
	}
	return text
}

// script runs several statements in one transaction.
func (c *conn) script(ctx context.Context, sql string) ([]*pgconn.Result, error) {
	c.warned = false
	results, err := c.Exec(ctx, sql).ReadAll()
	if err == nil && c.warned {
		err = errUnreplicated
		c.close()
	}
	return results, err
}

// What is forgotten goes in portions, from the key $1, $2 on, each of which answers with its last key. The conditions are as
// of the portion, and the fence keeps them: nobody comes in meanwhile.
const (
	forgetPortion     = `2000`
	forgetSessionsSQL = `
WITH gone AS (
    DELETE FROM sessions WHERE (app_id, session_id) IN (
        SELECT app_id, session_id FROM sessions WHERE (app_id, session_id) >= ($1::int8, $2::bytea) ORDER BY app_id, session_id LIMIT ` + forgetPortion + `)
      AND EXISTS (SELECT FROM moves WHERE away AND stage = 3 FOR KEY SHARE)
    RETURNING app_id, session_id
)
SELECT app_id, session_id FROM gone ORDER BY app_id DESC, session_id DESC LIMIT 1`
	forgetArrivalsSQL = `
WITH gone AS (
    DELETE FROM arrivals WHERE (app_id, session_id) IN (
        SELECT app_id, session_id FROM arrivals WHERE (app_id, session_id) >= ($1::int8, $2::bytea) ORDER BY app_id, session_id LIMIT ` + forgetPortion + `)
      AND NOT EXISTS (SELECT FROM moves WHERE NOT away AND stage = 2 FOR KEY SHARE)
    RETURNING app_id, session_id
)
SELECT app_id, session_id FROM gone ORDER BY app_id DESC, session_id DESC LIMIT 1`
)

func (s *Store) forgetAll(ctx context.Context, sql string) error {
	next, _ := backends.Query{}.Range()
	for more := true; more; {
		last, err := runIn(ctx, s, s.imports, "forget", func(ctx context.Context, c *conn) (last *backends.Bound, err error) {
			err = c.query(ctx, sql, bounds(next), func(row [][]byte) {
				last = &backends.Bound{App: int64(int4(row[0])), ID: string(row[1])}
			})
			return last, err
		})
		if err != nil {
			return err
		}
		if more = last != nil; more {
			next = backends.Bound{App: last.App, ID: last.ID + "\x00"}
		}
	}
	return nil
}

func bounds(all ...backends.Bound) (params [][]byte) {
	for _, b := range all {
		params = append(params, binary.BigEndian.AppendUint64(nil, uint64(b.App)), []byte(b.ID))
	}
	return params
}

// importSQL takes in sessions: where a move brings them those that arrive for the first time. Rows of sessions that have expired
// or were removed are used again, and keep their entries but for those of locks. $1 application numbers, $2 session IDs, $3 creations, $4 what is
// left and $5 the locks' ages (microseconds), $6 lock cookies, $7 timeouts, $8 locked, $9 flags, $10 data, $11 the move,
// $12 the lock timeout. Row 0 says whether the Import is refused; the others are those that were taken in.
const importSQL = `
WITH ` + fence + `, allowed AS MATERIALIZED (
    SELECT NOT moved AND ($11::bytea = '' OR EXISTS (SELECT FROM moves WHERE NOT away AND stage = 2 AND move_id = $11::bytea))
        AND set_config('lock_timeout', $12::text, true) IS NOT NULL AS yes
    FROM fence
), input AS MATERIALIZED (
    SELECT i.*, now - age * interval '1 microsecond' AS lock_date,
        CASE WHEN timeout = 0 THEN 'infinity' ELSE now + remaining * interval '1 microsecond' END AS expires
    FROM (
        SELECT i.*, clock_timestamp() AS now
        FROM unnest($1::int4[], $2::bytea[], $3::timestamptz[], $4::int8[], $5::int8[], $6::int4[], $7::int8[], $8::int4[], $9::int4[])
            WITH ORDINALITY AS i (app_id, session_id, created, remaining, age, lock_cookie, timeout, locked, flags, n), allowed
        WHERE yes
        OFFSET 0
    ) i
), arrived AS (
    INSERT INTO arrivals (app_id, session_id) SELECT app_id, session_id FROM input WHERE $11::bytea <> '' ORDER BY app_id, session_id
    ON CONFLICT DO NOTHING RETURNING app_id, session_id
), chosen AS MATERIALIZED (
    SELECT i.* FROM input i
    WHERE $11::bytea = '' OR EXISTS (SELECT FROM arrived a WHERE a.app_id = i.app_id AND a.session_id = i.session_id)
), held AS MATERIALIZED (
    SELECT s.app_id, s.session_id, c.n FROM chosen c JOIN sessions s ON s.app_id = c.app_id AND s.session_id = c.session_id
    WHERE s.expires < clock_timestamp()
    ORDER BY s.app_id, s.session_id
    FOR UPDATE OF s
), revived AS (
    UPDATE sessions s SET created = c.created, expires = c.expires, lock_date = c.lock_date, lock_cookie = c.lock_cookie, timeout = c.timeout,
        locked = c.locked = 1, flags = c.flags, sweep_at = least(s.sweep_at, c.expires), item = ($10::bytea[])[c.n],
        recent = (
            SELECT coalesce(string_agg(substr(s.recent, g, 37), ''::bytea ORDER BY g), ''::bytea)
            FROM generate_series(1, length(s.recent), 37) AS g WHERE substr(s.recent, g + 33, 4) = '\x00000000'
        )
    FROM held h JOIN chosen c ON c.n = h.n
    WHERE s.app_id = h.app_id AND s.session_id = h.session_id
    RETURNING c.n
), inserted AS (
    INSERT INTO sessions (app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked, flags, sweep_at, recent, item)
    SELECT app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked = 1, flags, expires, '', ($10::bytea[])[n]
    FROM chosen c WHERE NOT EXISTS (SELECT FROM held h WHERE h.n = c.n)
    ORDER BY app_id, session_id
    ON CONFLICT (app_id, session_id) DO NOTHING
    RETURNING app_id, session_id
)
SELECT 0::int8 AS n, NOT yes AS refused FROM allowed
UNION ALL
SELECT n, false FROM revived
UNION ALL
SELECT c.n, false FROM chosen c JOIN inserted i ON i.app_id = c.app_id AND i.session_id = c.session_id`

// Import implements backends.Movable. Sessions of several calls share a statement.
func (s *Store) Import(ctx context.Context, move string, sessions []backends.Session) (int, error) {
	taken := 0
	for {
		n, size := 0, 0
		for n < len(sessions) && n < maxBatch && (n == 0 || size+len(sessions[n].Data) <= maxBatchBytes) {
			size += len(sessions[n].Data)
			n++
		}
		c := &call{ctx: ctx, move: move}
		for _, session := range sessions[:n] {
			if session.Timeout != backends.NeverExpires && session.Left < 0 {
				continue
			}
			session.Data = bytes.Clone(session.Data) // it may be sent after this call has ended
			c.sessions = append(c.sessions, session)
		}
		if len(c.sessions) == 1 {
			c.key = c.sessions[0].Key
		}
		err := s.do(s.imports, c)
		if err == nil {
			err = c.refusal
		}
		if err != nil {
			return taken, fmt.Errorf("postgres: import: %w", setFailure(err))
		}
		taken += c.taken
		if sessions = sessions[n:]; len(sessions) == 0 {
			return taken, nil
		}
	}
}

func execImport(ctx context.Context, w *worker, batch []*call) error {
	if batch[0].run != nil {
		return execRun(ctx, w, batch)
	}
	// A session that is twice in a statement would be taken in by either.
	keys := map[backends.Key]struct{}{}
	var all []*backends.Session
	var of []*call
	size := 0
	for _, c := range batch {
		c.taken, c.refusal = 0, nil
		for i := range c.sessions {
			session := &c.sessions[i]
			if _, twice := keys[session.Key]; twice {
				continue
			}
			keys[session.Key] = struct{}{}
			all, of, size = append(all, session), append(of, c), size+len(session.Data)
		}
	}
	params := [][]byte{
		int4s(all, func(se *backends.Session) int32 { return int32(se.App) }),
		byteas(all, 32*len(all), func(b []byte, se *backends.Session) []byte { return append(b, se.ID...) }),
		timestamps(all, func(se *backends.Session) time.Time { return se.Created }),
		int8s(all, func(se *backends.Session) int64 { return int64((se.Left + time.Microsecond - 1) / time.Microsecond) }),
		int8s(all, func(se *backends.Session) int64 { return int64(se.LockAge / time.Microsecond) }),
		int4s(all, func(se *backends.Session) int32 { return int32(se.LockCookie) }),
		int8s(all, func(se *backends.Session) int64 { return milliseconds(se.Timeout) }),
		int4s(all, func(se *backends.Session) int32 { return bit(se.Locked) }),
		int4s(all, func(se *backends.Session) int32 { return bit(se.Uninitialized) }),
		byteas(all, size, func(b []byte, se *backends.Session) []byte { return append(b, se.Data...) }),
		[]byte(batch[0].move),
		[]byte("1000"),
	}
	var bad error
	err := w.conn.query(ctx, importSQL, params, func(row [][]byte) {
		n := int8(row[0])
		switch {
		case n < 0 || n > int64(len(of)):
			bad = errRow
		case n > 0:
			of[n-1].taken++
		case row[1][0] == 1:
			for _, c := range batch {
				c.refusal = backends.ErrMoved
			}
		}
	})
	return errors.Join(err, bad)
}

func bit(b bool) int32 {
	if b {
		return 1
	}
	return 0
}
