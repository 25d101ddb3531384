package postgres

import (
	"context"
	"encoding/binary"
	"fmt"

	"aspstate/backends"
)

// portion is how many rows one statement of DeleteExpired looks at: few, so that it holds their locks for milliseconds.
const portion = 200

// sweepLock is the number of the advisory lock under which one server sweeps at a time; with the
// table's OID, so that several schemas do not share it.
const sweepLock = "1936157043" // "sweep" as far as it fits

// sweepSQL looks at rows that are due: those expired it deletes, the others are due again when they would expire.
// $1 how many, $2 whether to take the advisory lock. It answers how many rows it looked at, and how many sessions it deleted. Rows that
// a request holds are left for the next time. now() is before the rows are locked, and so on the safe side.
const sweepSQL = `
WITH ` + fence + `, due AS MATERIALIZED (
    SELECT app_id, session_id, expires, expires < now() AS expired FROM sessions
    WHERE sweep_at < now() AND NOT (SELECT moved FROM fence) AND (SELECT CASE WHEN $2::bool THEN pg_try_advisory_xact_lock(` + sweepLock + `, 'sessions'::regclass::oid::int4) ELSE true END)
    ORDER BY sweep_at LIMIT $1::int4
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM sessions s USING due d WHERE s.app_id = d.app_id AND s.session_id = d.session_id AND d.expired
    RETURNING d.expires > '-infinity' AS session
), later AS (
    UPDATE sessions s SET sweep_at = d.expires FROM due d
    WHERE s.app_id = d.app_id AND s.session_id = d.session_id AND NOT d.expired
    RETURNING 1
)
SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM deleted WHERE session), (SELECT count(*) FROM later), moved FROM fence`

// forgetSQL deletes names that nobody needs. Those that have sessions are not looked at for another day.
const forgetSQL = `
WITH ` + fence + `, old AS MATERIALIZED (
    SELECT app_id, EXISTS (SELECT FROM sessions s WHERE s.app_id = a.app_id) AS used FROM applications a
    WHERE last_use < now() - interval '24 hours' AND NOT (SELECT moved FROM fence) ORDER BY app_id LIMIT 100 FOR UPDATE SKIP LOCKED
), kept AS (
    UPDATE applications a SET last_use = now() FROM old WHERE a.app_id = old.app_id AND old.used RETURNING 1
)
DELETE FROM applications a USING old WHERE a.app_id = old.app_id AND NOT old.used`

// DeleteExpired implements backends.Store. Where another server is sweeping it deletes nothing. It also forgets applications,
// and rows of removed sessions, which it does not count.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (int, error) {
	deleted := 0
	for deleted < limit {
		ask := min(portion, limit-deleted)
		swept, err := run(ctx, s, "delete expired", func(ctx context.Context, c *conn) (swept, error) { return s.sweep(ctx, c, ask) })
		deleted += swept.sessions
		if err == nil && swept.moved {
			err = fmt.Errorf("postgres: delete expired: %w", backends.ErrMoved)
		}
		if err != nil {
			return deleted, err
		}
		if swept.rows < ask {
			_, err := run(ctx, s, "forget applications", func(ctx context.Context, c *conn) (struct{}, error) {
				return struct{}{}, c.query(ctx, forgetSQL, nil, func([][]byte) {})
			})
			return deleted, err
		}
	}
	return deleted, nil
}

// swept is what one portion came to.
type swept struct {
	rows, sessions int
	moved          bool
}

func (s *Store) sweep(ctx context.Context, c *conn, ask int) (did swept, err error) {
	advisory := []byte{1}
	if s.noAdvisory.Load() {
		advisory[0] = 0
	}
	err = c.query(ctx, sweepSQL, [][]byte{binary.BigEndian.AppendUint32(nil, uint32(ask)), advisory}, func(row [][]byte) {
		did = swept{int(int8(row[0])), int(int8(row[1])), row[3][0] == 1}
	})
	if isCode(err, "0A000") && s.noAdvisory.CompareAndSwap(false, true) {
		return s.sweep(ctx, c, ask) // without it, servers that sweep at once skip each other's rows
	}
	return did, err
}
