package sqlite

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Bounds of what is kept for calls that have not come back for their outcome.
const (
	outcomesKept  = 1000
	outcomesBytes = 64 << 20
	outcomesAge   = time.Minute // from when the operation finished
)

// outcomes keeps the operations whose callers' contexts ended while the writer had them, so that a
// retry with the same token gets the first try's answer (rule 7 of the contract). Memory is enough:
// one process owns the file, and when it ends so do all requests.
type outcomes struct {
	count atomic.Int64 // of byToken: most calls need look no further

	mu       sync.Mutex
	byToken  map[backends.Token]*op
	finished []outcome // oldest first
	bytes    int       // in their items
}

type outcome struct {
	op *op
	at time.Time
}

// wait waits until the writer has finished an operation that it was given.
func (s *Store) wait(ctx context.Context, o *op) error {
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
	}
	if s.queue.withdraw(o) {
		defer o.recycle()
		return notApplied(o.name, ended(ctx))
	}
	name := o.name
	if s.outcomes.abandon(o) {
		return fmt.Errorf("sqlite: %s: the outcome is not known: %w", name, ended(ctx))
	}
	<-o.done
	return nil
}

// abandon keeps an operation for a retry and reports true, unless its outcome is there already.
func (k *outcomes) abandon(o *op) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if o.finished {
		return false
	}
	o.abandoned = true
	if o.token != (backends.Token{}) {
		k.byToken[o.token] = o
		k.count.Store(int64(len(k.byToken)))
	}
	return true
}

// rejoin returns the operation of an earlier try with this token, or nil if there is none or it
// failed.
func (k *outcomes) rejoin(tok backends.Token) *op {
	if k.count.Load() == 0 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.byToken[tok]
	if o == nil {
		return nil
	}
	o.abandoned = false
	if i := slices.IndexFunc(k.finished, func(kept outcome) bool { return kept.op == o }); i >= 0 {
		k.forget(i)
	} else {
		k.forgetToken(o) // it still runs
	}
	if o.finished && !backends.IsAnswer(o.err) {
		return nil
	}
	return o
}

// settle notes that the writer has finished a batch.
func (k *outcomes) settle(batch []*op) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range batch {
		o.finished = true
		if o.abandoned && o.token != (backends.Token{}) {
			o.data = nil
			k.finished = append(k.finished, outcome{o, time.Now()})
			k.bytes += len(o.item.Data)
		}
	}
	for len(k.finished) > 0 && (len(k.finished) > outcomesKept || k.bytes > outcomesBytes ||
		time.Since(k.finished[0].at) > outcomesAge) {
		k.forget(0)
	}
}

// forget drops a finished operation.
func (k *outcomes) forget(i int) {
	o := k.finished[i].op
	k.bytes -= len(o.item.Data)
	k.finished = slices.Delete(k.finished, i, i+1)
	k.forgetToken(o)
}

func (k *outcomes) forgetToken(o *op) {
	delete(k.byToken, o.token)
	k.count.Store(int64(len(k.byToken)))
}
