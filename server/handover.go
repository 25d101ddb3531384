package server

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Hand-over of locks: a request that meets a locked session waits for its release
// instead of being sent away. (The original answers 423 at once, and web servers ask
// again every 500 ms.)
//
// Waiters of a session stand in a queue. A release gives the turn to the first, which
// asks the store in its own request, with its own budget. A plain Get shares
// what it found with the plain Gets right behind it and passes the turn on; a
// GetExclusive that got the lock ends the turn until the next release. A
// waiter costs a goroutine and a place in the queue, no statement and no
// connection to a database.
//
// The queue is only a hint when to ask. The store decides who has the lock, so no fault
// of the queue, and no other server, can make two requests have it. Where several
// servers use one store, the first waiter has the store tell of releases that other
// servers make (backends.Shared), or asks again from time to time where it cannot.

const (
	// maxWaiters and maxWaitersOfClient bound the waiters of a session and of a client
	// address. Who comes later is answered at once. A client of mode="SQLServer" has at most 100 connections
	// (Max Pool Size); the other half is for those who end locks.
	maxWaiters         = 32
	maxWaitersOfClient = 50

	// budgetAfterWait is what is left of a request's budget, at least, when it has waited, or took long to arrive.
	budgetAfterWait = 500 * time.Millisecond
)

// handover keeps the queues. Where nobody waits, it costs two atomic operations.
type handover struct {
	lockWait atomic.Int64 // time.Duration
	waiting  atomic.Int64 // waiters in all queues
	seed     maphash.Seed
	epochs   [256]atomic.Uint64 // by the key's hash; each counts releases

	mu       sync.Mutex
	queues   map[backends.Key]*queue
	clients  map[netip.Addr]int // waiters by address
	draining chan struct{}      // closed when nobody may wait any more

	shared atomic.Bool // other servers use the store too
	told   atomic.Bool // the store tells of their releases
}

// queue is the waiters of one session, first come, first served. It exists while it
// has any.
type queue struct {
	waiters []*waiter
	turn    *waiter // the first of waiters, while it asks the store
	again   bool    // the session was released during the turn
}

type waiter struct {
	exclusive bool
	client    netip.Addr
	turn      chan turn  // receives when the turn is this waiter's
	shared    chan found // receives what another plain Get found, for this one too
}

// turn is what a waiter is to do when it is first.
type turn uint8

const (
	turnAsk    turn = iota // ask for the session
	turnExpect             // have its release told
)

type found struct {
	item backends.Item
	err  error
}

func (h *handover) init() {
	h.seed = maphash.MakeSeed()
	h.queues = make(map[backends.Key]*queue)
	h.clients = make(map[netip.Addr]int)
	h.draining = make(chan struct{})
}

// SetLockWait sets how long a request waits for a locked session; 0 answers at once, as the
// original does.
func (s *Sessions) SetLockWait(d time.Duration) { s.handover.lockWait.Store(int64(d)) }

// Waiting returns how many requests wait for a lock.
func (s *Sessions) Waiting() int { return int(s.handover.waiting.Load()) }

// Drain answers all who wait for a lock, now and from now on: the process is about to end.
func (s *Sessions) Drain() {
	h := &s.handover
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.draining:
	default:
		close(h.draining)
	}
}

// await asks the store and, where the session is locked, waits for its turn to ask
// again. It follows the renewal and the ActionFlags step, which the first question does.
func (s *Sessions) await(ctx context.Context, req Request, session Session, exclusive bool, ask func() (backends.Item, error)) (item backends.Item, err error) {
	h := &s.handover
	wait := time.Duration(h.lockWait.Load())
	if wait == 0 {
		return ask()
	}
	key := session.App.key(session.ID)
	epoch := h.epoch(key).Load()
	overtakes := exclusive && h.queued(key)
	if overtakes {
		item, err = s.Lookup(ctx, req, session) // takes no lock from those who wait
	} else {
		item, err = ask()
	}
	mark := item.Uninitialized
	locked, isLocked := errors.AsType[*backends.LockedError](err)
	switch {
	case isLocked:
		mark = locked.Uninitialized
		if locked.Age >= wait {
			return item, err // its holder is slow, or gone
		}
	case err != nil || !overtakes:
		return item, err
	}
	if left := time.Until(req.Arrived.Add(time.Duration(s.budget.Load()))) - budgetAfterWait; left < wait {
		wait = left
	}
	key = session.App.key(session.ID) // the first question has found the application
	if w := h.join(key, exclusive, req.Client, epoch, !isLocked); w != nil {
		begun := time.Now()
		item, err = s.waitTurn(ctx, req, session, key, w, wait, ask)
		s.Metrics.waited(time.Since(begun), err)
	} else {
		s.Metrics.LockRefused.Add(1)
		if !isLocked {
			item, err = ask()
		}
	}
	if again, ok := errors.AsType[*backends.LockedError](err); ok && mark && !again.Uninitialized {
		told := *again
		told.Uninitialized = true
		return item, &told
	}
	item.Uninitialized = item.Uninitialized || mark
	return item, err
}

