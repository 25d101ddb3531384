-- The last move away from this file and the last one into it.
CREATE TABLE moves (
    away    INTEGER PRIMARY KEY, -- 1: away from it; 0: into it
    move_id TEXT    NOT NULL,
    source  TEXT    NOT NULL, -- to open it by
    target  TEXT    NOT NULL,
    stage   INTEGER NOT NULL  -- 0: none; 1: announced; 2: moving; 3: moved
) STRICT;

-- The sessions that came with the move into this file, so that none comes twice. Empty but for the time of a move.
CREATE TABLE arrivals (
    app_id     INTEGER NOT NULL,
    session_id BLOB    NOT NULL,
    PRIMARY KEY (app_id, session_id)
) STRICT, WITHOUT ROWID;
