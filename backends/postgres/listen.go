package postgres

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"aspstate/backends"
)

var _ backends.Shared = (*Store)(nil)

// expectSQL marks a locked session, so that the statement that unlocks it tells of that. Nobody waits for
// its commit to reach the disk. $1 application number, $2 session ID. It answers how many sessions it marked and whether the
// store was left.
const expectSQL = `
WITH ` + fence + `, marked AS (
UPDATE sessions SET flags = flags | 2
WHERE app_id = $1::int4 AND session_id = $2::bytea AND locked AND expires >= clock_timestamp()
  AND NOT (SELECT moved FROM fence)
  AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL
RETURNING 1)
SELECT (SELECT count(*) FROM marked), moved FROM fence`

// Expect implements backends.Shared.
func (s *Store) Expect(ctx context.Context, key backends.Key) (locked bool, err error) {
	return run(ctx, s, "expect", func(ctx context.Context, c *conn) (locked bool, err error) {
		params := [][]byte{binary.BigEndian.AppendUint32(nil, uint32(key.App)), []byte(key.ID)}
		moved := false
		err = c.query(ctx, expectSQL, params, func(row [][]byte) { locked, moved = int8(row[0]) > 0, row[1][0] == 1 })
		if err == nil && moved {
			err = backends.ErrMoved
		}
		return locked, err
	})
}

const (
	greeting = "greeting" // what a listener sends to itself
	farewell = "moved"    // and what Leave sends to all
)

// Listen implements backends.Shared, over a connection of its own. A pooler with pool_mode=transaction takes the
// LISTEN and delivers nothing, which a greeting through another connection shows.
func (s *Store) Listen(ctx context.Context, ready func(), released func(backends.Key)) error {
	greeted, moved := false, false
	config := s.db.config.Copy()
	config.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) {
		if key, ok := parseKey(n.Payload); ok {
			released(key)
		}
		greeted = greeted || n.Payload == greeting
		moved = moved || n.Payload == farewell
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("postgres: listen: %w", err)
	}
	c := &conn{PgConn: pg, db: s.db}
	defer c.close()
	if err := c.listen(ctx); err != nil {
		return fmt.Errorf("postgres: listen: %w", err)
	}
	_, err = run(ctx, s, "greet", func(ctx context.Context, c *conn) (struct{}, error) {
		return struct{}{}, c.query(ctx, `SELECT pg_notify(`+channel+`, '`+greeting+`')::text`, nil, func([][]byte) {})
	})
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, greetingTime)
	defer cancel()
	for !greeted {
		if err := pg.WaitForNotification(wait); err != nil {
			if wait.Err() != nil && ctx.Err() == nil {
				err = fmt.Errorf("notifications do not arrive, perhaps because of a pooler: %w", errors.ErrUnsupported)
			}
			return fmt.Errorf("postgres: listen: %w", err)
		}
	}
	away, _, err := s.Moves(ctx) // a farewell before LISTEN was not heard
	if err != nil {
		return err
	}
	moved = moved || away.Stage >= backends.Moving
	if !moved {
		ready()
	}
	for {
		if moved {
			return fmt.Errorf("postgres: listen: %w", backends.ErrMoved)
		}
		if err := pg.WaitForNotification(ctx); err != nil {
			return fmt.Errorf("postgres: listen: %w", err)
		}
	}
}

// greetingTime is how long a notification may take from one connection to another.
const greetingTime = 5 * time.Second

// listen runs LISTEN, whose channel cannot be a parameter.
func (c *conn) listen(ctx context.Context) error {
	name := c.ExecParams(ctx, `SELECT `+channel, nil, nil, nil, nil).Read()
	if name.Err != nil {
		return name.Err
	}
	_, err := c.Exec(ctx, `LISTEN "`+string(name.Rows[0][0])+`"`).ReadAll()
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code[:2] == "0A" || pgErr.Code[:2] == "42") {
		err = fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	return err
}

// parseKey reads what notify sends.
func parseKey(payload string) (backends.Key, bool) {
	app, id, ok := strings.Cut(payload, ":")
	number, err := strconv.ParseInt(app, 10, 32)
	raw, err2 := hex.DecodeString(id)
	return backends.Key{App: backends.AppID(number), ID: string(raw)}, ok && err == nil && err2 == nil
}
