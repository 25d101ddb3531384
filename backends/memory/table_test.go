package memory

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"aspstate/backends"
)

// Sessions whose hashes coincide are found all the same, in whatever order they come and go.
func TestTable(t *testing.T) {
	table, want := newTable(), map[backends.Key]*session{}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		n := random.IntN(30)
		key, hash := backends.Key{App: 1, ID: fmt.Sprint(n)}, uint64(n%7)
		if got := table.get(hash, key); got != want[key] {
			t.Fatalf("session %s is %v, want %v", key.ID, got, want[key])
		}
		if want[key] == nil {
			want[key] = &session{key: key}
			table.put(hash, want[key])
		} else {
			delete(want, key)
			table.remove(hash, key)
		}
		if len(table.byHash)+len(table.others) != len(want) {
			t.Fatalf("the table holds %d and %d sessions, want %d", len(table.byHash), len(table.others), len(want))
		}
	}
}

func TestHash(t *testing.T) {
	s := New(0)
	hashes := map[uint64]backends.Key{}
	for app := range backends.AppID(100) {
		for n := range 100 {
			key := backends.Key{App: app, ID: fmt.Sprint(n)}
			hash := s.hash(key)
			if other, taken := hashes[hash]; taken {
				t.Fatalf("%v and %v have one hash", key, other)
			}
			hashes[hash] = key
		}
	}
}
