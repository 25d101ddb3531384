package server

import (
	"context"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"aspstate/backends"
)

// Waiting for locks where several servers use one store.

const (
	// Where the store does not tell of releases, the first waiter of a session asks again
	// after pollFirst, then in steps that double up to pollMost.
	pollFirst = 10 * time.Millisecond
	pollMost  = 160 * time.Millisecond

	// listenAgain is the pause after a lost connection.
	listenAgain = time.Second
)

// poll returns when a waiter is to ask without having been told to, and what gives the next
// such time: never, where the store tells, or there is no other server.
func (h *handover) poll() (first <-chan time.Time, again func() <-chan time.Time) {
	if !h.shared.Load() || h.told.Load() {
		return nil, nil
	}
	pause := pollFirst
	return time.After(pause), func() <-chan time.Time {
		pause = min(2*pause, pollMost)
		return time.After(pause/2 + mathrand.N(pause))
	}
}

// expect has the store tell of the session's release. It returns false if the session is free. A
// store that fails is taken for a locked session: the waiter's time runs.
func (s *Sessions) expect(ctx context.Context, key backends.Key) bool {
	r := s.route.Load()
	if r.shared == nil || !s.handover.told.Load() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	locked, err := r.shared.Expect(ctx, key)
	return locked || err != nil
}

// listen hears of other servers' releases until ctx ends.
func (s *Sessions) listen(ctx context.Context) {
	for ctx.Err() == nil {
		r := s.route.Load()
		if r.shared != nil {
			s.listenTo(ctx, r)
		}
		select {
		case <-ctx.Done():
		case <-r.over:
		}
	}
}

// listenTo hears of releases in the route's store until ctx ends or another route is in place.
func (s *Sessions) listenTo(ctx context.Context, r *route) {
	h := &s.handover
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-r.over:
			cancel()
		}
	}()
	for ctx.Err() == nil {
		err := r.shared.Listen(ctx, func() { h.told.Store(true) }, h.released)
		was := h.told.Swap(false)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errors.ErrUnsupported):
			s.log.Info("the store does not tell of locks released by other servers: requests that wait for one ask again instead", "error", err)
			return
		case was:
			s.log.Warn("the connection that tells of released locks was lost: requests that wait for one ask again instead", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenAgain):
		}
	}
}
