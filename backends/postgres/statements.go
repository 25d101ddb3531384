package postgres

// The statements that requests run. Each takes arrays with an element for every request of the batch and
// answers with a row for each, so that one round trip and one commit serve many. Their shape:
//
//   - held locks the rows in the order of their keys, so that batches of several servers never wait for
//     each other in a circle, and sees what is committed by then. It waits a second for a lock at most.
//   - timed reads the clock, after the row was locked.
//   - judged decides. It is the only place where the rules stand.
//   - updated writes, and the rest is answered from judged.
//
// A row that somebody inserted or unlocked meanwhile is not visible to the statement. Its request is
// answered with again, and goes into the next batch.
//
// The server is to find rows by their key and to keep one plan. It compares plans by what it expects of them, and left to itself
// it plans each batch anew, which costs several times what running it does, or keeps a plan that reads the table from
// end to end because that was small. So it is told "n - n = 0", which is always true and which it takes for rare: then every batch seems to
// be of one request, and no plan seems better than another.
//
// In a store that was left (fence) nothing is written, and only what was applied before is answered.
//
// Parameters: $1 application numbers, $2 session IDs, $3 operations or conditions, $4 lock cookies, $5 entries
// for recent, $6 the stream, $7 what is too old for recent, $8 the statement's deadline, $9 the lock timeout.

// What a request is answered with: the column act.
const (
	actDone     = 0
	actMissing  = 1
	actLocked   = 2
	actConflict = 3
	actExists   = 4
	actLate     = 5 // the deadline has passed
	actAgain    = 6
	actRepeated = 7 // an earlier try did it
	actCreated  = 8
	actTouch    = 9 // there is something to write: run touchSQL
	actMoved    = 10
)

// Operations of touchSQL and readSQL. Up to opGetExclusive a locked session refuses them; up to opRelease they
// report and clear the uninitialized mark.
const (
	opGet             = 1
	opGetExclusive    = 2
	opRelease         = 3
	opRemove          = 4 // IfUnlocked
	opRemoveIfCookie  = 5
	opResetTimeout    = 6
	opReleaseIfCookie = 7
)

// leftSQL is whether the store was left.
const leftSQL = `EXISTS (SELECT FROM moves WHERE away AND stage >= 2)`

// fence begins the statements that write. Besides leftSQL it takes the lock on the table (ROW SHARE, and for want of a row no
// other) that the steps of a move exclude. A statement that was held up by a step looks at the table after
// that: its snapshot is taken when it has its locks.
const fence = `fence AS MATERIALIZED (SELECT EXISTS (SELECT FROM moves WHERE away AND stage >= 2 FOR KEY SHARE) AS moved)`

// readSQL answers Get and ResetTimeout from a snapshot, unless there is something to write, or the session seems to have
// expired: another statement may have renewed it and not be committed yet.
const readSQL = `
SELECT i.n,
       CASE WHEN ` + leftSQL + ` THEN CASE WHEN i.op = 1 AND position(i.token IN s.recent) > 0 THEN 9 ELSE 10 END
            WHEN s.now IS NULL THEN 1
            WHEN s.expires < s.now OR s.expires < s.expires_due AND s.timeout <> 0
              OR i.op = 1 AND (s.flags & 1 = 1 OR position(i.token IN s.recent) > 0) THEN 9
            WHEN i.op = 1 AND s.locked THEN 2
            ELSE 0 END AS act,
       coalesce(s.now, clock_timestamp()), NULL::bytea AS found, s.lock_cookie, s.lock_date, s.timeout, false AS marked,
       CASE WHEN i.op = 1 AND NOT s.locked THEN s.item END AS item
FROM unnest($1::int4[], $2::bytea[], $3::int4[], $4::bytea[]) WITH ORDINALITY AS i (app_id, session_id, op, token, n)
LEFT JOIN LATERAL (
    SELECT s.*, clock_timestamp() AS now, clock_timestamp() + s.timeout * interval '1 millisecond' AS expires_due
    FROM sessions s
    WHERE s.app_id = i.app_id AND s.session_id = i.session_id
    OFFSET 0
) s ON true
WHERE n - n = 0`

// foundEntry are the columns found, the entry of an earlier try, and own, where this stream's entry has its stream.
const foundEntry = `
        CASE WHEN position(substr(i.entry, 1, 16) IN s.recent) > 0 THEN (
            SELECT substr(s.recent, g, 37) FROM generate_series(1, length(s.recent), 37) AS g
            WHERE substr(s.recent, g, 16) = substr(i.entry, 1, 16) LIMIT 1
        ) END AS found,
        position($6::bytea IN s.recent) AS own`

