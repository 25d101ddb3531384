package memory

import (
	"hash/maphash"

	"aspstate/backends"
)

// table finds the sessions of a shard. Its map goes by a hash of the key, which takes half the room of the key itself in each of
// the map's slots, of which many are empty.
type table struct {
	byHash map[uint64]*session
	others map[backends.Key]*session // whose hash was another's already: as good as never any
}

func newTable() table { return table{byHash: make(map[uint64]*session)} }

func (t *table) get(hash uint64, key backends.Key) *session {
	if se := t.byHash[hash]; se != nil && se.key == key {
		return se
	}
	return t.others[key]
}

// put adds a session whose key is not here.
func (t *table) put(hash uint64, se *session) {
	switch {
	case t.byHash[hash] == nil:
		t.byHash[hash] = se
	case t.others == nil:
		t.others = map[backends.Key]*session{se.key: se}
	default:
		t.others[se.key] = se
	}
}

func (t *table) remove(hash uint64, key backends.Key) {
	if se := t.byHash[hash]; se != nil && se.key == key {
		delete(t.byHash, hash)
	} else {
		delete(t.others, key)
	}
}

// hash is a different one for each key, but for a coincidence of 64 bits. Applications share session IDs, since browsers
// send one cookie to all of a site.
func (s *Store) hash(key backends.Key) uint64 {
	return maphash.String(s.seed, key.ID) + uint64(key.App)*0x9E3779B97F4A7C15
}
