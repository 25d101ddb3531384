CREATE TABLE applications (
    app_id    integer     PRIMARY KEY,
    name_hash bytea       NOT NULL UNIQUE, -- SHA-256 of app_name, which may be too long for an index
    app_name  bytea       NOT NULL,        -- UTF-8, compared byte by byte whatever the database's encoding
    last_use  timestamptz NOT NULL
);

-- The columns of ASPState's table, and three of ours.
-- No index has a column that locks, writes or renewals change: so their updates stay on the row's
-- page and touch no index (HOT).
CREATE TABLE sessions (
    app_id      integer     NOT NULL,
    session_id  bytea       NOT NULL,
    created     timestamptz NOT NULL,
    expires     timestamptz NOT NULL, -- infinity: never; -infinity: removed
    lock_date   timestamptz NOT NULL,
    lock_cookie integer     NOT NULL,
    timeout     bigint      NOT NULL, -- milliseconds; 0: never expires
    locked      boolean     NOT NULL,
    flags       integer     NOT NULL, -- bit 0: uninitialized; bit 1: somebody waits for the release
    sweep_at    timestamptz NOT NULL, -- when the sweeper looks at the row; not after expires
    recent      bytea       NOT NULL, -- tokens of requests whose answers may have been lost
    item        bytea       NOT NULL,
    PRIMARY KEY (app_id, session_id)
);

CREATE INDEX sessions_sweep_at ON sessions (sweep_at);

-- Optional: what engines other than PostgreSQL may refuse.

-- Room on each page for the next versions of its rows, without which updates cannot stay there. Items too long for
-- a page are kept apart and not compressed. Dead rows are cleared by their number, and not by a share of a table
-- that may be large.
ALTER TABLE sessions ALTER COLUMN item SET STORAGE EXTERNAL;
ALTER TABLE sessions SET (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 50000,
    toast.autovacuum_vacuum_cost_delay = 0
);
