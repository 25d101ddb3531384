package sqlserver

import (
	"bytes"
	"context"
	"database/sql"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"aspstate/backends"
)

// Looking reads what is committed and holds no lock beyond the row that it reads, so that an operation on that row and a
// look wait for each other for the moment of a commit at most. READPAST would leave out the sessions that are in use, and NOLOCK
// may leave out rows that a page split moves, and shows changes that are undone: who copies sessions can do with neither.

// The parts of SessionId, byte by byte. What LEFT is told is never negative, whatever else is in the table. NCHAR(1) makes blanks at
// the end count.
const (
	idOf     = `LEFT(SessionId, ABS(LEN(SessionId) - 8)) COLLATE Latin1_General_BIN2`
	suffixOf = `RIGHT(SessionId, 8) COLLATE Latin1_General_BIN2`
	idKey    = idOf + ` + NCHAR(1)`
	signOf   = `CASE WHEN ` + suffixOf + ` >= '8' THEN 0 ELSE 1 END` // suffixes from 80000000 on are negative AppIds
	keyOrder = signOf + `, ` + suffixOf + `, ` + idKey
	sizeOf   = `CASE WHEN SessionItemLong IS NOT NULL THEN DATALENGTH(SessionItemLong) ELSE COALESCE(DATALENGTH(SessionItemShort), 0) END`
)

const inspectedColumns = `s.SessionId, @now, s.Created, s.Expires, s.LockDate, s.LockCookie, s.Timeout, s.Locked, s.Flags, ` +
	`CASE WHEN s.SessionItemLong IS NOT NULL THEN DATALENGTH(s.SessionItemLong) ELSE COALESCE(DATALENGTH(s.SessionItemShort), 0) END`

const inspectSQL = `
DECLARE @now datetime
SET @now = GETUTCDATE()
SELECT ` + inspectedColumns + `, s.SessionItemShort, CONVERT(varbinary(max), s.SessionItemLong)
FROM dbo.ASPStateTempSessions s WHERE ` + exact + ` AND s.Expires >= @now`

// The lists: of @suffix only, @locked ones only, those that begin with @prefix, behind the session of @afterSuffix and @afterId;
// @limit at most, with data if @data. The keys are found first, in the index of Expires where that has all that is asked for. A suffix is
// eight hexadecimal digits in lower case: other rows are not of web applications.
const (
	listChosen = `
DECLARE @now datetime
SET @now = GETUTCDATE()
SELECT ` + inspectedColumns + `,
    CASE WHEN @data = 1 THEN s.SessionItemShort END, CASE WHEN @data = 1 THEN CONVERT(varbinary(max), s.SessionItemLong) END
FROM (
    SELECT TOP (@limit) SessionId AS found, ROW_NUMBER() OVER (ORDER BY `
	listFrom = `) AS place FROM dbo.ASPStateTempSessions
    WHERE Expires >= @now AND LEN(SessionId) > 8 AND ` + suffixOf + ` NOT LIKE '%[^0-9a-f]%'
      AND (@suffix = '' OR ` + suffixOf + ` = @suffix) AND (@prefix = '' OR LEFT(` + idOf + `, LEN(@prefix)) = @prefix)
      AND (@afterSuffix = '' OR ` + signOf + ` > @afterSign OR ` + signOf + ` = @afterSign
        AND (` + suffixOf + ` > @afterSuffix OR ` + suffixOf + ` = @afterSuffix AND ` + idKey + ` > @afterId + NCHAR(1)))`
	listTo = `
    ORDER BY place
) k JOIN dbo.ASPStateTempSessions s ON s.SessionId = k.found
ORDER BY k.place`
	listDeclared = `@suffix nvarchar(8), @prefix nvarchar(88), @afterSuffix nvarchar(8), @afterSign int, @afterId nvarchar(88), @limit bigint, @data bit`
)

func listSQL(order backends.Order, locked bool) string {
	orderBy := keyOrder
	switch order {
	case backends.BySize:
		orderBy = sizeOf + ` DESC, ` + keyOrder
	case backends.ByLockAge:
		orderBy = `LockDate, ` + keyOrder
	case backends.ByCreated:
		orderBy = `Created, ` + keyOrder
	}
	chosen := listChosen + orderBy + listFrom
	if locked || order == backends.ByLockAge { // not as a parameter: the index of Expires does not have it
		chosen += ` AND Locked = 1`
	}
	return chosen + listTo
}

const (
	countSQL = `
SELECT ` + suffixOf + `, COUNT(*), SUM(CASE WHEN Locked = 1 THEN 1 ELSE 0 END), SUM(CONVERT(bigint, ` + sizeOf + `))
FROM dbo.ASPStateTempSessions WHERE Expires >= GETUTCDATE() AND LEN(SessionId) > 8 GROUP BY ` + suffixOf
	namesSQL     = `SELECT AppId, CONVERT(nvarchar(280), AppName) FROM dbo.ASPStateTempApplications`
	fullNamesSQL = `SELECT Slot, Content FROM dbo.ASPStateRequests WHERE Flags = 64`
)

// keyOf is the key of a row.
func keyOf(sessionID string) (backends.Key, bool) {
	at := len(sessionID) - 8
	if at < 1 {
		return backends.Key{}, false
	}
	app, err := strconv.ParseUint(sessionID[at:], 16, 32)
	return backends.Key{App: backends.AppID(app), ID: sessionID[:at]}, err == nil
}

