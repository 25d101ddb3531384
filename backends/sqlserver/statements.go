package sqlserver

// The batches that requests run. Parameters: @id session ID with suffix, @slot and @seq of the request, @cookie, @timeout
// in minutes, @short and @long the item (one is NULL), and as named.

// exact chooses the session of @id, and of no ID that its key's collation takes for the same.
const exact = `SessionId = @id AND SessionId = @id COLLATE Latin1_General_BIN2`

// due is what Expires becomes of a session that is found: as in backends.Slack it is kept a little later, and so is
// rarely written. It is a whole second (@sec), which tells it from what web applications write (directSQL).
const due = `CASE WHEN Expires < DATEADD(minute, Timeout, @now)
        THEN DATEADD(second, CASE WHEN Timeout < 20 THEN Timeout * 3 ELSE 60 END, DATEADD(minute, Timeout, @sec)) ELSE Expires END`

// expires is the same for a new @timeout.
const expires = `CASE WHEN @timeout < 0 THEN DATEADD(minute, -1, @now)
        ELSE DATEADD(second, CASE WHEN @timeout < 20 THEN @timeout * 3 ELSE 60 END, DATEADD(minute, @timeout, @sec)) END`

// keptItem is a session's item, as scanRow chooses it.
const keptItem = `COALESCE(CONVERT(varbinary(max), SessionItemLong), SessionItemShort)`

// clears moves the uninitialized mark from bit 0 to bit 1, where it is known to be this request's to report.
const clears = `CASE WHEN Flags & 1 = 1 THEN (Flags & ~1) | 2 ELSE Flags & ~2 END`

const (
	begin = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @now datetime, @sec datetime, @before datetime, @done int, @late int, @c int, @f int
` + shut + `
SET @now = GETUTCDATE()
SET @sec = ` + wholeSecond + `
SET @late = 0
SET @c = 0
SET @f = 0
BEGIN TRANSACTION
`
	// remembersExpiry keeps when the session expires before it is renewed. (SET @before = Expires in the UPDATE would be what it is
	// after that in Babelfish.)
	remembersExpiry = `
SELECT @before = Expires FROM dbo.ASPStateTempSessions WITH (UPDLOCK) WHERE ` + exact + `
`
	// marked looks at what was written: the cookie and the mark to report.
	marked = `
IF @done = 1 SELECT @c = LockCookie, @f = Flags & 2 FROM dbo.ASPStateTempSessions WHERE SessionId = @id
`
	// noted notes the request, unless it has been applied or called off, or the database was left: then everything is undone.
	noted = `
IF @done = 1
BEGIN
    UPDATE dbo.ASPStateRequests SET Seq = @seq, LockCookie = @c, Flags = @f, LastUse = @now WHERE Slot = @slot AND Seq < @seq AND Flags < 8
    IF @@ROWCOUNT = 0 SET @late = 1
END
`
	// answered ends a batch: with the session, as it is now.
	answered = `
IF @late = 1
BEGIN
    ROLLBACK TRANSACTION
    SELECT 2 AS done, @now AS now, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
END
ELSE
BEGIN
    SELECT @done AS done, GETUTCDATE() AS now, ` + columns + `,
        CASE WHEN @item = 1 AND s.Locked = 0 OR @item = 2 AND @done = 1 THEN s.SessionItemShort END,
        CASE WHEN @item = 1 AND s.Locked = 0 OR @item = 2 AND @done = 1 THEN CONVERT(varbinary(max), s.SessionItemLong) END, @before
    FROM (SELECT 1 AS one) o LEFT JOIN dbo.ASPStateTempSessions s ON s.SessionId = @id
    COMMIT TRANSACTION
END`
	columns = `CASE WHEN s.SessionId = @id COLLATE Latin1_General_BIN2 THEN 1 ELSE 0 END,
        s.Expires, s.Timeout, s.Locked, s.LockCookie, s.LockDate, s.Flags`
)

// readSQL reads, and changes nothing.
const readSQL = shut + rereadSQL

// rereadSQL does so in a database that was left, too.
const rereadSQL = `
SELECT 0 AS done, GETUTCDATE() AS now, ` + columns + `,
    CASE WHEN @item = 1 AND s.Locked = 0 OR @item = 2 THEN s.SessionItemShort END,
    CASE WHEN @item = 1 AND s.Locked = 0 OR @item = 2 THEN CONVERT(varbinary(max), s.SessionItemLong) END, NULL
FROM (SELECT 1 AS one) o LEFT JOIN dbo.ASPStateTempSessions s ON s.SessionId = @id`

// touchSQL renews, and if @clears clears the mark. With @onlyLocked it leaves an unlocked session alone.
const touchSQL = begin + `
DECLARE @granted int
` + staying + remembersExpiry + `
UPDATE dbo.ASPStateTempSessions SET Expires = ` + due + `, Flags = CASE WHEN @clears = 1 THEN ` + clears + ` ELSE Flags END
WHERE ` + exact + ` AND Expires >= @now AND (@onlyLocked = 0 OR Locked = 1)
SET @done = @@ROWCOUNT
` + marked + `
IF @clears = 1 AND @f = 2
BEGIN
    UPDATE dbo.ASPStateRequests SET Seq = @seq, LockCookie = @c, Flags = @f, LastUse = @now WHERE Slot = @slot AND Seq < @seq AND Flags < 8
    IF @@ROWCOUNT = 0 SET @late = 1
END
` + answered

// lockSQL is GetExclusive.
const lockSQL = begin + remembersExpiry + `
UPDATE dbo.ASPStateTempSessions
SET Locked = 1, LockCookie = LockCookie + 1, LockDate = @now, LockDateLocal = GETDATE(), Flags = ` + clears + `, Expires = ` + due + `
WHERE ` + exact + ` AND Locked = 0 AND Expires >= @now
SET @done = @@ROWCOUNT
` + marked + noted + answered

// releaseSQL is Release of a locked session, or under @ifCookie of any.
const releaseSQL = begin + `
UPDATE dbo.ASPStateTempSessions
SET Locked = 0, Flags = CASE WHEN @ifCookie = 1 THEN Flags & ~2 ELSE ` + clears + ` END, Expires = ` + due + `
WHERE ` + exact + ` AND (Locked = 1 OR @ifCookie = 1) AND LockCookie = @cookie AND Expires >= @now
SET @done = @@ROWCOUNT
` + marked + noted + answered

// removeSQL is Remove under the condition @ifCookie: 1 IfCookie, 0 IfUnlocked.
const removeSQL = begin + `
DELETE dbo.ASPStateTempSessions
WHERE ` + exact + ` AND (LockCookie = @cookie OR @ifCookie = 0 AND Locked = 0) AND Expires >= @now
SET @done = @@ROWCOUNT
` + noted + answered

// setSQL is Set: @updates says that it writes an existing session, @ifCookie only under its cookie, @creates that it makes a
// missing one. A row of another ID that the key takes for the same makes room when it has expired.
const setSQL = begin + `
SET @done = 0
IF @updates = 1
BEGIN
    UPDATE dbo.ASPStateTempSessions
    SET Flags = CASE WHEN Timeout <> @timeout AND @ifCookie = 0 THEN Flags & ~1 ELSE Flags END, Timeout = @timeout, Expires = ` + expires + `, Locked = 0,
        SessionItemShort = @short, SessionItemLong = @long
    WHERE ` + exact + ` AND (LockCookie = @cookie OR @ifCookie = 0 AND Locked = 0) AND Expires >= @now
    SET @done = @@ROWCOUNT
END
IF @done = 0 AND @creates = 1
BEGIN
    UPDATE dbo.ASPStateTempSessions
    SET SessionId = @id, Created = @now, LockDate = @now, LockDateLocal = GETDATE(), LockCookie = 1, Flags = @mark,
        Timeout = @timeout, Expires = ` + expires + `, Locked = 0, SessionItemShort = @short, SessionItemLong = @long
    WHERE SessionId = @id AND Expires < @now
    SET @done = @@ROWCOUNT
END
IF @done = 0 AND @creates = 1
BEGIN
    INSERT dbo.ASPStateTempSessions (SessionId, Created, LockDate, LockDateLocal, LockCookie, Flags, Timeout, Expires, Locked, SessionItemShort, SessionItemLong)
    SELECT @id, @now, @now, GETDATE(), 1, @mark, @timeout, ` + expires + `, 0, @short, @long
    WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateTempSessions WHERE SessionId = @id)
    SET @done = @@ROWCOUNT
