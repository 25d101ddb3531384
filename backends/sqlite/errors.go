package sqlite

import (
	"context"
	"errors"
	"fmt"

	sqlite3 "modernc.org/sqlite/lib"

	"aspstate/backends"
)

var errClosed = errors.New("the store is closed")

// primary is the primary result code of a failure of SQLite, or 0.
func primary(err error) int32 {
	if e, ok := errors.AsType[*resultError](err); ok {
		return e.code & 0xff
	}
	return sqlite3.SQLITE_OK
}

// kind is what a failure of SQLite is to the callers of a store: ErrFull, ErrPermanent or, for what
// is worth another try, nil.
func kind(err error) error {
	switch primary(err) {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG:
		return backends.ErrFull
	case sqlite3.SQLITE_ERROR, // a table that is missing: the statements are constants
		sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT,
		sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH,
		sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_SCHEMA,
		sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_NOLFS:
		return backends.ErrPermanent
	default:
		return nil
	}
}

// failed is the error of an operation that SQLite failed and that has not been applied. Only
// operations that store something answer ErrFull: to the others a full disk is a failure that
// passes.
func failed(op string, err error, stores bool) error {
	switch k := kind(err); {
	case k == backends.ErrFull && stores:
		return fmt.Errorf("sqlite: %s: %w: %w", op, k, err)
	case k == backends.ErrPermanent:
		return fmt.Errorf("sqlite: %s: %w: %w: %w", op, k, backends.ErrNotApplied, err)
	default:
		return notApplied(op, err)
	}
}

func movedError(op string) error { return fmt.Errorf("sqlite: %s: %w", op, backends.ErrMoved) }

func notApplied(op string, err error) error {
	return fmt.Errorf("sqlite: %s: %w: %w", op, backends.ErrNotApplied, err)
}

// ended is why the context is over.
func ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == err {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}
