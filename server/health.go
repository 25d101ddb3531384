package server

import (
	"context"
	"time"

	"aspstate/backends"
)

// Failing returns for how long the store has been failing, and its last failure; 0 and nil while it works.
func (s *Sessions) Failing() (time.Duration, error) {
	since := s.outage.since.Load()
	if since == 0 {
		return 0, nil
	}
	var last error
	if err := s.outage.last.Load(); err != nil {
		last = *err
	}
	return max(1, time.Since(time.Unix(0, since))), last
}

// WorkLeft returns how many releases and renewals a failing store has left behind.
func (s *Sessions) WorkLeft() int {
	s.later.mu.Lock()
	defer s.later.mu.Unlock()
	return len(s.later.tasks) + len(s.later.renewals)
}

// Draining reports whether the process is about to end.
func (s *Sessions) Draining() bool {
	select {
	case <-s.handover.draining:
		return true
	default:
		return false
	}
}

// probeEvery is how often the store is asked for a sign of life while nobody else asks it.
const probeEvery = 5 * time.Second

// Probe asks the store for a sign of life where requests would not show how it does, because there are none, until ctx
// ends. A server that is taken out of service because its store fails would otherwise never hear that it works again.
func (s *Sessions) Probe(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	var before uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked := s.Metrics.asked()
		if asked == before {
			s.ping(ctx)
		}
		before = asked
	}
}

func (s *Sessions) ping(ctx context.Context) {
	try, cancel := context.WithTimeout(ctx, probeEvery)
	defer cancel()
	begun := time.Now()
	err := s.Store().Ping(try)
	if ctx.Err() != nil {
		return
	}
	s.Metrics.statement(stmtPing, time.Since(begun), err)
	if backends.IsAnswer(err) {
		s.outage.worked()
	} else {
		s.outage.failed(stmtPing.String(), err)
	}
}
