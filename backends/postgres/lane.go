package postgres

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"aspstate/backends"
)

const (
	maxBatch      = 256     // calls in one statement
	maxBatchBytes = 1 << 20 // of items in one statement
	maxQueue      = 4096    // calls that wait in a lane; more wait outside
)

// States of a call.
const (
	waiting  int32 = iota
	sent           // it is in a statement
	gone           // its caller has given up
	answered       // err and answer are there for the caller
)

// call is a request on its way through a lane.
type call struct {
	run func(ctx context.Context, w *worker) error // for calls that are no part of a batch

	ctx     context.Context
	key     backends.Key
	op      int32 // of touchSQL or readSQL, or the Condition of a Set
	token   backends.Token
	sticky  bool // the token must be remembered though this try is answered
	cookie  backends.Cookie
	timeout int64 // milliseconds
	mark    bool
	data    []byte

	move     string // of an Import
	sessions []backends.Session
	taken    int
	refusal  error
	session  *backends.Session // that Inspect found

	state  atomic.Int32
	done   chan struct{}
	answer answer
	err    error
}

// answer is a row of a statement's result.
type answer struct {
	act     int32
	now     time.Time
	found   []byte // the entry of an earlier try
	cookie  backends.Cookie
	lockAt  time.Time
	timeout int64
	marked  bool
	item    []byte

	unrenewed backends.Expiry // a timestamptz
}

// size is how large the call makes its statement.
func (c *call) size() int {
	size := len(c.data)
	for i := range c.sessions {
		size += len(c.sessions[i].Data)
	}
	return size
}

// finish gives the call to its caller, and reports whether the caller was still there.
func (c *call) finish() bool {
	if !c.state.CompareAndSwap(sent, answered) {
		return false
	}
	close(c.done)
	return true
}

// lane is a queue of calls and the workers that take them from it, each with a connection of its own.
type lane struct {
	queue   chan *call
	workers int
	exec    func(ctx context.Context, w *worker, batch []*call) error
}

// worker runs the calls of a lane on one connection.
type worker struct {
	store  *Store
	lane   *lane
	conn   *conn
	stream [8]byte // of the entries that it writes

	batch    []*call
	keys     map[backends.Key]struct{}
	deferred []*call // for the next batch
}

// work runs batches until the store stops. A batch is what has queued up during the one before: nothing
// ever waits for a batch to fill, so that an idle store answers at once and a busy one shares commits.
func (w *worker) work() {
	defer func() {
		if w.conn != nil {
			w.conn.close()
		}
	}()
	for {
		if len(w.deferred) == 0 {
			select {
			case c := <-w.lane.queue:
				w.deferred = append(w.deferred, c)
			case <-w.store.stop:
				return
			}
		}
		if err := w.connect(); err != nil {
			w.refuse(err)
			continue
		}
		w.gather()
		if len(w.batch) > 0 {
			w.execute(w.batch)
		}
	}
}

// connect sees to it that there is a connection. How long it tries is not bound to the callers' contexts, since
// there may be several hosts to try, of which the first ones hang.
func (w *worker) connect() error {
	if w.conn != nil && !w.conn.IsClosed() {
		return nil
	}
	w.newStream()
	var err error
	w.conn, err = w.store.db.connect(w.store.ctx)
	return err
}

// refuse answers all calls that wait with an error.
func (w *worker) refuse(err error) {
	err = failure(fmt.Errorf("connect: %w", err))
	if !errors.Is(err, backends.ErrNotApplied) {
		err = fmt.Errorf("%w: %w", err, backends.ErrNotApplied)
	}
	for {
		for _, c := range w.deferred {
			if c.state.CompareAndSwap(waiting, sent) {
				c.err = err
				c.finish()
			}
		}
		w.deferred = w.deferred[:0]
		select {
		case c := <-w.lane.queue:
			w.deferred = append(w.deferred, c)
		default:
			return
		}
	}
}

// gather fills the batch with what waits.
func (w *worker) gather() {
	w.batch = w.batch[:0]
	clear(w.keys)
	size := 0
	full := func() bool { return len(w.batch) >= maxBatch || size >= maxBatchBytes || w.batch[0].run != nil }
	take := func(c *call) (taken bool) {
		if len(w.batch) > 0 {
			if _, twice := w.keys[c.key]; twice || full() || c.run != nil || c.move != w.batch[0].move {
				return false
			}
		}
		if c.state.CompareAndSwap(waiting, sent) {
			w.keys[c.key] = struct{}{}
			w.batch = append(w.batch, c)
			size += c.size()
		}
		return true
	}
	rest := w.deferred
	w.deferred = w.deferred[:0]
	for _, c := range rest {
		if !take(c) {
			w.deferred = append(w.deferred, c)
		}
	}
	for yields := 0; len(w.batch) == 0 || !full() && len(w.deferred) < maxBatch; {
		select {
		case c := <-w.lane.queue:
			if !take(c) {
				w.deferred = append(w.deferred, c)
			}
			continue
		default:
		}
		if len(w.batch) == 0 || yields == 2 {
			return
		}
		yields++
		runtime.Gosched() // lets callers that were just answered ask again
	}
}

// execute runs a batch in one statement, or its calls one by one where that fails because of one of them.
func (w *worker) execute(batch []*call) {
	ctx, cancel := context.WithDeadline(w.store.ctx, deadline(batch))
	err := w.lane.exec(ctx, w, batch)
	cancel()
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && len(batch) > 1 && pgErr.SeverityUnlocalized == "ERROR" && !w.conn.IsClosed() {
		for i := range batch {
			if w.conn.IsClosed() {
				w.answer(batch[i:], err)
				return
			}
			w.execute(batch[i : i+1])
		}
		return
	}
	w.answer(batch, err)
}

func (w *worker) answer(batch []*call, err error) {
	if err != nil {
		err = failure(err)
	}
	delivered := err == nil || errors.Is(err, backends.ErrNotApplied)
	for _, c := range batch {
		c.err = err
		if !c.finish() {
			delivered = false
		}
	}
	if !delivered {
		w.newStream() // so that the entries of this batch stay
	}
}

// deadline is when the last caller of a batch has gone.
func deadline(batch []*call) time.Time {
	limit := time.Now().Add(patienceWith(batch))
	var last time.Time
	for _, c := range batch {
		d, ok := c.ctx.Deadline()
		if !ok || d.After(limit) {
			return limit
		}
		if d.After(last) {
			last = d
		}
	}
	return last
}

// patienceWith is how long the statement of a batch may take: longer where items are large, but well within
// the time that tokens are remembered.
func patienceWith(batch []*call) time.Duration {
	size := 0
	for _, c := range batch {
		size += c.size()
	}
	return min(patience+time.Duration(size>>20)*400*time.Millisecond, 4*patience)
}
