package sqlserver

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"aspstate/backends"
)

var _ backends.SharedMovable = (*Store)(nil)

// What moves need is kept in ASPStateRequests, so that an adopted database gets no other table and no server needs the right to make
// one: the moves themselves in the row movesSlot, and rows whose Slot is made of what they are about (slotOf).
//
// How the database is left: Leave closes all slots (Flags 8). A batch that changes a session ends with its slot, which it has to
// find open; so it is either committed before, and Leave waits for it, or it finds the slot closed and is undone. What has no slot
// holds a lock, 'aspstate move', which Leave takes alone. All batches look first whether the database was left (shut).

const (
	movesSlot   = `0x00000000000000000000000000000001`
	movedNumber = 50423 // the error of shut
	heldNumber  = 50422 // the error of granted
)

const (
	wasLeft = `EXISTS (SELECT 1 FROM dbo.ASPStateRequests WHERE Slot = ` + movesSlot + ` AND LockCookie = 1)`
	// shut ends a batch in a database that was left.
	shut = `
IF ` + wasLeft + `
BEGIN;
    THROW 50423, 'the database was left', 1;
END
`
	// granted ends a batch whose sp_getapplock was refused. It has to be an error: in Babelfish (4.3) every refusal that no error
	// follows leaves something on the connection, and the fifth takes the whole server down (PANIC: ERRORDATA_STACK_SIZE exceeded).
	granted = `
IF @granted < 0
BEGIN;
    THROW 50422, 'another transaction holds the lock', 1;
END
`
	// hold keeps steps of moves waiting until the end of the transaction.
	hold = `
EXEC @granted = sp_getapplock @Resource = 'aspstate move', @LockMode = 'Shared', @LockOwner = 'Transaction'
` + granted + `
`
	staying = hold + shut
)

// wholeSecond is the time rounded down, so that what this store writes into Expires has no milliseconds.
const wholeSecond = `DATEADD(millisecond, -DATEPART(millisecond, @now), @now)`

// slotOf is the Slot of a row that is about the name, the session or the server of this text.
func slotOf(text string) []byte {
	hash := sha256.Sum256([]byte(text))
	return hash[:16]
}

// kept is the row of the moves.
type kept struct {
	seq int64 // of the last step, 0 before the first
	backends.Moves
	now time.Time // when it was read
}

const movesSQL = `
SELECT GETUTCDATE(), r.Seq, r.Content
FROM (SELECT 1 AS one) o LEFT JOIN dbo.ASPStateRequests r ON r.Slot = ` + movesSlot

// stepSQL keeps the moves if they are as they were read, and closes the slots if the database is left by that. It answers 1, or
// fails with heldNumber where a statement holds the lock: nobody waits for it longer than 400 ms, since statements that come after wait behind it.
const stepSQL = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @granted int, @kept int
SET @kept = 0
BEGIN TRANSACTION
EXEC @granted = sp_getapplock @Resource = 'aspstate move', @LockMode = 'Exclusive', @LockOwner = 'Transaction', @LockTimeout = 400
` + granted + `
IF GETUTCDATE() < @until
BEGIN
    IF @leaves = 1 UPDATE dbo.ASPStateRequests SET Flags = Flags | 8 WHERE Flags < 8 AND Slot > ` + movesSlot + `
    UPDATE dbo.ASPStateRequests SET Seq = @seq + 1, LockCookie = @left, Content = @content WHERE Slot = ` + movesSlot + ` AND Seq = @seq
    SET @kept = @@ROWCOUNT
    IF @kept = 0 AND @seq = 0
    BEGIN
        INSERT dbo.ASPStateRequests (Slot, Seq, LockCookie, Flags, LastUse, Content) SELECT ` + movesSlot + `, 1, @left, 0, '99991231', @content
        WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateRequests WHERE Slot = ` + movesSlot + `)
        SET @kept = @@ROWCOUNT
    END
