package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

const (
	minConns = 4
	// largeItem is from where on an item has a statement of its own, on another connection than the others.
	largeItem = 256 << 10
	// startWait is how long Open waits for a database that is starting.
	startWait = time.Minute
)

var (
	_ backends.Store         = (*Store)(nil)
	_ backends.SharedMovable = (*Store)(nil)
)

// Store keeps sessions in PostgreSQL. Make one with Open.
type Store struct {
	db *database

	reads   *lane // Get and ResetTimeout
	touches *lane // what changes a row and not its item
	sets    *lane
	rest    *lane // large items, applications, sweeping
	looks   *lane // Inspect and List by key, moves and servers
	imports *lane // Import, and steps of moves

	mu      sync.RWMutex // for closed, against calls.Wait
	closed  bool
	calls   sync.WaitGroup // under way
	workers sync.WaitGroup
	stop    chan struct{} // closed when the workers are to end
	ctx     context.Context
	cancel  context.CancelFunc // ends statements

	doubts     doubts
	noAdvisory atomic.Bool // the engine has no advisory locks
	noNotify   atomic.Bool // the engine has no pg_notify
}

// Open connects to the database and returns its store. The connection string is a PostgreSQL URL or keywords, as
// pgx takes them: several hosts, search_path, connect_timeout (2 s a host) and so on. pool_max_conns (4) is the number of
// connections: one for locks, one for writes, the others for reads and all else; while somebody looks into the store or sessions
// move there are two or three more. A database that is starting is waited for, up to a
// minute or the end of ctx. An error that is backends.ErrPermanent needs the operator: its text says what to do.
func Open(ctx context.Context, connectionString string, log *slog.Logger) (*Store, error) {
	db, connections, err := parse(connectionString, log)
	if err != nil {
		return nil, fmt.Errorf("postgres: open: %w: %w", err, backends.ErrPermanent)
	}
	if err := db.wait(ctx); err != nil {
		return nil, fmt.Errorf("postgres: open: %w", err)
	}
	s := &Store{
		db:      db,
		reads:   newLane(execRead),
		touches: newLane(execTouch),
		sets:    newLane(execSet),
		rest:    newLane(execRun),
		looks:   newLane(execInspect),
		imports: newLane(execImport),
		stop:    make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.doubts.since = map[backends.Token]time.Time{}
	rest := 1
	if connections > minConns {
		rest = 2
	}
	s.start(s.touches, 1)
	s.start(s.sets, 1)
	s.start(s.rest, rest)
	s.start(s.looks, 1) // connects when it is needed, as all do
	s.start(s.imports, 1)
	s.start(s.reads, connections-2-rest)
	return s, nil
}

func newLane(exec func(context.Context, *worker, []*call) error) *lane {
	return &lane{queue: make(chan *call, maxQueue), exec: exec}
}

func (s *Store) start(l *lane, workers int) {
	l.workers = workers
	for range workers {
		w := &worker{store: s, lane: l, keys: map[backends.Key]struct{}{}}
		s.workers.Go(w.work)
	}
}

// schemaSQL fails where the schema or a right is missing.
const schemaSQL = `SELECT FROM sessions s, applications a, moves m, arrivals r, servers v
WHERE s.recent IS NULL AND a.name_hash IS NULL AND m.stage IS NULL AND r.app_id IS NULL AND v.seen IS NULL LIMIT 0`

// wait returns when the database answers.
func (db *database) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	begun, said := time.Now(), time.Time{}
	for {
		c, err := db.connect(ctx)
		if err == nil {
			err = c.query(ctx, schemaSQL, nil, func([][]byte) {})
			c.close()
		}
		if err == nil {
			return nil
		}
		if err = failure(err); errors.Is(err, backends.ErrPermanent) {
			return err
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			db.log.Warn("waiting for the database", "waited", time.Since(begun).Round(time.Second), "at_most", startWait, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for the database: %w", time.Since(begun).Round(time.Second), err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// do sends a call through a lane and returns when it is answered or its context ends.
func (s *Store) do(l *lane, c *call) error {
	if c.ctx.Err() != nil {
		return notSent(c.ctx)
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.calls.Done()

	c.done = make(chan struct{})
	c.sticky = s.doubts.has(c.token)
	select {
	case l.queue <- c:
	case <-c.ctx.Done():
		return notSent(c.ctx)
	}
	select {
	case <-c.done:
	case <-c.ctx.Done():
		switch {
		case c.state.CompareAndSwap(waiting, gone):
			return notSent(c.ctx)
		case c.state.CompareAndSwap(sent, gone):
			s.doubts.add(c.token)
			return context.Cause(c.ctx)
		}
		<-c.done
	}
	if !backends.IsAnswer(c.err) && !errors.Is(c.err, backends.ErrNotApplied) {
		s.doubts.add(c.token)
	}
	return c.err
}

// begin counts a call that is under way.
func (s *Store) begin() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return fmt.Errorf("%w: %w", errClosed, backends.ErrNotApplied)
	}
	s.calls.Add(1)
	return nil
}

// Ping implements backends.Store.
func (s *Store) Ping(ctx context.Context) error {
	_, err := run(ctx, s, "ping", func(ctx context.Context, c *conn) (struct{}, error) {
		return struct{}{}, c.query(ctx, "SELECT", nil, func([][]byte) {})
	})
	return err
}

// run runs f on a connection of the rest. Where it ends before f does, f's result is dropped.
func run[T any](ctx context.Context, s *Store, what string, f func(context.Context, *conn) (T, error)) (T, error) {
	return runIn(ctx, s, s.rest, what, f)
}

// runIn is run in another lane.
func runIn[T any](ctx context.Context, s *Store, l *lane, what string, f func(context.Context, *conn) (T, error)) (T, error) {
	result := new(T)
	err := s.do(l, &call{ctx: ctx, run: func(ctx context.Context, w *worker) (err error) {
		*result, err = f(ctx, w.conn)
		return err
	}})
	if err != nil {
		return *new(T), fmt.Errorf("postgres: %s: %w", what, err)
	}
	return *result, nil
}

func execRun(ctx context.Context, w *worker, batch []*call) error {
	return batch[0].run(ctx, w)
}

// Close answers the calls that are under way, unless the database hangs, and ends the connections.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if !again {
		hung := time.AfterFunc(patience, s.cancel)
		s.calls.Wait()
		close(s.stop)
		s.workers.Wait()
		hung.Stop()
		s.cancel()
	}
	s.workers.Wait()
	return nil
}

// doubts are the tokens of calls that ended without an answer and may be tried again. What such a retry writes must be
// remembered for longer than its answer takes: the first try may still be on its way.
type doubts struct {
	mu      sync.Mutex
	since   map[backends.Token]time.Time
	all     time.Time // until then there are too many to tell
	cleaned time.Time
}

const (
	// remembered is how long a token is kept in the database.
	remembered = time.Minute
	maxDoubts  = 100_000
)

func (d *doubts) has(tok backends.Token) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.since) == 0 && d.all.IsZero() {
		return false
	}
	_, ok := d.since[tok]
	return ok || time.Now().Before(d.all)
}

func (d *doubts) add(tok backends.Token) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if now.Sub(d.cleaned) > remembered {
		d.cleaned = now
		for t, since := range d.since {
			if now.Sub(since) > remembered {
				delete(d.since, t)
			}
		}
	}
	if len(d.since) >= maxDoubts {
		d.all = now.Add(remembered)
		return
	}
	d.since[tok] = now
}

func (w *worker) newStream() { rand.Read(w.stream[:]) }