// waitTurn waits in the queue for the turn to ask, and asks in any case when the time is
// over, so that the answer is the store's own.
func (s *Sessions) waitTurn(ctx context.Context, req Request, session Session, key backends.Key, w *waiter, wait time.Duration,
	ask func() (backends.Item, error)) (item backends.Item, err error) {
	h := &s.handover
	locked := false
	defer func() { h.leave(key, w, locked) }()
	gone, stop := req.watch()
	defer stop()
	over := time.NewTimer(wait)
	defer over.Stop()
	poll, again := h.poll()
	for {
		last := false
		select {
		case t := <-w.turn:
			if t == turnExpect && s.expect(ctx, key) {
				h.keepPlace(key)
				continue
			}
		case <-poll:
			poll = again()
			if !h.takeTurn(key, w) {
				continue
			}
		case f := <-w.shared:
			return f.item, f.err
		case <-over.C:
			last = true
		case <-h.draining:
			last = true
		case <-gone:
			return item, errGone
		case <-ctx.Done():
			return item, ctx.Err()
		}
		item, err = ask()
		if _, locked := errors.AsType[*backends.LockedError](err); locked && !last {
			if !s.expect(ctx, key) {
				h.released(key) // meanwhile
			}
			h.keepPlace(key)
			continue
		}
		switch locked = w.exclusive && err == nil; {
		case locked:
			select {
			case <-gone: // before it could be told of its lock
				s.ReleaseLater(session, item.LockCookie)
				return item, errGone
			default:
			}
		case !w.exclusive && (err == nil || errors.Is(err, backends.ErrNotFound)):
			h.share(key, w, found{item, err})
		}
		return item, err
	}
}

// epoch changes with every release. Who reads it before asking the store can tell, when joining
// the queue, whether a release may have gone by meanwhile.
func (h *handover) epoch(key backends.Key) *atomic.Uint64 {
	return &h.epochs[maphash.String(h.seed, key.ID)%uint64(len(h.epochs))]
}

// released gives the turn to the first waiter of a session that may be free now.
func (h *handover) released(key backends.Key) {
	h.epoch(key).Add(1)
	if h.waiting.Load() == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch q := h.queues[key]; {
	case q == nil:
	case q.turn != nil:
		q.again = true
	default:
		q.next(turnAsk)
	}
}

// next gives the turn to the first waiter.
func (q *queue) next(t turn) {
	q.turn, q.again = nil, false
	if len(q.waiters) > 0 {
		q.turn = q.waiters[0]
		q.turn.turn <- t
	}
}

// takeTurn gives the turn to w if it is the first and nobody has the turn.
func (h *handover) takeTurn(key backends.Key, w *waiter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[key]
	if q == nil || q.turn != nil || q.waiters[0] != w {
		return false
	}
	q.turn = w
	return true
}

// queued reports whether somebody waits for the session.
func (h *handover) queued(key backends.Key) bool {
	if h.waiting.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.queues[key] != nil
}

// join puts a waiter at the end of the queue, or returns nil where nobody may wait. epoch
// was read before the store was asked; free says that the store found the session unlocked.
func (h *handover) join(key backends.Key, exclusive bool, client netip.Addr, epoch uint64, free bool) *waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[key]
	select {
	case <-h.draining:
		return nil
	default:
	}
	if h.clients[client] >= maxWaitersOfClient || q != nil && len(q.waiters) >= maxWaiters {
		return nil
	}
	if q == nil {
		q = &queue{}
		h.queues[key] = q
	}
	w := &waiter{exclusive: exclusive, client: client, turn: make(chan turn, 1), shared: make(chan found, 1)}
	q.waiters = append(q.waiters, w)
	h.clients[client]++
	h.waiting.Add(1)
	// From here on a release finds the queue. One that came since the store was asked
	// has not, and the session may be free.
	switch {
	case q.turn != nil:
	case free || h.epoch(key).Load() != epoch:
		q.next(turnAsk)
	case h.shared.Load() && q.waiters[0] == w:
		q.next(turnExpect)
	}
	return w
}

// leave takes w out of the queue. Its turn, if it has it, passes on, unless w has
// taken the lock and nothing was released since.
func (h *handover) leave(key backends.Key, w *waiter, locked bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[key]
	if q == nil || !h.remove(q, w) {
		return // another plain Get has answered for it
	}
	switch {
	case q.turn != w:
	case !locked || q.again:
		q.next(turnAsk)
	case h.shared.Load():
		q.next(turnExpect)
	default:
		q.turn = nil
	}
	if len(q.waiters) == 0 {
		delete(h.queues, key)
	}
}

// remove runs under mu.
func (h *handover) remove(q *queue, w *waiter) bool {
	i := slices.Index(q.waiters, w)
	if i < 0 {
		return false
	}
	q.waiters = slices.Delete(q.waiters, i, i+1)
	h.waiting.Add(-1)
	if h.clients[w.client]--; h.clients[w.client] == 0 {
		delete(h.clients, w.client)
	}
	return true
}

// share hands what w, a plain Get whose turn it is, found to the plain Gets right behind it. Where w's time was over
// at the moment when another one answered for it, it has no turn and may not even have a queue.
func (h *handover) share(key backends.Key, w *waiter, f found) {
	f.item.Uninitialized = false // only one request is told
	h.mu.Lock()
	defer h.mu.Unlock()
	q := h.queues[key]
	for q != nil && len(q.waiters) > 1 && q.turn == w && !q.waiters[1].exclusive {
		other := q.waiters[1]
		h.remove(q, other)
		other.shared <- f
	}
}

// keepPlace ends w's turn where the session is locked after all: by somebody who came
// in between, on this server or another.
func (h *handover) keepPlace(key backends.Key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if q := h.queues[key]; q.again {
		q.next(turnAsk)
	} else {
		q.turn = nil
	}
}
