-- The files are run batch by batch, split at GO. What follows the line "-- Created:" is left out in a database whose
-- ASPState objects were made by aspnet_regsql: there the table of requests is all that is added.

-- A row for each request that a server may have under way, used again and again. Seq counts the requests of a row: a
-- request takes effect only if it raises Seq, so that one that was tried again, or comes late, does so once. LockCookie and
-- Flags are what it was answered with (Flags: 2 it reported the uninitialized mark, 4 it was called off).
-- The row of Slot 0 is of the migrations: Seq is the version of the schema, Flags 1 says that ASPState was adopted.
-- The row of Slot 1 is of moves to and from other stores: Content says which, LockCookie 1 that this database was left, and Seq
-- counts its changes. Flags 8 closes a request's row because the database was left. Rows with Flags from 16 on are no requests: 16 is a
-- server, 32 a session that a move brought, 64 an application's name that ASPState cannot hold.
CREATE TABLE dbo.ASPStateRequests (
    Slot       binary(16) NOT NULL CONSTRAINT PK_ASPStateRequests PRIMARY KEY,
    Seq        bigint     NOT NULL,
    LockCookie int        NOT NULL,
    Flags      int        NOT NULL,
    LastUse    datetime   NOT NULL,
    Content    varbinary(max) NULL
)
GO
-- Created:
-- ASPState as mode="SQLServer" web applications of ASP.NET 2.0 and later use it (1.x as well). Session IDs compare by their
-- bytes. Beside bit 0 of Flags (uninitialized), bit 1 says that the last Get reported and cleared it, bit 2 that it took the lock.
CREATE TABLE dbo.ASPStateTempSessions (
    SessionId        nvarchar(88) COLLATE Latin1_General_BIN2 NOT NULL PRIMARY KEY,
    Created          datetime NOT NULL DEFAULT GETUTCDATE(),
    Expires          datetime NOT NULL,
    LockDate         datetime NOT NULL,
    LockDateLocal    datetime NOT NULL,
    LockCookie       int      NOT NULL,
    Timeout          int      NOT NULL,
    Locked           bit      NOT NULL,
    SessionItemShort varbinary(7000) NULL,
    SessionItemLong  image    NULL,
    Flags            int      NOT NULL DEFAULT 0
)
GO
CREATE INDEX Index_Expires ON dbo.ASPStateTempSessions (Expires)
GO
CREATE TABLE dbo.ASPStateTempApplications (
    AppId   int       NOT NULL PRIMARY KEY,
    AppName char(280) NOT NULL
)
GO
CREATE INDEX Index_AppName ON dbo.ASPStateTempApplications (AppName)
GO
-- Not on Babelfish: the name of the parameter. Without it, in-box web applications cannot use the database directly.
CREATE PROCEDURE dbo.GetMajorVersion
    @@ver int OUTPUT
AS
SET @@ver = 15
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetVersion
    @ver char(10) OUTPUT
AS
SET @ver = '2'
RETURN 0
GO
CREATE PROCEDURE dbo.GetHashCode
    @input varchar(280),
    @hash  int OUTPUT
AS
DECLARE @bytes varbinary(280), @h bigint, @i int
SET @bytes = CONVERT(varbinary(280), @input)
SET @h = 5381
SET @i = 1
WHILE @i <= DATALENGTH(@bytes)
BEGIN
    SET @h = (@h * 33 & CONVERT(bigint, 4294967295)) ^ CONVERT(bigint, CONVERT(int, SUBSTRING(@bytes, @i, 1)))
    SET @i = @i + 1
END
IF @h > 2147483647 SET @h = @h - CONVERT(bigint, 4294967296)
SET @hash = CONVERT(int, @h)
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetAppID
    @appName varchar(280),
    @appId   int OUTPUT
