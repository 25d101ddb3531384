package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"aspstate/backends"
)

// maxApplications bounds the table of names, which clients choose.
const maxApplications = 10000

// findApplicationSQL: $1 SHA-256 of the name.
const findApplicationSQL = `SELECT ` + leftSQL + `, a.app_id, a.last_use < now() - interval '1 hour'
FROM (SELECT) one LEFT JOIN applications a ON a.name_hash = $1`

// useApplicationSQL: $1 application number.
const useApplicationSQL = `WITH ` + fence + ` UPDATE applications SET last_use = now() WHERE app_id = $1::int4 AND NOT (SELECT moved FROM fence)`

// registerApplicationSQL: $1 wanted number, $2 SHA-256 of the name, $3 the name. It answers whether the name was
// registered, whether the number is taken, how many names there are, and whether the store was left.
const registerApplicationSQL = `
WITH ` + fence + `, counted AS MATERIALIZED (
    SELECT count(*) AS names, count(*) FILTER (WHERE app_id = $1::int4) AS taken FROM applications
), registered AS (
    INSERT INTO applications (app_id, name_hash, app_name, last_use)
    SELECT $1::int4, $2::bytea, $3::bytea, now() FROM counted, fence WHERE names < 10000 AND taken = 0 AND NOT moved
    ON CONFLICT DO NOTHING RETURNING 1
)
SELECT (SELECT count(*) FROM registered), taken, names, moved FROM counted, fence`

// Application implements backends.Store. There is room for 10,000 names; servers that register
// at the same moment may pass that by a few. A name is forgotten by DeleteExpired when it has no sessions and was not asked for
// in 24 hours.
func (s *Store) Application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	// What was registered stays, and registering it again finds it: a retry needs no token.
	return run(ctx, s, "application", func(ctx context.Context, c *conn) (backends.AppID, error) {
		return application(ctx, c, name, create)
	})
}

func application(ctx context.Context, c *conn, name string, create bool) (backends.AppID, error) {
	hash := sha256.Sum256([]byte(name))
	id := backends.HashAppID(name)
	for {
		var moved, found, stale bool
		err := c.query(ctx, findApplicationSQL, [][]byte{hash[:]}, func(row [][]byte) {
			if moved, found = row[0][0] == 1, row[1] != nil; found {
				id, stale = backends.AppID(int4(row[1])), row[2][0] == 1
			}
		})
		number := binary.BigEndian.AppendUint32(nil, uint32(id))
		switch {
		case err != nil:
			return 0, err
		case moved:
			return 0, backends.ErrMoved
		case stale:
			return id, c.query(ctx, useApplicationSQL, [][]byte{number}, func([][]byte) {})
		case found:
			return id, nil
		case !create:
			return 0, backends.ErrUnknownApplication
		}
		var registered, taken, names int64
		err = c.query(ctx, registerApplicationSQL, [][]byte{number, hash[:], []byte(name)}, func(row [][]byte) {
			registered, taken, names, moved = int8(row[0]), int8(row[1]), int8(row[2]), row[3][0] == 1
		})
		switch {
		case err != nil:
			return 0, err
		case moved:
			return 0, backends.ErrMoved
		case registered == 1:
			return id, nil
		case taken == 0 && names >= maxApplications:
			return 0, fmt.Errorf("%d names are registered: %w", maxApplications, backends.ErrFull)
		case taken == 1:
			id++ // the next one; it wraps
		}
		// Otherwise another server was faster, with the name or with the number.
	}
}
