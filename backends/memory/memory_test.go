package memory

import (
	"container/heap"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
)

func TestStore(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture { return open(t) })
}

func BenchmarkStore(b *testing.B) {
	backendtest.Bench(b, func(tb testing.TB) backendtest.Fixture { return open(tb) })
}

func open(tb testing.TB) backendtest.Fixture {
	s := New(0)
	tb.Cleanup(func() { s.Close() })
	return backendtest.Fixture{Store: s, Backdate: s.backdate}
}

func (s *Store) backdate(t testing.TB, key backends.Key, d time.Duration) {
	t.Helper()
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	se := sh.sessions[key]
	if se == nil {
		t.Fatalf("backdate: %v", backends.ErrNotFound)
		return
	}
	se.created -= d
	se.lockedAt -= d
	if se.expires != never {
		se.expires -= d
		se.due -= d
		heap.Fix(&sh.queue, int(se.place))
	}
}
