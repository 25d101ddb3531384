-- The last move away from this database and the last one into it. Every statement that writes sessions has a lock on
-- this table (ROW SHARE), so that a step of a move (EXCLUSIVE) waits for those under way and the later ones see it.
CREATE TABLE moves (
    away    boolean PRIMARY KEY, -- or into it
    move_id bytea   NOT NULL,    -- texts are UTF-8, whatever the database's encoding
    source  bytea   NOT NULL,    -- to open it by
    target  bytea   NOT NULL,
    stage   integer NOT NULL     -- 0: none; 1: announced; 2: moving; 3: moved
);

-- The sessions that came with the move into this database, so that none comes twice. Empty but for the time of a move.
CREATE TABLE arrivals (
    app_id     integer NOT NULL,
    session_id bytea   NOT NULL,
    PRIMARY KEY (app_id, session_id)
);

-- The servers that use this database.
CREATE TABLE servers (
    server_id   bytea       PRIMARY KEY,
    server_name bytea       NOT NULL,
    ready       bytea       NOT NULL, -- the move that it is ready for
    fault       bytea       NOT NULL, -- why it cannot be
    seen        timestamptz NOT NULL
);