AS
DECLARE @owner varchar(280)
SET @appName = LOWER(@appName)
SET @appId = NULL
SELECT @appId = AppId FROM dbo.ASPStateTempApplications WHERE AppName = @appName
IF @appId IS NULL
BEGIN
    EXEC dbo.GetHashCode @appName, @appId OUTPUT
    BEGIN TRY
        INSERT dbo.ASPStateTempApplications (AppId, AppName) VALUES (@appId, @appName)
    END TRY
    BEGIN CATCH
        SET @owner = NULL
        SELECT @owner = RTRIM(AppName) FROM dbo.ASPStateTempApplications WHERE AppId = @appId
        IF @owner IS NULL
        BEGIN;
            THROW;
        END
        IF @owner <> @appName
            RAISERROR('The applications ''%s'' and ''%s'' have the same hash code and cannot both keep sessions here: rename one of them.', 18, 1, @appName, @owner)
    END CATCH
END
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetStateItem3
    @id          nvarchar(88),
    @itemShort   varbinary(7000) OUTPUT,
    @locked      bit OUTPUT,
    @lockAge     int OUTPUT,
    @lockCookie  int OUTPUT,
    @actionFlags int OUTPUT
AS
SET XACT_ABORT ON
DECLARE @now datetime, @long int
SET @now = GETUTCDATE()
BEGIN TRANSACTION
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, Timeout, @now),
    Flags = CASE WHEN Flags & 1 = 1 THEN (Flags & ~7) | 2 ELSE Flags & ~7 END
WHERE SessionId = @id AND Expires >= @now
IF @@ROWCOUNT = 1
BEGIN
    SELECT @locked = Locked, @lockAge = DATEDIFF(second, LockDate, @now), @lockCookie = LockCookie,
        @itemShort = CASE WHEN Locked = 0 THEN SessionItemShort END,
        @actionFlags = CASE WHEN Flags & 2 = 2 THEN 1 ELSE 0 END,
        @long = CASE WHEN Locked = 0 AND SessionItemLong IS NOT NULL THEN 1 ELSE 0 END
    FROM dbo.ASPStateTempSessions WHERE SessionId = @id
    IF @long = 1 SELECT SessionItemLong FROM dbo.ASPStateTempSessions WHERE SessionId = @id
END
COMMIT TRANSACTION
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetStateItemExclusive3
    @id          nvarchar(88),
    @itemShort   varbinary(7000) OUTPUT,
    @locked      bit OUTPUT,
    @lockAge     int OUTPUT,
    @lockCookie  int OUTPUT,
    @actionFlags int OUTPUT
AS
SET XACT_ABORT ON
DECLARE @now datetime, @flags int, @long int
SET @now = GETUTCDATE()
BEGIN TRANSACTION
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, Timeout, @now),
    LockDate = CASE WHEN Locked = 0 THEN @now ELSE LockDate END,
    LockDateLocal = CASE WHEN Locked = 0 THEN GETDATE() ELSE LockDateLocal END,
    LockCookie = CASE WHEN Locked = 0 THEN LockCookie + 1 ELSE LockCookie END,
    Flags = CASE WHEN Flags & 1 = 1 THEN (Flags & ~7) | 2 ELSE Flags & ~7 END | CASE WHEN Locked = 0 THEN 4 ELSE 0 END,
    Locked = 1
WHERE SessionId = @id AND Expires >= @now
IF @@ROWCOUNT = 1
BEGIN
    SELECT @flags = Flags, @lockAge = DATEDIFF(second, LockDate, @now), @lockCookie = LockCookie,
        @itemShort = CASE WHEN Flags & 4 = 4 THEN SessionItemShort END,
        @long = CASE WHEN Flags & 4 = 4 AND SessionItemLong IS NOT NULL THEN 1 ELSE 0 END
    FROM dbo.ASPStateTempSessions WHERE SessionId = @id
    SET @locked = CASE WHEN @flags & 4 = 4 THEN 0 ELSE 1 END
    SET @actionFlags = CASE WHEN @flags & 2 = 2 THEN 1 ELSE 0 END
    IF @long = 1 SELECT SessionItemLong FROM dbo.ASPStateTempSessions WHERE SessionId = @id
END
COMMIT TRANSACTION
RETURN 0
GO
-- Those of ASP.NET 1.1 and 1.0. They clear the uninitialized mark, which only later versions set.
CREATE PROCEDURE dbo.TempGetStateItem2
    @id         nvarchar(88),
    @itemShort  varbinary(7000) OUTPUT,
    @locked     bit OUTPUT,
    @lockAge    int OUTPUT,
    @lockCookie int OUTPUT