END
IF @kept = 1 COMMIT TRANSACTION ELSE ROLLBACK TRANSACTION
SELECT @kept`

// Moves implements backends.Movable.
func (s *Store) Moves(ctx context.Context) (away, into backends.Move, err error) {
	k, err := s.moves(ctx)
	return k.Away, k.Into, wrap("moves", err)
}

func (s *Store) moves(ctx context.Context) (kept, error) {
	return query(ctx, s, movesSQL, "", nil, func(rows *sql.Rows) (k kept, err error) {
		var seq sql.NullInt64
		var content []byte
		if err = rows.Scan(&k.now, &seq, &content); err == nil && content != nil {
			k.seq = seq.Int64
			err = json.Unmarshal(content, &k.Moves)
		}
		return k, err
	})
}

// Leave implements backends.Movable. It waits for the statements under way. Web applications in mode="SQLServer" that use the database
// directly would go on with it, so that a database which they use is not left, with an ErrPermanent: see inDirectUse.
func (s *Store) Leave(ctx context.Context, m backends.Move) error {
	return s.step(ctx, "leave", func(was backends.Moves) (backends.Moves, error) {
		is, err := was.Leave(m)
		if err == nil && is != was {
			err = s.inDirectUse(ctx)
		}
		return is, err
	})
}

// Enter implements backends.Movable. Where the store forgets its sessions, and web applications use the database directly, it refuses
// that with an ErrPermanent.
func (s *Store) Enter(ctx context.Context, m backends.Move) error {
	for {
		was, err := s.moves(ctx)
		if err != nil {
			return wrap("enter", err)
		}
		is, err := was.Enter(m)
		if err == nil && is != was.Moves && was.Left() {
			err = s.inDirectUse(ctx)
		}
		if err == nil && is != was.Moves {
			err = s.forgetAll(ctx, forgetArrivalsSQL, was.seq)
		}
		if err == nil && is != was.Moves && was.Left() {
			err = s.forgetAll(ctx, forgetSessionsSQL, was.seq)
		}
		if err != nil {
			return wrap("enter", err)
		}
		// Another step that came meanwhile may have left the store, or entered it: then this one is not kept.
		if kept, err := s.keep(ctx, was, is); err != nil || kept {
			return wrap("enter", err)
		}
	}
}

// Announce implements backends.SharedMovable.
func (s *Store) Announce(ctx context.Context, m backends.Move) error {
	return s.step(ctx, "announce", func(was backends.Moves) (backends.Moves, error) { return was.Announce(m) })
}

// Complete implements backends.Movable.
func (s *Store) Complete(ctx context.Context, m backends.Move) error {
	err := s.step(ctx, "complete", func(was backends.Moves) (backends.Moves, error) { return was.Complete(m) })
	if err != nil {
		return err
	}
	k, err := s.moves(ctx)
	if err == nil && k.Into.Stage != backends.Moving {
		err = s.forgetAll(ctx, forgetArrivalsSQL, k.seq)
	}
	return wrap("complete", err)
}

// step takes a step of a move. It tries until ctx ends.
func (s *Store) step(ctx context.Context, what string, rule func(backends.Moves) (backends.Moves, error)) error {
	for {
		was, err := s.moves(ctx)
		if err != nil {
			return wrap(what, err)
		}
		is, err := rule(was.Moves)
		if err != nil {
			return wrap(what, err)
		}
		if kept, err := s.keep(ctx, was, is); err != nil || kept {
			return wrap(what, err)
		}
	}
}

// keep keeps the moves unless they are not as they were any more.
func (s *Store) keep(ctx context.Context, was kept, is backends.Moves) (bool, error) {
	if is == was.Moves {
		return true, nil
	}
	content, err := json.Marshal(is)
	if err != nil {
		return false, err
	}
	args := []any{sql.Named("seq", was.seq), sql.Named("left", bit(is.Left())), sql.Named("leaves", is.Left() && !was.Left()),
		sql.Named("content", content), sql.Named("until", was.now.Add(patience).Format(dateFormat))}
	for {
		kept, err := query(ctx, s, stepSQL, "@seq bigint, @left int, @leaves bit, @content varbinary(max), @until datetime", args,
			func(rows *sql.Rows) (n int, err error) { err = rows.Scan(&n); return n, err })
		if !isNumber(err, heldNumber) {
			return kept == 1, err
		}
		select { // somebody holds the lock; let others go on meanwhile
		case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
		case <-ctx.Done():
			return false, fmt.Errorf("statements are under way: %w", notSent(ctx))
		}
	}
}

// dateFormat is how a parameter of type datetime is written.
const dateFormat = "2006-01-02T15:04:05.000"

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What is forgotten goes in portions, for as long as the moves are at @seq, which keeps everybody out meanwhile.
const (
	forgetPortion = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @granted int, @gone int
SET @gone = -1
BEGIN TRANSACTION
` + hold + `
IF @seq = COALESCE((SELECT Seq FROM dbo.ASPStateRequests WHERE Slot = ` + movesSlot + `), 0)
BEGIN
    `
	forgotten = `
    SET @gone = @@ROWCOUNT
END
COMMIT TRANSACTION
SELECT @gone`
	forgetSessionsSQL = forgetPortion + `DELETE dbo.ASPStateTempSessions WHERE SessionId IN (SELECT TOP (500) SessionId FROM dbo.ASPStateTempSessions ORDER BY SessionId)` + forgotten
	forgetArrivalsSQL = forgetPortion + `DELETE dbo.ASPStateRequests WHERE Slot IN (SELECT TOP (500) Slot FROM dbo.ASPStateRequests WHERE Flags = 32)` + forgotten
)

