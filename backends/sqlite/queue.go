package sqlite

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"aspstate/backends"
)

// Bounds of a batch, so that none of its operations waits long for the others.
const (
	batchOps   = 256
	batchBytes = 8 << 20
)

// op is an operation for the writer: what is asked, then what came out.
type op struct {
	name  string
	apply func(w *writer, o *op) error // nil, or a failure of SQLite; the answer is o.err
	token backends.Token
	given bool // to the writer

	key           backends.Key
	cookie        backends.Cookie
	cond          backends.Condition
	timeout       time.Duration
	uninitialized bool
	data          []byte // nobody else's, and not changed: the cache keeps it
	limit         int
	unrenewed     backends.Expiry
	stores        bool // it may answer ErrFull
	always        bool // also in a store that was left

	item  backends.Item
	mark  bool // that Release clears
	count int
	err   error

	done chan struct{} // one value: the writer has finished and will not touch the op again

	// Guarded by outcomes.mu.
	finished, abandoned bool
}

var ops = sync.Pool{New: func() any { return &op{done: make(chan struct{}, 1)} }}

// recycle lets another call use the op, which the writer must have finished or never had.
func (o *op) recycle() {
	*o = op{done: o.done}
	ops.Put(o)
}

// queue holds what the writer has not begun.
type queue struct {
	mu     sync.Mutex
	work   sync.Cond // signalled when there is something, or closed is set
	ops    []*op
	closed bool
}

// add appends an operation, unless the queue is closed.
func (q *queue) add(o *op) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.ops = append(q.ops, o)
	q.work.Signal()
	return true
}

// withdraw takes an operation back, unless the writer has it.
func (q *queue) withdraw(o *op) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.ops, o)
	if i < 0 {
		return false
	}
	q.ops = slices.Delete(q.ops, i, i+1)
	return true
}

// take waits for operations and moves a batch of them to batch, which must be empty. It leaves it
// empty when the queue is closed and nothing is left.
func (q *queue) take(batch []*op) []*op {
	// Whoever just got an answer has the chance to ask again, so that batches grow under load.
	runtime.Gosched()
	runtime.Gosched()
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ops) == 0 && !q.closed {
		q.work.Wait()
	}
	n, bytes := 0, 0
	for n < len(q.ops) && n < batchOps && (n == 0 || bytes+len(q.ops[n].data) <= batchBytes) {
		bytes += len(q.ops[n].data)
		n++
	}
	batch = append(batch, q.ops[:n]...)
	q.ops = slices.Delete(q.ops, 0, n)
	return batch
}

// close lets the writer come to its end.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.work.Signal()
}

// do has the writer run an operation, unless an earlier try had it do so, and waits for it. An
// error of do is a failure, and the op is then no longer the caller's; else its outcome is in the
// op.
func (s *Store) do(ctx context.Context, o *op) error {
	if o.given {
		return s.wait(ctx, o)
	}
	var err error
	if err = ctx.Err(); err != nil {
		err = ended(ctx)
	} else if o.given = true; !s.queue.add(o) {
		err = errClosed
	}
	if err != nil {
		defer o.recycle()
		return notApplied(o.name, err)
	}
	return s.wait(ctx, o)
}