AS
DECLARE @actionFlags int
EXEC dbo.TempGetStateItem3 @id, @itemShort OUTPUT, @locked OUTPUT, @lockAge OUTPUT, @lockCookie OUTPUT, @actionFlags OUTPUT
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetStateItemExclusive2
    @id         nvarchar(88),
    @itemShort  varbinary(7000) OUTPUT,
    @locked     bit OUTPUT,
    @lockAge    int OUTPUT,
    @lockCookie int OUTPUT
AS
DECLARE @actionFlags int
EXEC dbo.TempGetStateItemExclusive3 @id, @itemShort OUTPUT, @locked OUTPUT, @lockAge OUTPUT, @lockCookie OUTPUT, @actionFlags OUTPUT
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetStateItem
    @id         nvarchar(88),
    @itemShort  varbinary(7000) OUTPUT,
    @locked     bit OUTPUT,
    @lockDate   datetime OUTPUT,
    @lockCookie int OUTPUT
AS
DECLARE @lockAge int, @actionFlags int
EXEC dbo.TempGetStateItem3 @id, @itemShort OUTPUT, @locked OUTPUT, @lockAge OUTPUT, @lockCookie OUTPUT, @actionFlags OUTPUT
IF @locked IS NOT NULL SELECT @lockDate = LockDateLocal FROM dbo.ASPStateTempSessions WHERE SessionId = @id
RETURN 0
GO
CREATE PROCEDURE dbo.TempGetStateItemExclusive
    @id         nvarchar(88),
    @itemShort  varbinary(7000) OUTPUT,
    @locked     bit OUTPUT,
    @lockDate   datetime OUTPUT,
    @lockCookie int OUTPUT
AS
DECLARE @lockAge int, @actionFlags int
EXEC dbo.TempGetStateItemExclusive3 @id, @itemShort OUTPUT, @locked OUTPUT, @lockAge OUTPUT, @lockCookie OUTPUT, @actionFlags OUTPUT
IF @locked IS NOT NULL SELECT @lockDate = LockDateLocal FROM dbo.ASPStateTempSessions WHERE SessionId = @id
RETURN 0
GO
CREATE PROCEDURE dbo.TempReleaseStateItemExclusive
    @id         nvarchar(88),
    @lockCookie int
AS
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, Timeout, GETUTCDATE()), Locked = 0
WHERE SessionId = @id AND LockCookie = @lockCookie AND Expires >= GETUTCDATE()
RETURN 0
GO
-- An insert over a session that is there is error 2627, which web servers expect; one that has expired makes room.
CREATE PROCEDURE dbo.TempInsertUninitializedItem
    @id        nvarchar(88),
    @itemShort varbinary(7000),
    @timeout   int
AS
DECLARE @now datetime
SET @now = GETUTCDATE()
DELETE dbo.ASPStateTempSessions WHERE SessionId = @id AND Expires < @now
INSERT dbo.ASPStateTempSessions (SessionId, SessionItemShort, Timeout, Created, Expires, Locked, LockDate, LockDateLocal, LockCookie, Flags)
VALUES (@id, @itemShort, @timeout, @now, DATEADD(minute, @timeout, @now), 0, @now, GETDATE(), 1, 1)
RETURN 0
GO
CREATE PROCEDURE dbo.TempInsertStateItemShort
    @id        nvarchar(88),
    @itemShort varbinary(7000),
    @timeout   int
AS
DECLARE @now datetime
SET @now = GETUTCDATE()
DELETE dbo.ASPStateTempSessions WHERE SessionId = @id AND Expires < @now
INSERT dbo.ASPStateTempSessions (SessionId, SessionItemShort, Timeout, Created, Expires, Locked, LockDate, LockDateLocal, LockCookie, Flags)
VALUES (@id, @itemShort, @timeout, @now, DATEADD(minute, @timeout, @now), 0, @now, GETDATE(), 1, 0)
RETURN 0
GO
CREATE PROCEDURE dbo.TempInsertStateItemLong
    @id       nvarchar(88),
    @itemLong image,
    @timeout  int