func (s *Store) forgetAll(ctx context.Context, batch string, seq int64) error {
	for {
		gone, err := query(ctx, s, batch, "@seq bigint", []any{sql.Named("seq", seq)},
			func(rows *sql.Rows) (n int, err error) { err = rows.Scan(&n); return n, err })
		if err != nil && !isNumber(err, 1205) || err == nil && gone <= 0 {
			return err
		}
	}
}

// Expect implements backends.Shared. Nobody is told: see Listen.
func (s *Store) Expect(ctx context.Context, key backends.Key) (locked bool, err error) {
	r, err := s.read(ctx, key, noItem)
	return r.alive() && r.locked, wrap("expect", err)
}

// Listen implements backends.Shared: SQL Server has nothing to tell of a release with that web applications' procedures would use as well, so
// that requests ask again.
func (s *Store) Listen(ctx context.Context, _ func(), _ func(backends.Key)) error {
	if err := s.exec(ctx, shut, ""); err != nil {
		return wrap("listen", err)
	}
	return wrap("listen", errors.ErrUnsupported)
}

// directSQL finds sessions that were last used by other software than this, in the last five minutes: what this store writes into
// Expires is a whole second, and what ASPState's procedures write is Timeout minutes from now, to the millisecond. One of
// 300 of these is missed. Then it finds the connections of web applications, as far as the login may see those of others.
const directSQL = `
DECLARE @now datetime
SET @now = GETUTCDATE()
SELECT * FROM (SELECT TOP (1) ` + suffixOf + ` AS application, '' AS host FROM dbo.ASPStateTempSessions
WHERE Expires >= @now AND LEN(SessionId) > 8 AND DATEPART(millisecond, Expires) <> 0 AND Expires >= DATEADD(minute, Timeout - 5, @now)
ORDER BY DATEADD(minute, -Timeout, Expires) DESC) s
UNION ALL
SELECT * FROM (SELECT TOP (1) '' AS application, COALESCE(host_name, '') AS host FROM sys.dm_exec_sessions
WHERE database_id = DB_ID() AND session_id <> @@SPID AND program_name LIKE '%SqlClient%') c`

// InDirectUse returns an ErrPermanent where web applications use the database directly: see inDirectUse.
func (s *Store) InDirectUse(ctx context.Context) error {
	return wrap("look for web applications", s.inDirectUse(ctx))
}

// inDirectUse returns an error where web applications in mode="SQLServer" use the database directly: a session was used by one in the
// last five minutes, or one is connected (.NET calls itself "….SqlClient Data Provider" where the connection string has no Application Name;
// to see others' connections the login needs VIEW SERVER STATE, without which only the sessions count). An application that nobody has used for
// five minutes and that calls itself otherwise is not seen.
func (s *Store) inDirectUse(ctx context.Context) error {
	type use struct{ application, host string }
	uses, err := look(ctx, s, "look for web applications", directSQL, "", nil, func(rows *sql.Rows) (u use, err error) {
		err = rows.Scan(&u.application, &u.host)
		return u, err
	})
	if err != nil || len(uses) == 0 {
		return err
	}
	who := "one on " + uses[0].host + " is connected"
	if suffix := uses[0].application; suffix != "" {
		who = "sessions of the one with AppId " + suffix + " were used in the last five minutes"
		infos, err := s.Names(ctx)
		if err != nil {
			return err
		}
		for _, info := range infos {
			if info.ID.Suffix() == suffix {
				who = "sessions of " + info.Name + " were used in the last five minutes"
			}
		}
	}
	return fmt.Errorf("web applications in mode=\"SQLServer\" use this database directly (%s) and would go on with it: stop them, or have them use aspstate, "+
		"and try again after five minutes: %w: %w", who, backends.ErrPermanent, backends.ErrNotApplied)
}
