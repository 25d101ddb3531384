package postgres

import (
	"context"

	"aspstate/backends"
)

// attendSQL enters a server: $1 its ID, $2 name, $3 and $4 what it says of moves. Those that have not come for a day are forgotten.
const attendSQL = `
WITH own AS (
    INSERT INTO servers (server_id, server_name, ready, fault, seen) VALUES ($1::bytea, $2::bytea, $3::bytea, $4::bytea, clock_timestamp())
    ON CONFLICT (server_id) DO UPDATE SET server_name = excluded.server_name, ready = excluded.ready, fault = excluded.fault, seen = excluded.seen
    RETURNING server_id, server_name, ready, fault
), gone AS (
    DELETE FROM servers WHERE seen < clock_timestamp() - interval '1 day' AND server_id <> $1::bytea
)
SELECT server_id, server_name, ready, fault FROM own
UNION ALL
SELECT server_id, server_name, ready, fault FROM servers WHERE seen >= clock_timestamp() - interval '10 seconds' AND server_id <> $1::bytea
ORDER BY server_id`

const departSQL = `DELETE FROM servers WHERE server_id = $1::bytea`

// Attend implements backends.SharedMovable. The entries come by ID.
func (s *Store) Attend(ctx context.Context, a backends.Attendance) ([]backends.Attendance, error) {
	return runIn(ctx, s, s.looks, "attend", func(ctx context.Context, c *conn) (all []backends.Attendance, err error) {
		params := [][]byte{[]byte(a.ID), []byte(a.Name), []byte(a.Ready), []byte(a.Fault)}
		err = c.query(ctx, attendSQL, params, func(row [][]byte) {
			all = append(all, backends.Attendance{ID: string(row[0]), Name: string(row[1]), Ready: string(row[2]), Fault: string(row[3])})
		})
		return all, err
	})
}

// Depart implements backends.SharedMovable.
func (s *Store) Depart(ctx context.Context, id string) error {
	_, err := runIn(ctx, s, s.looks, "depart", func(ctx context.Context, c *conn) (struct{}, error) {
		return struct{}{}, c.query(ctx, departSQL, [][]byte{[]byte(id)}, func([][]byte) {})
	})
	return err
}
