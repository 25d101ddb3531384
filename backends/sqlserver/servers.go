package sqlserver

import (
	"context"
	"database/sql"
	"encoding/json"
	"slices"
	"strings"

	"aspstate/backends"
)

// attendSQL enters the server @slot and answers with those that have come lately. The sweeper deletes others after an hour.
const attendSQL = `
SET NOCOUNT ON
UPDATE dbo.ASPStateRequests SET LastUse = GETUTCDATE(), Content = @content WHERE Slot = @slot
IF @@ROWCOUNT = 0 INSERT dbo.ASPStateRequests (Slot, Seq, LockCookie, Flags, LastUse, Content) VALUES (@slot, 0, 0, 16, GETUTCDATE(), @content)
SELECT Content FROM dbo.ASPStateRequests
WHERE Flags = 16 AND (Slot = @slot OR LastUse >= DATEADD(second, -10, GETUTCDATE()))`

const departSQL = `DELETE dbo.ASPStateRequests WHERE Slot = @slot AND Flags = 16`

// Attend implements backends.SharedMovable. The entries come by ID.
func (s *Store) Attend(ctx context.Context, a backends.Attendance) ([]backends.Attendance, error) {
	content, err := json.Marshal(a)
	if err != nil {
		return nil, wrap("attend", err)
	}
	args := []any{sql.Named("slot", slotOf("server "+a.ID)), sql.Named("content", content)}
	all, err := look(ctx, s, "attend", attendSQL, "@slot binary(16), @content varbinary(max)", args, func(rows *sql.Rows) (a backends.Attendance, err error) {
		var content []byte
		if err = rows.Scan(&content); err == nil {
			err = json.Unmarshal(content, &a)
		}
		return a, err
	})
	slices.SortFunc(all, func(a, b backends.Attendance) int { return strings.Compare(a.ID, b.ID) })
	return all, err
}

// Depart implements backends.SharedMovable.
func (s *Store) Depart(ctx context.Context, id string) error {
	return wrap("depart", s.exec(ctx, departSQL, "@slot binary(16)", sql.Named("slot", slotOf("server "+id))))
}
