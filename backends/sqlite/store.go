// Package sqlite is the session-state store in an embedded SQLite file, which one process owns.
//
// All changes go through one goroutine, the writer, on one connection (writer.go). It takes
// whatever is queued, runs it in one transaction, and answers when the commit has been fsynced: one
// fsync for many requests is what makes durable writes cheap. Only that goroutine changes anything,
// so operations are decided in Go (operations.go) without any race, and a change of the lock writes
// neither the item nor an index. Nor does it read: what it has read or written lately it remembers,
// in up to 64 MiB (cache.go).
//
// Get and ResetTimeout look first, on connections of their own (reader.go). A session that was
// renewed lately and carries no mark is answered from there, and nothing is written. What was
// acknowledged is seen there: a snapshot of the log begins with the read.
//
// A call whose context ends takes its operation back from the queue, or leaves it to the writer,
// whose answer is then kept for a retry with the same token (outcomes.go).
//
// A store that was left (moving.go) is known to the writer, which applies nothing behind the Leave, and to readers, who
// look after they have read. Operators look through a connection of their own (inspect.go).
package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	sqlite3 "modernc.org/sqlite/lib"

	"aspstate/backends"
)

var (
	_ backends.Store   = (*Store)(nil)
	_ backends.Movable = (*Store)(nil)
)

// Store keeps sessions in a File. Make one with New.
type Store struct {
	file     *File
	log      *slog.Logger
	queue    queue
	outcomes outcomes
	apps     applications
	moves    atomic.Pointer[backends.Moves] // as committed
	readers  chan *reader                   // those that are free
	lists    chan *conn                     // for long looks, if free
	closing  chan struct{}                  // closed when Close begins
	close    func() error
}

// New serves the sessions in a file that has been migrated; else the error is ErrPermanent and
// names the command. The file is the store's from then on: Close closes it. If New fails it is
// still the caller's.
func New(file *File, log *slog.Logger) (*Store, error) {
	s := &Store{
		file:     file,
		log:      log,
		outcomes: outcomes{byToken: map[backends.Token]*op{}},
		readers:  make(chan *reader, readerCount),
		lists:    make(chan *conn, 1),
		closing:  make(chan struct{}),
	}
	s.queue.work.L = &s.queue.mu
	if err := removeLeftBackup(file.path); err != nil {
		return nil, fmt.Errorf("sqlite: %s: %w", file.path, err)
	}
	w, err := s.open()
	if err != nil {
		if primary(err) == sqlite3.SQLITE_ERROR { // no such table or column
			err = fmt.Errorf("its schema is not the one that this aspstate needs: run: aspstate migrate up: %w", err)
		}
		if k := kind(err); k != nil {
			err = fmt.Errorf("%w: %w", k, err)
		}
		return nil, fmt.Errorf("sqlite: %s: %w", file.path, err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.run()
	}()
	s.close = sync.OnceValue(func() error {
		close(s.closing)
		s.queue.close()
		<-stopped
		var errs []error
		for range readerCount { // those in use come back soon
			r := <-s.readers
			errs = append(errs, r.conn.close())
		}
		errs = append(errs, (<-s.lists).close())
		return errors.Join(append(errs, w.close(), file.Close())...)
	})
	return s, nil
}

// open makes the writer and the readers.
func (s *Store) open() (w *writer, err error) {
	w, err = s.newWriter(s.file.path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			close(s.readers)
			for r := range s.readers {
				r.conn.close()
			}
			close(s.lists)
			for c := range s.lists {
				c.close()
			}
			w.written.behind.close()
			w.conn.close()
		}
	}()
	if mode, err := w.conn.query("PRAGMA journal_mode"); err != nil || mode != "wal" {
		return nil, errors.Join(fmt.Errorf("its file system gives journal mode %q where wal is needed", mode), err)
	}
	if err := w.conn.flushData(s.file.path + "-wal"); err != nil {
		return nil, err
	}
	for range readerCount {
		r, err := newReader(s.file.path)
		if err != nil {
			return nil, err
		}
		s.readers <- r
	}
	c, err := openReader(s.file.path)
	if err != nil {
		return nil, err
	}
	s.lists <- c
	moves, err := loadMoves(w.conn)
	if err != nil {
		return nil, err
	}
	s.moves.Store(&moves)
	return w, s.apps.load(w.conn)
}

