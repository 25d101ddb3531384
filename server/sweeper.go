package server

import (
	"context"
	"log/slog"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"
)

// Sweeper deletes expired sessions from a store at intervals. What has expired is missing
// at once without it; the sweeper gives the space back.
type Sweeper struct {
	// Store is what DeleteExpired is asked of: a store, or the Sessions over it.
	Store interface {
		DeleteExpired(ctx context.Context, limit int) (int, error)
	}
	Log *slog.Logger

	interval atomic.Int64 // time.Duration
	batch    atomic.Int64
	swept    atomic.Int64
	done     atomic.Int64 // when the last sweep that succeeded ended, in Unix nanoseconds
	fault    atomic.Pointer[error]
	faults   atomic.Uint64
}

// sweepTimeout ends one batch of a store that hangs.
const sweepTimeout = 30 * time.Second

// Configure sets the time between sweeps and how many sessions one call of
// DeleteExpired may delete. It applies from the next sweep on.
func (s *Sweeper) Configure(interval time.Duration, batch int) {
	s.interval.Store(int64(interval))
	s.batch.Store(int64(batch))
}

// Swept returns how many sessions were deleted since the start.
func (s *Sweeper) Swept() int64 { return s.swept.Load() }

// Interval returns the time between sweeps.
func (s *Sweeper) Interval() time.Duration { return time.Duration(s.interval.Load()) }

// Done returns when the last sweep that succeeded ended, zero if none has yet, and why a later one failed.
func (s *Sweeper) Done() (last time.Time, err error) {
	if done := s.done.Load(); done != 0 {
		last = time.Unix(0, done)
	}
	if fault := s.fault.Load(); fault != nil {
		err = *fault
	}
	return last, err
}

// Faults returns how many sweeps have failed since the start.
func (s *Sweeper) Faults() uint64 { return s.faults.Load() }

// Run sweeps until ctx ends. The first sweep comes at a random moment within
// one interval, so that servers started together do not sweep together.
func (s *Sweeper) Run(ctx context.Context) {
	wait := mathrand.N(time.Duration(s.interval.Load()))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		s.sweep(ctx)
		wait = time.Duration(s.interval.Load())
	}
}

// sweep deletes in batches until a batch is not full.
func (s *Sweeper) sweep(ctx context.Context) {
	begun, total := time.Now(), 0
	for ctx.Err() == nil {
		batch := int(s.batch.Load())
		try, cancel := context.WithTimeout(ctx, sweepTimeout)
		n, err := s.Store.DeleteExpired(try, batch)
		cancel()
		total += n
		s.swept.Add(int64(n))
		switch {
		case err == nil && n < batch:
			s.done.Store(time.Now().UnixNano())
			s.fault.Store(nil)
		case err != nil && ctx.Err() == nil:
			s.faults.Add(1)
			s.fault.Store(&err)
			s.Log.Warn("sweeping expired sessions failed; the next sweep goes on", "error", err)
		}
		if err != nil || n < batch {
			break
		}
	}
	if total > 0 {
		s.Log.Info("swept expired sessions", "sessions", total, "took", time.Since(begun).Round(time.Millisecond))
	}
}
