package memory

import (
	"bytes"
	"container/heap"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/server/seal"
)

func TestStore(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture { return open(t) })
}

// The suite holds as well where items are encrypted on their way.
func TestStoreSealed(t *testing.T) {
	k, err := seal.NewKey(bytes.Repeat([]byte{7}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	backendtest.Run(t, func(t *testing.T) backendtest.Fixture {
		return backendtest.Sealed(open(t), &backendtest.Sealing{Seal: k.Seal, Overhead: seal.Overhead,
			Open: func(application, id string, sealed []byte) ([]byte, error) {
				return seal.Open([]*seal.Key{k}, application, id, sealed)
			}})
	})
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
	se := sh.sessions.get(s.hash(key), key)
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