END
` + noted + answered

// unreadSQL is Unread: it unlocks the session if it is locked with @cookie, and has it expire by @expires if it has the item @data. (= alone
// would take no notice of zeros at the end.)
const unreadSQL = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @granted int
BEGIN TRANSACTION
` + staying + `
UPDATE dbo.ASPStateTempSessions
SET Locked = CASE WHEN LockCookie = @cookie THEN 0 ELSE Locked END, Flags = CASE WHEN LockCookie = @cookie THEN Flags & ~2 ELSE Flags END,
    Expires = CASE WHEN Expires > @expires AND DATALENGTH(` + keptItem + `) = DATALENGTH(@data) AND ` + keptItem + ` = @data
        THEN @expires ELSE Expires END
WHERE ` + exact + `
COMMIT TRANSACTION`

// burySQL deletes a session that has expired.
const burySQL = `SET NOCOUNT ON
DELETE dbo.ASPStateTempSessions WHERE ` + exact + ` AND Expires < GETUTCDATE()
SELECT CONVERT(bit, @@ROWCOUNT)`

// fenceSQL raises a slot's Seq, so that what was sent with this one is not applied any more, and answers whether it
// was (Flags 4: no). A slot that is missing is made. In a database that was left the slot is closed (8).
const fenceSQL = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @granted int, @flags int
BEGIN TRANSACTION
` + hold + `
SET @flags = CASE WHEN ` + wasLeft + ` THEN 12 ELSE 4 END
UPDATE dbo.ASPStateRequests SET Seq = @seq, Flags = @flags, LastUse = GETUTCDATE() WHERE Slot = @slot AND Seq < @seq
IF @@ROWCOUNT = 0
    INSERT dbo.ASPStateRequests (Slot, Seq, LockCookie, Flags, LastUse) SELECT @slot, @seq, 0, @flags, GETUTCDATE()
    WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateRequests WHERE Slot = @slot)
SELECT LockCookie, Flags FROM dbo.ASPStateRequests WHERE Slot = @slot
COMMIT TRANSACTION`
