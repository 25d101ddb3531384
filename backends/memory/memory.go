// Package memory is the session-state store of mode="StateServer": sessions live
// in this process, as in aspnet_state.exe, and end with it.
//
// Sessions are spread over shards by a hash of their key, each with a lock of its own.
// Expiry is exact and the clock monotonic. Every outcome is known, a call
// that fails has done nothing, so request tokens need no history.
package memory

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"aspstate/backends"
)

const (
	// shardCount is many more than processors, so that two requests rarely meet.
	shardCount = 256

	// overhead is what a session is counted with beyond its ID and data: itself,
	// its map slot and its place in the queue, at their usual fill.
	overhead = 200
)

var (
	_ backends.Store   = (*Store)(nil)
	_ backends.Movable = (*Store)(nil)
)

// Store keeps sessions in memory. Make one with New.
type Store struct {
	start    time.Time // the store's clock counts from here
	seed     maphash.Seed
	maxBytes int64
	full     error
	bytes    atomic.Int64
	closed   atomic.Bool
	sweep    atomic.Uint32 // the shard where DeleteExpired goes on
	apps     applications
	scan     scan
	moving   sync.Mutex // over changes of moves
	moves    atomic.Pointer[backends.Moves]
	shards   [shardCount]shard
}

// shard is a part of the sessions under one lock.
type shard struct {
	mu       sync.Mutex
	sessions table
	queue    queue                  // all of them
	apps     map[backends.AppID]int // how many sessions each application has here
	arrivals map[backends.Key]struct{}
}

// never is when a session with NeverExpires expires.
const never = time.Duration(math.MaxInt64)

// session is kept small: there are millions. Instants are on the store's clock.
type session struct {
	key           backends.Key
	data          string // the item; as bytes it would take 8 more
	timeout       time.Duration
	expires       time.Duration
	due           time.Duration // when the queue looks at it: never after expires
	created       time.Duration
	lockedAt      time.Duration
	cookie        backends.Cookie
	place         int32 // in the queue
	locked        bool
	uninitialized bool
}

// New returns an empty store. maxBytes bounds the sum of all sessions' IDs and
// data, and 200 bytes for each; 0 is no bound. A write that would pass the bound is
// ErrFull. Nothing live is evicted: to make room, such a write only drops expired sessions of its shard.
func New(maxBytes int64) *Store {
	s := &Store{
		start:    time.Now(),
		seed:     maphash.MakeSeed(),
		maxBytes: maxBytes,
		full:     fmt.Errorf("memory: maxBytes (%d) is reached, raise it: %w", maxBytes, backends.ErrFull),
		apps:     newApplications(),
	}
	s.moves.Store(&backends.Moves{})
	for i := range s.shards {
		s.shards[i].sessions = newTable()
		s.shards[i].apps = map[backends.AppID]int{}
	}
	return s
}

// now is the store's clock.
func (s *Store) now() time.Duration { return time.Since(s.start) }

// expiry is when a session ends that is touched now. Far timeouts do not overflow.
func expiry(now, timeout time.Duration) time.Duration {
	if timeout == backends.NeverExpires || timeout > never-now {
		return never
	}
	return now + timeout
}

var errClosed = errors.New("store is closed")

// open is nil if the store is open and the call is not over.
func (s *Store) open(ctx context.Context, op string) error {
	err := ctx.Err()
	if err == nil && s.closed.Load() {
		err = errClosed
	}
	if err != nil {
		return fmt.Errorf("memory: %s: %w: %w", op, err, backends.ErrNotApplied)
	}
	return nil
}

// ready is nil if the store may go on with an operation.
func (s *Store) ready(ctx context.Context, op string) error {
	if err := s.open(ctx, op); err != nil {
		return err
	}
	if s.moves.Load().Left() {
		return fmt.Errorf("memory: %s: %w", op, backends.ErrMoved)
	}
	return nil
}

// shard returns the session's shard.
func (s *Store) shard(key backends.Key) *shard { return &s.shards[s.hash(key)%shardCount] }

// lock locks the session's shard and reads the clock. The caller unlocks.
func (s *Store) lock(ctx context.Context, op string, key backends.Key) (*shard, time.Duration, error) {
	sh := s.shard(key)
	sh.mu.Lock()
	// Close and Leave set their marks before they come by the shards.
	if err := s.ready(ctx, op); err != nil {
		sh.mu.Unlock()
		return nil, 0, err
	}
	return sh, s.now(), nil
}

