package memory

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"aspstate/backends"
)

// Inspect implements backends.Inspector.
func (s *Store) Inspect(ctx context.Context, key backends.Key) (backends.Session, error) {
	sh := s.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if err := s.open(ctx, "inspect"); err != nil {
		return backends.Session{}, err
	}
	now := s.now()
	se := sh.sessions.get(s.hash(key), key)
	if se == nil || se.expires < now {
		return backends.Session{}, backends.ErrNotFound
	}
	return s.view(se, now), nil
}

func (s *Store) view(se *session, now time.Duration) backends.Session {
	v := backends.Session{
		Key:           se.key,
		Data:          se.item(),
		Size:          len(se.data),
		Created:       s.start.Add(se.created),
		Timeout:       se.timeout,
		LockCookie:    se.cookie,
		LockAge:       now - se.lockedAt,
		Locked:        se.locked,
		Uninitialized: se.uninitialized,
	}
	if se.timeout != backends.NeverExpires {
		v.Left = se.expires - now
	}
	return v
}

// each calls f for every living session, a shard at a time, under its lock.
func (s *Store) each(ctx context.Context, what string, f func(se *session, now time.Duration)) error {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		err := s.open(ctx, what)
		now := s.now()
		for _, se := range sh.queue {
			if err == nil && se.expires >= now {
				f(se, now)
			}
		}
		sh.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// List implements backends.Inspector.
func (s *Store) List(ctx context.Context, q backends.Query) ([]backends.Session, error) {
	if q.Order == backends.ByKey {
		return s.listByKey(ctx, q)
	}
	chosen := smallest[backends.Session]{n: q.Limit, compare: func(a, b backends.Session) int {
		return cmp.Or(before(q.Order, a, b), a.Key.Compare(b.Key))
	}}
	err := s.each(ctx, "list", func(se *session, now time.Duration) {
		if q.App != nil && se.key.App != *q.App || !strings.HasPrefix(se.key.ID, q.ID) ||
			!se.locked && (q.Locked || q.Order == backends.ByLockAge) {
			return
		}
		v := s.view(se, now)
		if !q.Data {
			v.Data = nil
		}
		chosen.add(v)
	})
	if err != nil {
		return nil, err
	}
	return chosen.all(), nil
}

// before compares two sessions by an order, but for ByKey.
func before(order backends.Order, a, b backends.Session) int {
	switch order {
	case backends.BySize:
		return cmp.Compare(b.Size, a.Size)
	case backends.ByLockAge:
		return cmp.Compare(b.LockAge, a.LockAge)
	default:
		return a.Created.Compare(b.Created)
	}
}

// smallest keeps the n smallest of what is added.
type smallest[T any] struct {
	n       int
	compare func(a, b T) int
	items   []T
	cut     bool // there were more, and the n-th is the largest that counts
}

func (c *smallest[T]) add(item T) {
	if c.cut && c.compare(item, c.items[c.n-1]) >= 0 {
		return
	}
	if c.items = append(c.items, item); len(c.items) >= 2*c.n {
		c.all()
	}
}

// all returns them in order.
func (c *smallest[T]) all() []T {
	slices.SortFunc(c.items, c.compare)
	if len(c.items) > c.n {
		clear(c.items[c.n:])
		c.items, c.cut = c.items[:c.n], true
	}
	return c.items
}

// scan is a part of all keys in their order, from first on, for who reads one page after the other. So a scan of
// everything sorts and looks at all sessions only so many times (scanParts), and not once for each page.
type scan struct {
	mu         sync.Mutex
	first, end backends.Bound
	keys       []backends.Key
	last       bool // no others come before end
	taken      time.Duration
}

const (
	scanParts   = 64
	scanPart    = 4096             // keys at least
	scanCurrent = 10 * time.Second // for how long a part is used
)

func (s *Store) listByKey(ctx context.Context, q backends.Query) ([]backends.Session, error) {
	var found []backends.Session
	first, end := q.Range()
	afresh := q.After == backends.Key{}
	for {
		keys, last, err := s.keys(ctx, first, end, q.Limit, afresh)
		if err != nil {
			return nil, err
		}
		for _, key := range keys {
			if !strings.HasPrefix(key.ID, q.ID) {
				continue
			}
			v, err := s.Inspect(ctx, key)
			if err != nil && err != backends.ErrNotFound {
				return nil, err
			}
			if err != nil || q.Locked && !v.Locked {
				continue
			}
			if !q.Data {
				v.Data = nil
			}
			if found = append(found, v); len(found) == q.Limit {
				return found, nil
			}
		}
		if last {
			return found, nil
		}
		first, afresh = behind(keys[len(keys)-1]), false
	}
}

func behind(key backends.Key) backends.Bound {
	return backends.Bound{App: int64(key.App), ID: key.ID + "\x00"}
}

func bound(key backends.Key) backends.Bound { return backends.Bound{App: int64(key.App), ID: key.ID} }

// keys returns keys from first on, all those before end if last is set. There is one at least if it is not.
func (s *Store) keys(ctx context.Context, first, end backends.Bound, limit int, afresh bool) (_ []backends.Key, last bool, err error) {
	c := &s.scan
	c.mu.Lock()
	defer c.mu.Unlock()
	if !afresh && end == c.end && first.Compare(c.first) >= 0 && s.now()-c.taken < scanCurrent {
		from, _ := slices.BinarySearchFunc(c.keys, first, func(key backends.Key, b backends.Bound) int { return bound(key).Compare(b) })
		if from < len(c.keys) || c.last {
			return c.keys[from:], c.last, nil
		}
	}
	count := 0
	for i := range s.shards {
		s.shards[i].mu.Lock()
		count += len(s.shards[i].queue)
		s.shards[i].mu.Unlock()
	}
	taken := s.now()
	chosen := smallest[backends.Key]{n: max(limit, scanPart, count/scanParts), compare: backends.Key.Compare}
	err = s.each(ctx, "list", func(se *session, _ time.Duration) {
		if at := bound(se.key); at.Compare(first) >= 0 && at.Compare(end) < 0 {
			chosen.add(se.key)
		}
	})
	if err != nil {
		return nil, false, err
	}
	c.first, c.end, c.keys, c.taken = first, end, chosen.all(), taken
	c.last = !chosen.cut
	return c.keys, c.last, nil
}

// Applications implements backends.Inspector.
func (s *Store) Applications(ctx context.Context) ([]backends.ApplicationInfo, error) {
	infos, err := s.Names(ctx)
	if err != nil {
		return nil, err
	}
	byID := make(map[backends.AppID]*backends.ApplicationInfo, len(infos))
	for i := range infos {
		byID[infos[i].ID] = &infos[i]
	}
	err = s.each(ctx, "applications", func(se *session, _ time.Duration) {
		info := byID[se.key.App]
		if info == nil {
			return
		}
		info.Sessions++
		info.Bytes += int64(len(se.data))
		if se.locked {
			info.Locked++
		}
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// Names implements backends.Namer.
func (s *Store) Names(ctx context.Context) ([]backends.ApplicationInfo, error) {
	if err := s.open(ctx, "applications"); err != nil {
		return nil, err
	}
	s.apps.mu.Lock()
	defer s.apps.mu.Unlock()
	infos := make([]backends.ApplicationInfo, 0, len(s.apps.byName))
	for name, app := range s.apps.byName {
		infos = append(infos, backends.ApplicationInfo{ID: app.id, Name: name})
	}
	slices.SortFunc(infos, func(a, b backends.ApplicationInfo) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}