// newRecent is what recent becomes, but for the request's own entry: usually the others without the one that this
// stream wrote before, and what is still of use of many.
const newRecent = `CASE
            WHEN length(s.recent) > 4 * 37 OR j.act = 8 OR j.found IS NOT NULL OR j.own > 0 AND (j.own - 17) % 37 <> 0 THEN (
                SELECT coalesce(string_agg(substr(s.recent, g, 37), ''::bytea ORDER BY g), ''::bytea)
                FROM generate_series(1, length(s.recent), 37) AS g
                WHERE substr(s.recent, g, 16) <> substr(j.entry, 1, 16)
                  AND substr(s.recent, g + 16, 8) <> $6::bytea AND substr(s.recent, g + 24, 8) > $7::bytea
                  AND (j.act <> 8 OR substr(s.recent, g + 33, 4) = '\x00000000') -- locks end with a session's life
            )
            WHEN j.own > 0 THEN substr(s.recent, 1, j.own - 17) || substr(s.recent, j.own + 21)
            ELSE s.recent END || j.entry || `

// notify tells the servers that listen of a session's release. It is left out where the engine has no pg_notify.
const notify = `pg_notify(` + channel + `, j.app_id || ':' || encode(j.session_id, 'hex'))::text`

// channel is that of this schema's sessions.
const channel = `'aspstate_' || 'sessions'::regclass::oid`

// touchSQL locks, releases, removes, renews and clears marks. It leaves items alone, wherever they are stored.
const touchSQL = `
WITH ` + fence + `, input AS MATERIALIZED (
    SELECT * FROM unnest($1::int4[], $2::bytea[], $3::int4[], $4::int4[], $5::bytea[])
        WITH ORDINALITY AS i (app_id, session_id, op, given, entry, n)
    WHERE n - n = 0
), held AS MATERIALIZED (
    SELECT i.n, i.op, i.given, i.entry, s.app_id, s.session_id, s.expires, s.lock_date, s.lock_cookie, s.timeout, s.locked, s.flags,
        ` + foundEntry + `
    FROM input i JOIN sessions s ON s.app_id = i.app_id AND s.session_id = i.session_id
    WHERE (SELECT set_config('lock_timeout', $9::text, true)) IS NOT NULL
      AND NOT (i.op <= 2 AND s.locked AND s.flags & 1 = 0 -- a refusal that writes nothing locks nothing
        AND (s.timeout = 0 OR s.expires >= clock_timestamp() + s.timeout * interval '1 millisecond')
        AND position(substr(i.entry, 1, 16) IN s.recent) = 0)
    ORDER BY s.app_id, s.session_id
    FOR UPDATE OF s
), sighted AS (
    SELECT timed.*, moved, expires >= now AS alive,
        NOT moved AND expires >= now AND timeout <> 0 AND expires < now + timeout * interval '1 millisecond'
            AND NOT (op IN (5, 7) AND given <> lock_cookie) AS due,
        NOT moved AND expires >= now AND op <= 3 AND flags & 1 = 1 AND NOT (op = 3 AND found IS NOT NULL) AS clears,
        coalesce(substr(found, 33, 1) = '\x01', false) AS repeats_mark
    FROM (SELECT held.*, clock_timestamp() AS now FROM held OFFSET 0) AS timed CROSS JOIN fence
), judged AS MATERIALIZED (
    SELECT sighted.*, CASE
        WHEN now >= $8::timestamptz THEN 5
        WHEN op = 2 AND alive AND substr(found, 34, 4) <> '\x00000000' THEN 7
        WHEN op IN (3, 4, 5, 7) AND found IS NOT NULL THEN 7
        WHEN moved AND (found IS NULL OR NOT alive OR op = 2 AND NOT locked) THEN 10
        WHEN NOT alive THEN 1
        WHEN op IN (5, 7) AND given <> lock_cookie THEN 3
        WHEN locked AND (op <= 2 OR op <= 4 AND given <> lock_cookie) THEN 2
        ELSE 0 END AS act
    FROM sighted
), recorded AS (
    SELECT judged.*, act <> 5 AND NOT moved AND (clears OR act = 7 OR op <= 2 AND repeats_mark
        OR act = 0 AND (op IN (2, 4, 5) OR op IN (3, 7) AND locked)) AS records,
        act = 0 AND op IN (3, 4, 5, 7) AND locked AS frees
    FROM judged
), ruled AS MATERIALIZED (
    SELECT recorded.*, act <> 5 AND (due OR records) AS writes FROM recorded
), updated AS (
    UPDATE sessions s SET
        expires = CASE
            WHEN j.act = 0 AND j.op IN (4, 5) THEN '-infinity'
            WHEN j.due THEN j.now + (j.timeout + least(j.timeout / 20, 60000)) * interval '1 millisecond'
            ELSE s.expires END,
        lock_date = CASE WHEN j.act = 0 AND j.op = 2 THEN j.now ELSE s.lock_date END,
        lock_cookie = CASE WHEN j.act = 0 AND j.op = 2 THEN s.lock_cookie + 1 ELSE s.lock_cookie END,
        locked = CASE WHEN j.act <> 0 OR j.op IN (1, 6) THEN s.locked ELSE j.op = 2 END,
        flags = s.flags & CASE WHEN j.clears THEN ~1 ELSE ~0 END & CASE WHEN j.frees THEN ~2 ELSE ~0 END,
        sweep_at = CASE WHEN j.act = 0 AND j.op IN (4, 5) THEN j.now + interval '2 minutes' ELSE s.sweep_at END,
        item = CASE WHEN j.act = 0 AND j.op IN (4, 5) THEN '' ELSE s.item END,
        recent = CASE WHEN j.records THEN ` + newRecent + `CASE
                WHEN j.act = 7 THEN substr(j.found, 33)
                ELSE CASE WHEN j.clears OR j.repeats_mark THEN '\x01'::bytea ELSE '\x00'::bytea END
                    || CASE WHEN j.act = 0 AND j.op = 2 THEN decode(lpad(to_hex(j.lock_cookie + 1), 8, '0'), 'hex') ELSE '\x00000000'::bytea END END
            ELSE s.recent END
    FROM ruled j
    WHERE s.app_id = j.app_id AND s.session_id = j.session_id AND j.writes
    RETURNING j.n, j.act, j.now, j.found, s.lock_cookie, s.lock_date, s.timeout, j.clears OR j.repeats_mark AS marked,
        CASE WHEN j.op = 1 AND j.act = 0 OR j.op = 2 AND j.act IN (0, 7) THEN s.item END AS item,
        CASE WHEN j.frees AND j.flags & 2 = 2 THEN ` + notify + ` END AS told,
        CASE WHEN j.due THEN j.expires END AS unrenewed
)
SELECT * FROM updated
UNION ALL
SELECT n, CASE WHEN act = 0 AND op = 1 AND NOT moved THEN 6 ELSE act END, now, found, lock_cookie, lock_date, timeout, repeats_mark,
    CASE WHEN moved AND op <= 2 AND act IN (0, 7) THEN (SELECT s.item FROM sessions s WHERE s.app_id = r.app_id AND s.session_id = r.session_id) END, NULL, NULL
FROM ruled r
WHERE NOT writes
UNION ALL
SELECT i.n, CASE
        WHEN f.moved THEN 10
        WHEN s.app_id IS NULL THEN 1
        WHEN s.expires < clock_timestamp() THEN 6 -- as of the snapshot: it may have been renewed while this waited for other rows
        WHEN i.op <= 2 AND s.locked THEN 2
        ELSE 6 END,
    clock_timestamp(), NULL, s.lock_cookie, s.lock_date, s.timeout, false, NULL, NULL, NULL
FROM fence f CROSS JOIN (SELECT * FROM input WHERE n NOT IN (SELECT n FROM held) OFFSET 0) i
LEFT JOIN sessions s ON s.app_id = i.app_id AND s.session_id = i.session_id`

