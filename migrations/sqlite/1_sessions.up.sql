-- Dates are Unix times in milliseconds, timeouts milliseconds.

CREATE TABLE applications (
    app_id   INTEGER PRIMARY KEY,
    app_name TEXT    NOT NULL UNIQUE, -- compared byte by byte
    last_use INTEGER NOT NULL
) STRICT;

-- The columns of ASPState's table. The item comes last, so that the others are read without it.
CREATE TABLE sessions (
    app_id      INTEGER NOT NULL,
    session_id  BLOB    NOT NULL,
    created     INTEGER NOT NULL,
    expires     INTEGER NOT NULL, -- 9223372036854775807: never
    lock_date   INTEGER NOT NULL,
    lock_cookie INTEGER NOT NULL,
    timeout     INTEGER NOT NULL, -- 0: never expires
    locked      INTEGER NOT NULL,
    flags       INTEGER NOT NULL, -- bit 0: uninitialized
    item        BLOB    NOT NULL,
    UNIQUE (app_id, session_id)
) STRICT;

-- Renewals are coalesced, so this index is seldom written.
CREATE INDEX sessions_expires ON sessions (expires);
