package sqlite

import (
	"context"
	"slices"
	"time"

	"aspstate/backends"
)

// readerCount is how many connections read besides the writer. More than a few only contend.
const readerCount = 3

// readerPragmas are run on the readers' connections, besides those of the file.
var readerPragmas = []string{"query_only = ON"}

// reader is a connection that only reads.
type reader struct {
	conn                                  *conn
	findSession, findItem, inspectSession *stmt
}

func openReader(path string) (*conn, error) {
	return openConn(path, slices.Concat(filePragmas, readerPragmas)...)
}

func newReader(path string) (*reader, error) {
	c, err := openReader(path)
	if err != nil {
		return nil, err
	}
	r := &reader{conn: c}
	if r.findSession, err = c.prepare(findSession); err == nil {
		r.findItem, err = c.prepare(findItem)
	}
	if err == nil {
		r.inspectSession, err = c.prepare(inspectSession)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return r, nil
}

// free waits for one that is free in a pool of connections.
func free[T any](ctx context.Context, s *Store, op string, pool chan T) (c T, err error) {
	if ctx.Err() != nil {
		return c, notApplied(op, ended(ctx))
	}
	select {
	case c = <-pool:
		return c, nil
	default:
	}
	select {
	case c = <-pool:
		return c, nil
	case <-ctx.Done():
		return c, notApplied(op, ended(ctx))
	case <-s.closing:
		return c, notApplied(op, errClosed)
	}
}

// read answers a Get (with item) or a ResetTimeout, or reports false if the writer has to: the
// session needs a renewal, seems to have expired (the writer may have renewed it since the look, or
// be about to commit that), or carries the uninitialized mark.
func (s *Store) read(ctx context.Context, op string, key backends.Key, item bool) (_ backends.Item, read bool, err error) {
	r, err := free(ctx, s, op, s.readers)
	if err != nil {
		return backends.Item{}, true, err
	}
	look := r.findSession
	if item {
		look = r.findItem
	}
	se, err := find(look, key, item)
	s.readers <- r
	now := time.Now().UnixMilli()
	switch {
	case err != nil:
		return backends.Item{}, true, failed(op, err, false)
	case s.moves.Load().Left():
		return backends.Item{}, true, movedError(op)
	case se.row == 0:
		return backends.Item{}, true, backends.ErrNotFound
	case se.missing(now) || se.overdue(now) || item && se.marked():
		return backends.Item{}, false, nil
	case item:
		found, err := se.found(now, false, se.item)
		return found, true, err
	default:
		return backends.Item{}, true, nil
	}
}
