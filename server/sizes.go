package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"aspstate/backends"
)

const (
	// largeItem is the size from which on an item's memory is set aside before the store is asked for it. Those of
	// many requests at once are many times as much as limits.bodiesInFlight.
	largeItem = 256 << 10
	// maxLarge bounds the sessions whose sizes are remembered.
	maxLarge = 10_000
)

// sizes remembers which sessions are large, and what memory their items take on their way out: how large one is, the store says no earlier
// than with the item.
type sizes struct {
	known atomic.Int64 // len(large)
	mu    sync.Mutex
	large map[backends.Key]int64
}

// of returns the size that the session had when it was last read or written here, or 0.
func (z *sizes) of(key backends.Key) int64 {
	if z.known.Load() == 0 {
		return 0
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.large[key]
}

// note notes the item that the session has in the store.
func (z *sizes) note(key backends.Key, kept []byte) {
	size := weight(kept)
	if size < largeItem && z.known.Load() == 0 {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	switch {
	case size < largeItem:
		delete(z.large, key)
	case z.large == nil:
		z.large = map[backends.Key]int64{key: size}
	default:
		for other := range z.large { // any one
			if len(z.large) >= maxLarge {
				delete(z.large, other)
			}
			break
		}
		z.large[key] = size
	}
	z.known.Store(int64(len(z.large)))
}

var errNoMemory = errors.New("limits.bodiesInFlight is used up")

// holdFor sets memory aside for the item of the session that the store is about to be asked for. While others wait for memory, small
// ones wait, too.
func (s *Sessions) holdFor(ctx context.Context, req Request, key backends.Key) error {
	if req.Conn == nil {
		return nil
	}
	size := s.sizes.of(key)
	if err := req.Conn.Hold(ctx, req.Arrived.Add(s.Budget()), size, size); err != nil {
		return fmt.Errorf("%w: %w: %w", errNoMemory, err, backends.ErrNotApplied)
	}
	return nil
}

// held notes what has come of it.
func (s *Sessions) held(req Request, key backends.Key, item backends.Item, err error) {
	if err == nil {
		s.sizes.note(key, item.Data)
	} else if req.Conn != nil {
		req.Conn.Free()
	}
}
