package memory

import (
	"container/heap"
	"context"
	"time"
)

// portion is how many sessions DeleteExpired looks at under a shard's lock before it lets
// other requests go first: some tens of microseconds.
const portion = 64

// queue is a heap of a shard's sessions, ordered by when to look at them (due). A renewal, or a
// longer timeout, leaves a session where it is; when its turn comes it is found alive and put back for
// its new expiry. So a renewal costs nothing here, a sweep looks only at what is due, and a live
// session is looked at about once per timeout.
type queue []*session

// Len, Less, Swap, Push and Pop implement heap.Interface.

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = int32(i), int32(j)
}

func (q *queue) Push(x any) {
	se := x.(*session)
	se.place = int32(len(*q))
	*q = append(*q, se)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	se := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return se
}

// DeleteExpired implements backends.Store. It holds one shard's lock at a time, for a portion
// of sessions each, and looks at no session that is not due. It also forgets applications that
// have had no sessions and were not asked for in a day.
func (s *Store) DeleteExpired(ctx context.Context, limit int) (int, error) {
	deleted := 0
	first := s.sweep.Load()
	for i := range uint32(shardCount) {
		at := (first + i) % shardCount
		sh := &s.shards[at]
		for done := false; !done; {
			if deleted == limit {
				s.sweep.Store(at)
				return deleted, nil
			}
			var n int
			sh.mu.Lock()
			err := s.ready(ctx, "delete expired")
			if err == nil {
				n, done = s.sweepPortion(sh, s.now(), limit-deleted)
			}
			sh.mu.Unlock()
			if err != nil {
				s.sweep.Store(at)
				return deleted, err
			}
			deleted += n
		}
	}
	return deleted, s.forgetApplications(ctx)
}

// sweepPortion deletes expired sessions of a locked shard, at most limit, and looks at a
// portion at most. It reports whether the shard has no more that are due.
func (s *Store) sweepPortion(sh *shard, now time.Duration, limit int) (deleted int, done bool) {
	for range portion {
		if len(sh.queue) == 0 || sh.queue[0].due >= now {
			return deleted, true
		}
		se := sh.queue[0]
		if se.expires >= now {
			se.due = se.expires
			heap.Fix(&sh.queue, 0)
			continue
		}
		if deleted == limit {
			return deleted, false
		}
		s.drop(sh, se)
		deleted++
	}
	return deleted, false
}
