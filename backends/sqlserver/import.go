package sqlserver

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"aspstate/backends"
)

// A batch of Import takes in as many sessions.
const (
	importMost  = 64
	importBytes = 4 << 20
)

// importSQL takes in sessions if the moves are at @seq: importOneSQL for each, # being its number. It answers how many, and which one has
// an ID that the key takes for another session's (-1: none). @answer is 0, or 1 where the moves are not at @seq.
const (
	importSQL = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @granted int, @answer int, @taken int, @rows int, @other int, @now datetime, @sec datetime
SET @answer = 1
SET @taken = 0
SET @other = -1
SET @now = GETUTCDATE()
SET @sec = ` + wholeSecond + `
BEGIN TRANSACTION
` + hold + `
IF @seq = COALESCE((SELECT Seq FROM dbo.ASPStateRequests WHERE Slot = ` + movesSlot + `), 0)
BEGIN
    SET @answer = 0`
	// What is left is rounded down to a second, see directSQL.
	importOneSQL = `
    SET @rows = 1
    IF @once = 1
    BEGIN
        INSERT dbo.ASPStateRequests (Slot, Seq, LockCookie, Flags, LastUse) SELECT @slot#, 0, 0, 32, '99991231'
        WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateRequests WHERE Slot = @slot#)
        SET @rows = @@ROWCOUNT
    END
    IF @rows = 1
    BEGIN
        DELETE dbo.ASPStateTempSessions WHERE SessionId = @id# AND Expires < @now
        INSERT dbo.ASPStateTempSessions (SessionId, Created, LockDate, LockDateLocal, LockCookie, Flags, Timeout, Expires, Locked, SessionItemShort, SessionItemLong)
        SELECT @id#, @created#, DATEADD(millisecond, -@ms#, DATEADD(second, -@age#, @now)), DATEADD(millisecond, -@ms#, DATEADD(second, -@age#, GETDATE())),
            @cookie#, @mark#, @timeout#, DATEADD(second, @seconds#, DATEADD(minute, @minutes#, @sec)), @locked#, @short#, @long#
        WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateTempSessions WHERE SessionId = @id#)
        SET @rows = @@ROWCOUNT
        SET @taken = @taken + @rows
        IF @rows = 0 AND NOT EXISTS (SELECT 1 FROM dbo.ASPStateTempSessions WHERE SessionId = @id# AND SessionId = @id# COLLATE Latin1_General_BIN2)
            SET @other = #
    END`
	importedSQL = `
END
COMMIT TRANSACTION
SELECT @answer, @taken, @other`
	importOneDeclared = `, @id# nvarchar(88), @slot# binary(16), @created# datetime, @age# int, @ms# int, @cookie# int, @mark# bit, @timeout# int,
    @minutes# int, @seconds# int, @locked# bit, @short# varbinary(7000), @long# varbinary(max)`
)

// Import implements backends.Movable. A session whose ID the database's collation takes for that of another session is logged and
// left out.
func (s *Store) Import(ctx context.Context, move string, sessions []backends.Session) (taken int, err error) {
	var own []backends.Session
	keys := map[backends.Key]bool{}
	for _, se := range sessions {
		if se.Timeout != backends.NeverExpires && se.Left < 0 || keys[se.Key] {
			continue
		}
		keys[se.Key] = true
		own = append(own, se)
	}
	// All take their locks in one order.
	slices.SortFunc(own, func(a, b backends.Session) int { return a.Key.Compare(b.Key) })
	for {
		was, err := s.moves(ctx)
		if err == nil {
			err = was.Import(move)
		}
		if err != nil || len(own) == 0 {
			return taken, wrap("import", err)
		}
		n, size := 0, 0
		for n < len(own) && n < importMost && (n == 0 || size+len(own[n].Data) <= importBytes) {
			size += len(own[n].Data)
			n++
		}
		a, err := s.importSome(ctx, was.seq, move != "", own[:n])
		switch {
		case isDuplicate(err) || isNumber(err, 1205): // somebody else imports or creates one of them
			continue
		case err != nil:
			return taken, wrap("import", roomFailure(err))
		case a.refused:
			continue
		}
		if a.other >= 0 && a.other < n {
			s.log.Error("a session is not imported, since the key of ASPStateTempSessions cannot tell its ID from another one",
				"session", backends.ShortID(own[a.other].ID))
		}
		taken += a.taken
		own = own[n:]
	}
}

type imported struct {
	refused      bool // the moves have changed
	taken, other int
}

func (s *Store) importSome(ctx context.Context, seq int64, once bool, sessions []backends.Session) (imported, error) {
	batch, declared := strings.Builder{}, strings.Builder{}
	batch.WriteString(importSQL)
	declared.WriteString("@seq bigint, @once bit")
	args := []any{sql.Named("seq", seq), sql.Named("once", once)}
	for i, se := range sessions {
		number := fmt.Sprint(i)
		batch.WriteString(strings.ReplaceAll(importOneSQL, "#", number))
		declared.WriteString(strings.ReplaceAll(importOneDeclared, "#", number))
		add := func(name string, value any) { args = append(args, sql.Named(name+number, value)) }
		id := keyArg(se.Key).Value.(string)
		add("id", id)
		add("slot", slotOf("session "+id))
		add("created", mssql.DateTime1(since(se.Created)))
		age := min(se.LockAge, math.MaxInt32*time.Second)
		add("age", int64(age/time.Second))
		add("ms", int64(age%time.Second/time.Millisecond))
		add("cookie", int32(se.LockCookie))
		add("mark", se.Uninitialized)
		left := int64(se.Left / time.Minute)
		if se.Timeout == backends.NeverExpires {
			left = never
		}
		add("timeout", minutes(se.Timeout))
		add("minutes", left)
		add("seconds", int64(se.Left%time.Minute/time.Second))
		add("locked", se.Locked)
		short, long := columnsOf(bytes.Clone(se.Data))
		add("short", short)
		add("long", long)
	}
	batch.WriteString(importedSQL)
	return query(ctx, s, batch.String(), declared.String(), args, func(rows *sql.Rows) (a imported, err error) {
		err = rows.Scan(&a.refused, &a.taken, &a.other)
		return a, err
	})
}

// since is a creation as the column Created can hold it.
func since(created time.Time) time.Time {
	if created.Year() < 1753 {
		return time.Now().UTC()
	}
	return created.UTC()
}