// Close finishes what is queued, writes the log back into the database file and closes it. Later
// calls fail. It may be called again.
func (s *Store) Close() error { return s.close() }

func newOp(name string, apply func(*writer, *op) error, key backends.Key, tok backends.Token) *op {
	o := ops.Get().(*op)
	o.name, o.apply, o.key, o.token = name, apply, key, tok
	return o
}

// Get implements backends.Store.
func (s *Store) Get(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	o := s.outcomes.rejoin(tok)
	if o == nil {
		item, read, err := s.read(ctx, "get", key, true)
		if read {
			return item, err
		}
		o = newOp("get", (*writer).get, key, tok)
	}
	if err := s.do(ctx, o); err != nil {
		return backends.Item{}, err
	}
	defer o.recycle()
	return o.item, o.err
}

// GetExclusive implements backends.Store.
func (s *Store) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	o := s.outcomes.rejoin(tok)
	if o == nil {
		o = newOp("get exclusive", (*writer).getExclusive, key, tok)
	}
	if err := s.do(ctx, o); err != nil {
		return backends.Item{}, err
	}
	defer o.recycle()
	return o.item, o.err
}

// Release implements backends.Store.
func (s *Store) Release(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (bool, error) {
	o := s.outcomes.rejoin(tok)
	if o == nil {
		o = newOp("release", (*writer).release, key, tok)
		o.cookie, o.cond = cookie, cond
	}
	if err := s.do(ctx, o); err != nil {
		return false, err
	}
	defer o.recycle()
	return o.mark, o.err
}

// Set implements backends.Store. The data are copied.
func (s *Store) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	o := s.outcomes.rejoin(tok)
	if o == nil {
		o = newOp("set", (*writer).set, key, tok)
		o.data = bytes.Clone(w.Data)
		o.cookie, o.cond, o.timeout, o.uninitialized = w.LockCookie, w.Condition, w.Timeout, w.Uninitialized
		o.stores = true
	}
	return s.finish(ctx, o)
}

// Remove implements backends.Store.
func (s *Store) Remove(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) error {
	o := s.outcomes.rejoin(tok)
	if o == nil {
		o = newOp("remove", (*writer).remove, key, tok)
		o.cookie, o.cond = cookie, cond
	}
	return s.finish(ctx, o)
}

// ResetTimeout implements backends.Store.
func (s *Store) ResetTimeout(ctx context.Context, key backends.Key) error {
	if _, read, err := s.read(ctx, "reset timeout", key, false); read {
		return err
	}
	return s.finish(ctx, newOp("reset timeout", (*writer).resetTimeout, key, backends.Token{}))
}

// Unread implements backends.Store.
func (s *Store) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	o := newOp("unread", (*writer).unread, key, backends.Token{})
	o.data, o.cookie, o.unrenewed = item.Data, item.LockCookie, item.Unrenewed
	return s.finish(ctx, o)
}

// DeleteExpired implements backends.Store. It also forgets applications that nobody needs, and gives room that is not
// needed back to the file system.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (deleted int, err error) {
	for deleted < limit {
		o := newOp("delete expired", (*writer).deleteExpired, backends.Key{}, backends.Token{})
		o.limit = min(limit-deleted, sliceRows)
		if err := s.do(ctx, o); err != nil {
			return deleted, err
		}
		n, err := o.count, o.err
		o.recycle()
		if err != nil {
			return deleted, err
		}
		if n == 0 {
			break
		}
		deleted += n
	}
	if deleted < limit {
		if err := s.giveBack(ctx); err != nil {
			return deleted, err
		}
	}
	return deleted, s.tendApplications(ctx)
}

// Ping implements backends.Store: it asks the writer to read.
func (s *Store) Ping(ctx context.Context) error {
	o := newOp("ping", func(w *writer, _ *op) error {
		return w.countApplications.run()
	}, backends.Key{}, backends.Token{})
	o.always = true
	return s.finish(ctx, o)
}

// finish does an operation whose answer is an error or none.
func (s *Store) finish(ctx context.Context, o *op) error {
	if err := s.do(ctx, o); err != nil {
		return err
	}
	defer o.recycle()
	return o.err
}
