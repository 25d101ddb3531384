package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// limited is a context that ends at a time, as context.WithDeadline's does, but sets a timer only when somebody
// waits for its end: a store that answers at once does not. One that nobody waited for is used again, so
// whoever keeps it beyond the call that it was made for must have called Done.
type limited struct {
	context.Context // the parent
	end             time.Time
	timed           atomic.Pointer[timed]
}

// timed is what a limited becomes when somebody waits for it.
type timed struct {
	context.Context
	cancel context.CancelFunc
}

var limitedContexts = sync.Pool{New: func() any { return new(limited) }}

// limit returns a context that ends at that time, and when over is called.
func limit(parent context.Context, end time.Time) *limited {
	l := limitedContexts.Get().(*limited)
	l.Context, l.end = parent, end
	return l
}

// over ends the context.
func (l *limited) over() {
	if t := l.timed.Load(); t != nil {
		t.cancel()
		return
	}
	l.Context = nil
	limitedContexts.Put(l)
}

// Deadline implements context.Context.
func (l *limited) Deadline() (time.Time, bool) {
	if parent, ok := l.Context.Deadline(); ok && parent.Before(l.end) {
		return parent, true
	}
	return l.end, true
}

// Done implements context.Context.
func (l *limited) Done() <-chan struct{} {
	t := l.timed.Load()
	if t == nil {
		t = new(timed)
		t.Context, t.cancel = context.WithDeadline(l.Context, l.end)
		if !l.timed.CompareAndSwap(nil, t) {
			t.cancel()
			t = l.timed.Load()
		}
	}
	return t.Done()
}

// Err implements context.Context.
func (l *limited) Err() error {
	if t := l.timed.Load(); t != nil {
		return t.Err()
	}
	if err := l.Context.Err(); err != nil {
		return err
	}
	if !time.Now().Before(l.end) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context.
func (l *limited) Value(key any) any {
	if t := l.timed.Load(); t != nil {
		return t.Value(key) // the package context asks for what Done has made
	}
	return l.Context.Value(key)
}
