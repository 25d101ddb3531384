package sqlite

import (
	"math"
	"time"

	"aspstate/backends"
)

// Instants are Unix times in milliseconds by this process's wall clock, timeouts are milliseconds.

// never is when a session expires that does not.
const never = math.MaxInt64

// uninitialized is the bit of flags that marks a session created uninitialized.
const uninitialized = 1

// session is a row of the table. The zero value is a session that is missing.
type session struct {
	row      int64
	expires  int64
	lockDate int64
	cookie   backends.Cookie
	timeout  int64
	locked   bool
	flags    int64
	item     []byte // where it was asked for and the session is unlocked
}

// milliseconds rounds away from zero: a session never expires early, and no timeout becomes
// NeverExpires.
func milliseconds(d time.Duration) int64 {
	ms := d.Milliseconds()
	switch rest := d % time.Millisecond; {
	case rest > 0:
		ms++
	case rest < 0:
		ms--
	}
	return ms
}

func duration(ms int64) time.Duration {
	return time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
}

// expiry returns when a session of this timeout expires that is touched now: not before earliest,
// not after latest, which is what to write (rule 3 of the contract).
func expiry(now, timeout int64) (earliest, latest int64) {
	if timeout == 0 {
		return never, never
	}
	earliest = now + timeout
	return earliest, earliest + backends.Slack(duration(timeout)).Milliseconds()
}

// missing reports whether there is no session, or an expired one.
func (se *session) missing(now int64) bool { return se.row == 0 || se.expires < now }

// overdue reports whether a session touched now needs its expiry written. That it lies too late
// happens when the clock was put back.
func (se *session) overdue(now int64) bool {
	earliest, latest := expiry(now, se.timeout)
	return se.expires < earliest || se.expires > latest
}

func (se *session) marked() bool { return se.flags&uninitialized != 0 }

// next is the cookie of the session's next lock. Where the numbers end they begin again with the
// first lock's, as in p2pStateServer.
func (se *session) next() backends.Cookie {
	if se.cookie == math.MaxInt32 {
		return 2
	}
	return se.cookie + 1
}

// lockAge is how long ago the last lock was taken.
func (se *session) lockAge(now int64) time.Duration { return duration(max(0, now-se.lockDate)) }

// lockedError describes the lock.
func (se *session) lockedError(now int64, mark bool) error {
	return &backends.LockedError{
		Cookie:        se.cookie,
		Age:           se.lockAge(now),
		Since:         time.UnixMilli(se.lockDate),
		Uninitialized: mark,
	}
}

// refusal is why the condition forbids a change of the session, or nil.
func (se *session) refusal(now int64, cookie backends.Cookie, cond backends.Condition) error {
	switch {
	case cond == backends.IfMissing:
		return backends.ErrExists
	case cond == backends.IfCookie && cookie != se.cookie:
		return backends.ErrConflict
	case se.locked && cookie != se.cookie:
		return se.lockedError(now, false)
	default:
		return nil
	}
}

// found is the answer of Get: the item or the lock.
func (se *session) found(now int64, mark bool, item []byte) (backends.Item, error) {
	if se.locked {
		return backends.Item{}, se.lockedError(now, mark)
	}
	return backends.Item{
		Data:          item,
		Timeout:       duration(se.timeout),
		LockCookie:    se.cookie,
		LockAge:       se.lockAge(now),
		Uninitialized: mark,
	}, nil
}

// The look-ups. Both find a session by its key; the second reads the item of an unlocked one.
const (
	findSession = `SELECT rowid, expires, lock_date, lock_cookie, timeout, locked, flags
FROM sessions WHERE app_id = ?1 AND session_id = ?2`

	findItem = `SELECT rowid, expires, lock_date, lock_cookie, timeout, locked, flags, CASE WHEN locked THEN NULL ELSE item END
FROM sessions WHERE app_id = ?1 AND session_id = ?2`
)

// find runs one of the look-ups.
func find(s *stmt, key backends.Key, item bool) (se session, err error) {
	defer s.reset()
	s.bindInt(1, int64(key.App))
	bindBlob(s, 2, key.ID)
	row, err := s.step()
	if err != nil || !row {
		return session{}, err
	}
	se = session{
		row:      s.int(0),
		expires:  s.int(1),
		lockDate: s.int(2),
		cookie:   backends.Cookie(s.int(3)),
		timeout:  s.int(4),
		locked:   s.int(5) != 0,
		flags:    s.int(6),
	}
	if item && !se.locked {
		se.item, err = s.blob(7)
	}
	return se, err
}