// find returns the session, renewed, or ErrNotFound. Under the condition IfCookie another cookie than the
// session's last is ErrConflict, and the session stays as it is.
func (s *Store) find(sh *shard, key backends.Key, now time.Duration, cookie backends.Cookie, cond backends.Condition) (*session, error) {
	se := s.look(sh, key, now)
	switch {
	case se == nil:
		return nil, backends.ErrNotFound
	case cond == backends.IfCookie && cookie != se.cookie:
		return nil, backends.ErrConflict
	}
	se.expires = expiry(now, se.timeout)
	return se, nil
}

// look returns the session as it is, nil if it is missing.
func (s *Store) look(sh *shard, key backends.Key, now time.Duration) *session {
	se := sh.sessions.get(s.hash(key), key)
	if se != nil && se.expires < now {
		s.drop(sh, se)
		se = nil
	}
	return se
}

// hasten has the queue look at a session in time whose expiry was put forward.
func (sh *shard) hasten(se *session) {
	if se.expires < se.due {
		se.due = se.expires
		heap.Fix(&sh.queue, int(se.place))
	}
}

// drop deletes a session.
func (s *Store) drop(sh *shard, se *session) {
	heap.Remove(&sh.queue, int(se.place))
	sh.sessions.remove(s.hash(se.key), se.key)
	s.bytes.Add(-se.size())
	if sh.apps[se.key.App]--; sh.apps[se.key.App] == 0 {
		delete(sh.apps, se.key.App)
	}
}

// item is the session's data, which nobody writes to: callers hold them.
func (se *session) item() []byte { return unsafe.Slice(unsafe.StringData(se.data), len(se.data)) }

func (se *session) size() int64 { return int64(len(se.key.ID) + len(se.data) + overhead) }

