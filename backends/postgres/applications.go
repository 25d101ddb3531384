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
const findApplicationSQL = `SELECT app_id, last_use < now() - interval '1 hour' FROM applications WHERE name_hash = $1`

// useApplicationSQL: $1 application number.
const useApplicationSQL = `UPDATE applications SET last_use = now() WHERE app_id = $1::int4`

// registerApplicationSQL: $1 wanted number, $2 SHA-256 of the name, $3 the name. It answers whether the name was
// registered, whether the number is taken, and how many names there are.
const registerApplicationSQL = `
WITH counted AS MATERIALIZED (
    SELECT count(*) AS names, count(*) FILTER (WHERE app_id = $1::int4) AS taken FROM applications
), registered AS (
    INSERT INTO applications (app_id, name_hash, app_name, last_use)
    SELECT $1::int4, $2::bytea, $3::bytea, now() FROM counted WHERE names < 10000 AND taken = 0
    ON CONFLICT DO NOTHING RETURNING 1
)
SELECT (SELECT count(*) FROM registered), taken, names FROM counted`

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
		found, stale := false, false
		err := c.query(ctx, findApplicationSQL, [][]byte{hash[:]}, func(row [][]byte) {
			found, stale = true, row[1][0] == 1
			id = backends.AppID(int4(row[0]))
		})
		number := binary.BigEndian.AppendUint32(nil, uint32(id))
		switch {
		case err != nil:
			return 0, err
		case stale:
			return id, c.query(ctx, useApplicationSQL, [][]byte{number}, func([][]byte) {})
		case found:
			return id, nil
		case !create:
			return 0, backends.ErrUnknownApplication
		}
		var registered, taken, names int64
		err = c.query(ctx, registerApplicationSQL, [][]byte{number, hash[:], []byte(name)}, func(row [][]byte) {
			registered, taken, names = int8(row[0]), int8(row[1]), int8(row[2])
		})
		switch {
		case err != nil:
			return 0, err
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