AS
DECLARE @now datetime
SET @now = GETUTCDATE()
DELETE dbo.ASPStateTempSessions WHERE SessionId = @id AND Expires < @now
INSERT dbo.ASPStateTempSessions (SessionId, SessionItemLong, Timeout, Created, Expires, Locked, LockDate, LockDateLocal, LockCookie, Flags)
VALUES (@id, @itemLong, @timeout, @now, DATEADD(minute, @timeout, @now), 0, @now, GETDATE(), 1, 0)
RETURN 0
GO
CREATE PROCEDURE dbo.TempUpdateStateItemShort
    @id         nvarchar(88),
    @itemShort  varbinary(7000),
    @timeout    int,
    @lockCookie int
AS
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, @timeout, GETUTCDATE()), SessionItemShort = @itemShort, Timeout = @timeout, Locked = 0
WHERE SessionId = @id AND LockCookie = @lockCookie AND Expires >= GETUTCDATE()
RETURN 0
GO
CREATE PROCEDURE dbo.TempUpdateStateItemShortNullLong
    @id         nvarchar(88),
    @itemShort  varbinary(7000),
    @timeout    int,
    @lockCookie int
AS
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, @timeout, GETUTCDATE()), SessionItemShort = @itemShort, SessionItemLong = NULL, Timeout = @timeout, Locked = 0
WHERE SessionId = @id AND LockCookie = @lockCookie AND Expires >= GETUTCDATE()
RETURN 0
GO
CREATE PROCEDURE dbo.TempUpdateStateItemLong
    @id         nvarchar(88),
    @itemLong   image,
    @timeout    int,
    @lockCookie int
AS
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, @timeout, GETUTCDATE()), SessionItemLong = @itemLong, Timeout = @timeout, Locked = 0
WHERE SessionId = @id AND LockCookie = @lockCookie AND Expires >= GETUTCDATE()
RETURN 0
GO
CREATE PROCEDURE dbo.TempUpdateStateItemLongNullShort
    @id         nvarchar(88),
    @itemLong   image,
    @timeout    int,
    @lockCookie int
AS
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, @timeout, GETUTCDATE()), SessionItemShort = NULL, SessionItemLong = @itemLong, Timeout = @timeout, Locked = 0
WHERE SessionId = @id AND LockCookie = @lockCookie AND Expires >= GETUTCDATE()
RETURN 0
GO
CREATE PROCEDURE dbo.TempRemoveStateItem
    @id         nvarchar(88),
    @lockCookie int
AS
DELETE dbo.ASPStateTempSessions WHERE SessionId = @id AND LockCookie = @lockCookie
RETURN 0
GO
CREATE PROCEDURE dbo.TempResetTimeout
    @id nvarchar(88)
AS
UPDATE dbo.ASPStateTempSessions
SET Expires = DATEADD(minute, Timeout, GETUTCDATE())
WHERE SessionId = @id AND Expires >= GETUTCDATE()
RETURN 0
GO
-- The tables are made by aspstate migrate up.
CREATE PROCEDURE dbo.CreateTempTables
AS
RETURN 0
GO
-- Keys first, then rows one key at a time: nobody waits long, and locks are taken in the order in which the other procedures take them.
CREATE PROCEDURE dbo.DeleteExpiredSessions
AS
SET NOCOUNT ON
SET DEADLOCK_PRIORITY LOW
DECLARE @now datetime, @id nvarchar(88), @last nvarchar(88)
SET @now = GETUTCDATE()
DECLARE @expired TABLE (SessionId nvarchar(88) COLLATE Latin1_General_BIN2 NOT NULL PRIMARY KEY)
INSERT @expired SELECT SessionId FROM dbo.ASPStateTempSessions WITH (READPAST) WHERE Expires < @now
SELECT @id = MIN(SessionId) FROM @expired
WHILE @id IS NOT NULL
BEGIN
    DELETE dbo.ASPStateTempSessions WHERE SessionId = @id AND Expires < @now
    SET @last = @id
    SELECT @id = MIN(SessionId) FROM @expired WHERE SessionId > @last
END
RETURN 0