// reserve counts n more bytes (or fewer), unless they would pass the bound. It never passes it,
// not for a moment either: another write would be refused for it.
func (s *Store) reserve(n int64) bool {
	for {
		used := s.bytes.Load()
		if s.maxBytes > 0 && used+n > s.maxBytes {
			return false
		}
		if s.bytes.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// makeRoom is reserve, and drops expired sessions of the shard where that helps.
func (s *Store) makeRoom(sh *shard, n int64, now time.Duration) bool {
	if s.reserve(n) {
		return true
	}
	deleted, _ := s.sweepPortion(sh, now, portion)
	return deleted > 0 && s.reserve(n)
}

// takeMark clears the uninitialized mark and reports whether it was set.
func (se *session) takeMark() bool {
	mark := se.uninitialized
	se.uninitialized = false
	return mark
}

func (se *session) lockedError(now time.Duration, mark bool) error {
	age := now - se.lockedAt
	return &backends.LockedError{Cookie: se.cookie, Age: age, Since: time.Now().Add(-age), Uninitialized: mark}
}

// Get implements backends.Store.
func (s *Store) Get(ctx context.Context, key backends.Key, _ backends.Token) (backends.Item, error) {
	return s.get(ctx, "get", key, false)
}

// GetExclusive implements backends.Store.
func (s *Store) GetExclusive(ctx context.Context, key backends.Key, _ backends.Token) (backends.Item, error) {
	return s.get(ctx, "get exclusive", key, true)
}

func (s *Store) get(ctx context.Context, op string, key backends.Key, exclusive bool) (backends.Item, error) {
	sh, now, err := s.lock(ctx, op, key)
	if err != nil {
		return backends.Item{}, err
	}
	defer sh.mu.Unlock()
	se := s.look(sh, key, now)
	if se == nil {
		return backends.Item{}, backends.ErrNotFound
	}
	unrenewed := se.expires
	if se.expires = expiry(now, se.timeout); se.expires == unrenewed {
		unrenewed = 0
	}
	mark := se.takeMark()
	if se.locked {
		return backends.Item{}, se.lockedError(now, mark)
	}
	if exclusive {
		se.locked = true
		se.lockedAt = now
		se.cookie++
	}
	return backends.Item{Data: se.item(), Timeout: se.timeout, LockCookie: se.cookie, LockAge: now - se.lockedAt, Uninitialized: mark, Unrenewed: backends.Expiry(unrenewed)}, nil
}

// Release implements backends.Store.
func (s *Store) Release(ctx context.Context, key backends.Key, _ backends.Token, cookie backends.Cookie, cond backends.Condition) (bool, error) {
	sh, now, err := s.lock(ctx, "release", key)
	if err != nil {
		return false, err
	}
	defer sh.mu.Unlock()
	se, err := s.find(sh, key, now, cookie, cond)
	if err != nil {
		return false, err
	}
	mark := cond == backends.IfUnlocked && se.takeMark()
	if se.locked && cookie != se.cookie {
		return false, se.lockedError(now, mark)
	}
	se.locked = false
	return mark, nil
}

// Set implements backends.Store. The data are copied.
func (s *Store) Set(ctx context.Context, key backends.Key, _ backends.Token, w backends.Write) error {
	data := string(w.Data) // not under the lock
	sh, now, err := s.lock(ctx, "set", key)
	if err != nil {
		return err
	}
	defer sh.mu.Unlock()
	se, err := s.find(sh, key, now, w.LockCookie, w.Condition)
	switch {
	case err == backends.ErrNotFound && w.Condition != backends.IfCookie:
		return s.create(sh, now, key, data, w)
	case err != nil:
		return err
	case w.Condition == backends.IfMissing:
		return backends.ErrExists
	case se.locked && w.LockCookie != se.cookie:
		return se.lockedError(now, false)
	}
	if !s.makeRoom(sh, int64(len(data)-len(se.data)), now) {
		return s.full
	}
	se.data = data
	se.locked = false
	if w.Timeout != se.timeout {
		se.timeout = w.Timeout
		se.uninitialized = se.uninitialized && w.Condition == backends.IfCookie
		se.expires = expiry(now, w.Timeout)
		sh.hasten(se)
	}
	return nil
}

func (s *Store) create(sh *shard, now time.Duration, key backends.Key, data string, w backends.Write) error {
	return s.add(sh, now, &session{
		key:           key,
		data:          data,
		timeout:       w.Timeout,
		expires:       expiry(now, w.Timeout),
		created:       now,
		lockedAt:      now,
		cookie:        1,
		uninitialized: w.Uninitialized,
	})
}

// add puts a new session in its shard.
func (s *Store) add(sh *shard, now time.Duration, se *session) error {
	if !s.makeRoom(sh, se.size(), now) {
		return s.full
	}
	se.key.ID = strings.Clone(se.key.ID) // it may be part of something larger
	sh.sessions.put(s.hash(se.key), se)
	se.due = se.expires
	heap.Push(&sh.queue, se)
	sh.apps[se.key.App]++
	return nil
}

// Remove implements backends.Store.
func (s *Store) Remove(ctx context.Context, key backends.Key, _ backends.Token, cookie backends.Cookie, cond backends.Condition) error {
	sh, now, err := s.lock(ctx, "remove", key)
	if err != nil {
		return err
	}
	defer sh.mu.Unlock()
	se, err := s.find(sh, key, now, cookie, cond)
	if err != nil {
		return err
	}
	if se.locked && cookie != se.cookie {
		return se.lockedError(now, false)
	}
	s.drop(sh, se)
	return nil
}

// ResetTimeout implements backends.Store.
func (s *Store) ResetTimeout(ctx context.Context, key backends.Key) error {
	sh, now, err := s.lock(ctx, "reset timeout", key)
	if err != nil {
		return err
	}
	defer sh.mu.Unlock()
	_, err = s.find(sh, key, now, backends.NoCookie, backends.IfUnlocked)
	return err
}

// Unread implements backends.Store.
func (s *Store) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	sh, now, err := s.lock(ctx, "unread", key)
	if err != nil {
		return err
	}
	defer sh.mu.Unlock()
	se := s.look(sh, key, now)
	if se == nil {
		return nil
	}
	se.locked = se.locked && item.LockCookie != se.cookie
	if item.Unrenewed != 0 && se.data == string(item.Data) {
		se.expires = min(se.expires, time.Duration(item.Unrenewed))
		sh.hasten(se)
	}
	return nil
}

// Ping implements backends.Store.
func (s *Store) Ping(ctx context.Context) error { return s.open(ctx, "ping") }

// Close forgets all sessions. It may be called again.
func (s *Store) Close() error {
	s.closed.Store(true)
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sh.sessions, sh.queue, sh.apps, sh.arrivals = table{}, nil, nil, nil
		sh.mu.Unlock()
	}
	return nil
}
