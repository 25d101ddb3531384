package sqlserver

import (
	"context"
	"database/sql"
	"fmt"
)

// portion is how many sessions one batch of DeleteExpired deletes: few, so that it holds their locks for milliseconds.
const portion = 200

// sweepSQL deletes up to @limit sessions that have expired, unless another server is sweeping, and answers how many. It finds their keys
// in the index and takes locks by the key only, as all others do; rows that a request holds are left for the next time.
const sweepSQL = `
SET XACT_ABORT ON
SET NOCOUNT ON
SET DEADLOCK_PRIORITY LOW
DECLARE @granted int, @deleted int, @now datetime
` + shut + `
SET @now = GETUTCDATE()
BEGIN TRANSACTION
EXEC @granted = sp_getapplock @Resource = 'aspstate sweep', @LockMode = 'Exclusive', @LockOwner = 'Transaction', @LockTimeout = 0
` + granted + `
SELECT TOP (@limit) SessionId INTO #expired FROM dbo.ASPStateTempSessions WITH (READPAST) WHERE Expires < @now ORDER BY Expires
DELETE dbo.ASPStateTempSessions WITH (READPAST, ROWLOCK)
WHERE SessionId IN (SELECT SessionId FROM #expired) AND Expires < @now
SET @deleted = @@ROWCOUNT
DROP TABLE #expired
COMMIT TRANSACTION
SELECT @deleted`

// forgetSQL deletes the slots of servers that are gone: no request is under way for so long.
const forgetSQL = `
SET NOCOUNT ON
SET DEADLOCK_PRIORITY LOW
DELETE dbo.ASPStateRequests WITH (READPAST, ROWLOCK) WHERE LastUse < DATEADD(hour, -1, GETUTCDATE())`

// DeleteExpired implements backends.Store. Where another server is sweeping it deletes nothing. It also forgets the requests of
// servers that are gone; applications it never forgets.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (int, error) {
	deleted := 0
	for deleted < limit {
		ask := min(portion, limit-deleted)
		n, err := query(ctx, s, sweepSQL, "@limit int", []any{sql.Named("limit", ask)}, func(rows *sql.Rows) (n int, err error) {
			err = rows.Scan(&n)
			return n, err
		})
		deleted += n
		if isNumber(err, heldNumber) {
			break
		}
		if err != nil {
			return deleted, fmt.Errorf("sqlserver: delete expired: %w", err)
		}
		if n < ask {
			if err := s.exec(ctx, forgetSQL, ""); err != nil {
				return deleted, fmt.Errorf("sqlserver: forget requests: %w", err)
			}
			break
		}
	}
	return deleted, nil
}