// inspected is the session in a row.
func inspected(rows *sql.Rows) (se backends.Session, err error) {
	var id string
	var now, expires, lockDate time.Time
	var minutes int64
	var flags int
	var short, long []byte
	err = rows.Scan(&id, &now, &se.Created, &expires, &lockDate, &se.LockCookie, &minutes, &se.Locked, &flags, &se.Size, &short, &long)
	se.Key, _ = keyOf(id)
	se.Timeout, se.LockAge, se.Uninitialized = duration(minutes), max(0, now.Sub(lockDate)), flags&1 == 1
	if se.Timeout != backends.NeverExpires {
		se.Left = expires.Sub(now)
	}
	if se.Data = short; long != nil {
		se.Data = long
	}
	return se, err
}

// look runs a batch that may take as long as reading every session takes.
func look[T any](ctx context.Context, s *Store, what, batch, declared string, args []any, scan func(*sql.Rows) (T, error)) ([]T, error) {
	var all []T
	found, err := within(ctx, s, 0, batch, declared, args, func(rows *sql.Rows) ([]T, error) {
		one, err := scan(rows)
		all = append(all, one)
		return all, err
	})
	return found, wrap(what, err)
}

// Inspect implements backends.Inspector.
func (s *Store) Inspect(ctx context.Context, key backends.Key) (backends.Session, error) {
	found, err := look(ctx, s, "inspect", inspectSQL, keyDeclared, []any{keyArg(key)}, inspected)
	if err == nil && len(found) == 0 {
		err = backends.ErrNotFound
	}
	if err != nil {
		return backends.Session{}, err
	}
	return found[0], nil
}

// List implements backends.Inspector. The key of the table is not in the contract's order: also a page ByKey costs a look at the
// keys of all sessions. It lists the sessions of applications that are not registered, too. IDs beyond U+D7FF come in the
// order of UTF-16.
func (s *Store) List(ctx context.Context, q backends.Query) ([]backends.Session, error) {
	suffix, afterSuffix, afterSign := "", "", 0
	if q.App != nil {
		suffix = q.App.Suffix()
	}
	if q.Order == backends.ByKey && q.After != (backends.Key{}) {
		afterSuffix = q.After.App.Suffix()
		if q.After.App >= 0 {
			afterSign = 1
		}
	}
	prefix, limit := sayable(q.ID), int64(q.Limit)
	if prefix != q.ID {
		limit = math.MaxInt64
	}
	args := []any{sql.Named("suffix", suffix), sql.Named("prefix", prefix), sql.Named("afterSuffix", afterSuffix), sql.Named("afterSign", afterSign),
		sql.Named("afterId", q.After.ID), sql.Named("limit", limit), sql.Named("data", q.Data)}
	sessions, err := look(ctx, s, "list", listSQL(q.Order, q.Locked), listDeclared, args, inspected)
	if prefix != q.ID {
		sessions = slices.DeleteFunc(sessions, func(se backends.Session) bool { return !strings.HasPrefix(se.ID, q.ID) })
		sessions = sessions[:min(q.Limit, len(sessions))]
	}
	return sessions, err
}

// sayable is as much of an ID's beginning as a statement can compare: no part of a character, and no blanks at the end.
func sayable(prefix string) string {
	for i, r := range prefix {
		if _, size := utf8.DecodeRuneInString(prefix[i:]); r == utf8.RuneError && size == 1 {
			prefix = prefix[:i]
			break
		}
	}
	return strings.TrimRight(prefix, " ")
}

// Applications implements backends.Inspector.
func (s *Store) Applications(ctx context.Context) ([]backends.ApplicationInfo, error) {
	type counted struct {
		suffix          string
		sessions, locks int
		size            int64
	}
	counts, err := look(ctx, s, "applications", countSQL, "", nil, func(rows *sql.Rows) (c counted, err error) {
		err = rows.Scan(&c.suffix, &c.sessions, &c.locks, &c.size)
		return c, err
	})
	if err != nil {
		return nil, err
	}
	of := make(map[string]counted, len(counts))
	for _, c := range counts {
		of[c.suffix] = c
	}
	infos, err := s.Names(ctx)
	for i := range infos {
		c := of[infos[i].ID.Suffix()]
		infos[i].Sessions, infos[i].Locked, infos[i].Bytes = c.sessions, c.locks, c.size
	}
	return infos, err
}

// Names implements backends.Namer.
func (s *Store) Names(ctx context.Context) ([]backends.ApplicationInfo, error) {
	full := map[string]string{}
	type name struct{ slot, name []byte }
	names, err := look(ctx, s, "applications", fullNamesSQL, "", nil, func(rows *sql.Rows) (n name, err error) {
		err = rows.Scan(&n.slot, &n.name)
		n.slot, n.name = bytes.Clone(n.slot), bytes.Clone(n.name)
		return n, err
	})
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		full[string(n.slot)] = string(n.name)
	}
	infos, err := look(ctx, s, "applications", namesSQL, "", nil, func(rows *sql.Rows) (i backends.ApplicationInfo, err error) {
		err = rows.Scan(&i.ID, &i.Name)
		i.Name = strings.TrimRight(i.Name, " ")
		if name, ok := full[string(slotOf(i.Name))]; ok {
			i.Name = name
		}
		return i, err
	})
	slices.SortFunc(infos, func(a, b backends.ApplicationInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos, err
}