// unreadSQL is Unread of one session: $1 and $2 its key, $3 the lock cookie, $4 when it is to expire at the latest, $5 its item. It answers
// whether the store was left.
const unreadSQL = `
WITH ` + fence + `, judged AS MATERIALIZED (
    SELECT s.app_id, s.session_id, s.flags, s.locked AND s.lock_cookie = $3::int4 AS frees,
        CASE WHEN s.item = $5::bytea THEN $4::timestamptz ELSE 'infinity' END AS latest
    FROM sessions s
    WHERE s.app_id = $1::int4 AND s.session_id = $2::bytea
    FOR UPDATE OF s
), updated AS (
    UPDATE sessions s SET
        locked = s.locked AND NOT j.frees,
        flags = s.flags & CASE WHEN j.frees THEN ~2 ELSE ~0 END,
        expires = least(s.expires, j.latest),
        sweep_at = least(s.sweep_at, j.latest)
    FROM judged j CROSS JOIN fence
    WHERE NOT moved AND s.app_id = j.app_id AND s.session_id = j.session_id
    RETURNING CASE WHEN j.frees AND j.flags & 2 = 2 THEN ` + notify + ` END AS told
)
SELECT moved, told FROM fence LEFT JOIN updated ON true`

// setSQL stores items ($10 data, $11 timeouts, $12 marks).
const setSQL = `
WITH ` + fence + `, input AS MATERIALIZED (
    SELECT * FROM unnest($1::int4[], $2::bytea[], $3::int4[], $4::int4[], $5::bytea[], $11::int8[], $12::int4[])
        WITH ORDINALITY AS i (app_id, session_id, cond, given, entry, new_timeout, mark, n)
    WHERE n - n = 0
), held AS MATERIALIZED (
    SELECT i.*, s.expires, s.lock_date, s.lock_cookie, s.timeout, s.locked, s.flags,
        ` + foundEntry + `
    FROM input i JOIN sessions s ON s.app_id = i.app_id AND s.session_id = i.session_id
    WHERE (SELECT set_config('lock_timeout', $9::text, true)) IS NOT NULL
    ORDER BY s.app_id, s.session_id
    FOR UPDATE OF s
), sighted AS (
    SELECT timed.*, moved, expires >= now AS alive,
        NOT moved AND expires >= now AND timeout <> 0 AND expires < now + timeout * interval '1 millisecond' AS due,
        CASE WHEN new_timeout = 0 THEN 'infinity'
            ELSE now + (new_timeout + greatest(0, least(new_timeout / 20, 60000))) * interval '1 millisecond' END AS new_expires
    FROM (SELECT held.*, clock_timestamp() AS now FROM held OFFSET 0) AS timed CROSS JOIN fence
), judged AS MATERIALIZED (
    SELECT sighted.*, CASE
        WHEN now >= $8::timestamptz THEN 5
        WHEN found IS NOT NULL THEN 7
        WHEN moved THEN 10
        WHEN NOT alive THEN CASE WHEN cond = 1 THEN 1 ELSE 8 END
        WHEN cond = 2 THEN 4
        WHEN cond = 1 AND given <> lock_cookie THEN 3
        WHEN locked AND given <> lock_cookie THEN 2
        ELSE 0 END AS act
    FROM sighted
), stored AS (
    UPDATE sessions s SET
        created = CASE WHEN j.act = 8 THEN j.now ELSE s.created END,
        expires = j.new_expires,
        lock_date = CASE WHEN j.act = 8 THEN j.now ELSE s.lock_date END,
        lock_cookie = CASE WHEN j.act = 8 THEN 1 ELSE s.lock_cookie END,
        timeout = j.new_timeout,
        locked = false,
        flags = CASE WHEN j.act = 8 THEN j.mark WHEN j.new_timeout <> s.timeout AND j.cond <> 1 THEN 0 ELSE s.flags & ~2 END,
        sweep_at = least(s.sweep_at, j.new_expires),
        item = ($10::bytea[])[j.n],
        recent = ` + newRecent + `'\x0000000000'::bytea
    FROM judged j
    WHERE s.app_id = j.app_id AND s.session_id = j.session_id AND j.act IN (0, 8)
    RETURNING j.n, j.act, j.now, CASE WHEN j.flags & 2 = 2 THEN ` + notify + ` END AS told
), renewed AS (
    UPDATE sessions s SET expires = j.now + (j.timeout + least(j.timeout / 20, 60000)) * interval '1 millisecond'
    FROM judged j
    WHERE s.app_id = j.app_id AND s.session_id = j.session_id AND j.due AND j.act IN (2, 4, 7)
    RETURNING j.n
), inserted AS (
    INSERT INTO sessions (app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked, flags, sweep_at, recent, item)
    SELECT x.app_id, x.session_id, x.now, x.new_expires, x.now, 1, x.new_timeout, false, x.mark, x.new_expires, x.entry || '\x0000000000'::bytea, ($10::bytea[])[x.n]
    FROM (
        SELECT t.*, CASE WHEN t.new_timeout = 0 THEN 'infinity'
            ELSE t.now + (t.new_timeout + greatest(0, least(t.new_timeout / 20, 60000))) * interval '1 millisecond' END AS new_expires
        FROM (
            SELECT i.*, clock_timestamp() AS now FROM input i CROSS JOIN fence f
            WHERE NOT f.moved AND i.cond <> 1 AND i.n NOT IN (SELECT n FROM held)
            ORDER BY i.app_id, i.session_id
            OFFSET 0
        ) t
        WHERE t.now < $8::timestamptz
    ) x
    ON CONFLICT (app_id, session_id) DO NOTHING
    RETURNING app_id, session_id
)
SELECT n, act, now, NULL::bytea AS found, NULL::int4 AS lock_cookie, NULL::timestamptz AS lock_date, NULL::int8 AS timeout, false AS marked, NULL::bytea AS item, told
FROM stored
UNION ALL
SELECT j.n, j.act, j.now, NULL, j.lock_cookie, j.lock_date, j.timeout, false, NULL, NULL
FROM judged j WHERE j.act NOT IN (0, 8)
UNION ALL
SELECT i.n, CASE WHEN x.app_id IS NOT NULL THEN 8 WHEN f.moved THEN 10 WHEN i.cond = 1 THEN 1 ELSE 6 END, clock_timestamp(), NULL, NULL, NULL, NULL, false, NULL, NULL
FROM fence f CROSS JOIN input i LEFT JOIN inserted x ON x.app_id = i.app_id AND x.session_id = i.session_id
WHERE i.n NOT IN (SELECT n FROM held)`
