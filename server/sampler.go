package server

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Sampler counts sessions by application in the background, so that nobody who looks at the numbers makes the store count.
type Sampler struct {
	Sessions *Sessions
	Log      *slog.Logger

	latest atomic.Pointer[Sample]
}

// Sample is what a count found.
type Sample struct {
	At           time.Time // zero before the first count that succeeded
	Took         time.Duration
	Applications []backends.ApplicationInfo // by name
	Err          error                      // why the last count failed; the rest is then of the one before
}

// Total are the numbers of all applications together.
func (s *Sample) Total() (total backends.ApplicationInfo) {
	for _, a := range s.Applications {
		total.Sessions += a.Sessions
		total.Locked += a.Locked
		total.Bytes += a.Bytes
	}
	return total
}

const (
	sampleEvery = 5 * time.Second
	// sampleShare bounds what counting costs: it rests this many times as long as it takes.
	sampleShare = 50
	// Where a quota refuses sessions, counting may cost more, so that it soon takes them again.
	recountEvery  = time.Second
	recountShare  = 5
	sampleTimeout = time.Minute
)

// Latest returns the last sample; never nil.
func (s *Sampler) Latest() *Sample {
	if sample := s.latest.Load(); sample != nil {
		return sample
	}
	return new(Sample)
}

// Run counts until ctx ends.
func (s *Sampler) Run(ctx context.Context) {
	for {
		took := s.Sample(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(sampleEvery, sampleShare*took)):
		case <-s.Sessions.quotas.recount:
			select {
			case <-ctx.Done():
				return
			case <-time.After(max(recountEvery, recountShare*took)):
			}
		}
	}
}

// Sample counts now, and returns how long that took.
func (s *Sampler) Sample(ctx context.Context) (took time.Duration) {
	try, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	begun := time.Now()
	noted := s.Sessions.quotas.begin()
	applications, err := s.Sessions.Applications(try)
	took = time.Since(begun)
	if ctx.Err() != nil {
		return took
	}
	next := *s.Latest()
	if next.Err = err; err == nil {
		next = Sample{At: begun, Took: took, Applications: applications}
		s.Sessions.quotas.counted(noted, applications)
	}
	s.latest.Store(&next)
	if err != nil {
		s.Log.Debug("sessions could not be counted", "took", took, "error", err)
	}
	return took
}
