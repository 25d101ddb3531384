package sqlserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"aspstate/backends"
)

const (
	// longItem is from where on an item is in SessionItemLong.
	longItem = 7001
	// never is the Timeout of a session that never expires.
	never = math.MaxInt32
)

// What a batch did.
const (
	refused = 0
	done    = 1
	late    = 2 // the slot's row is missing, or the request was applied or called off: nothing was changed
)

// Whether a batch answers with the item.
const (
	noItem = iota
	itemIfUnlocked
	anyItem
)

// row is a session as a batch answers with it.
type row struct {
	done     int
	now      time.Time
	found    bool // a row that the key takes for the session's
	exact    bool // and that is the session's
	expires  time.Time
	timeout  int64 // minutes
	locked   bool
	cookie   backends.Cookie
	lockDate time.Time
	flags    int
	data     []byte
	before   time.Time // when it expired before the batch renewed it; zero where the batch does not tell
}

func (s *Store) row(ctx context.Context, item int, batch, declared string, args ...any) (row, error) {
	return query(ctx, s, batch, declared+", @item int", append(args, sql.Named("item", item)), scanRow)
}

func scanRow(rows *sql.Rows) (r row, err error) {
	var expires, lockDate, before sql.NullTime
	var timeout, cookie, flags, exact sql.NullInt64
	var locked sql.NullBool
	var short, long []byte
	err = rows.Scan(&r.done, &r.now, &exact, &expires, &timeout, &locked, &cookie, &lockDate, &flags, &short, &long, &before)
	r.found, r.exact = expires.Valid, exact.Int64 == 1
	r.expires, r.timeout, r.locked, r.lockDate = expires.Time, timeout.Int64, locked.Bool, lockDate.Time
	r.cookie, r.flags = backends.Cookie(cookie.Int64), int(flags.Int64)
	r.before = before.Time
	r.data = short
	if long != nil { // where both are set, web servers take this one
		r.data = long
	}
	return r, err
}

// alive reports whether there is a session. One that has expired by the server's clock is not missing yet: it may be
// renewed by a call that came earlier.
func (r *row) alive() bool { return r.exact && !r.expires.Before(r.now) }

func (r *row) dead() bool { return r.exact && r.expires.Before(r.now) }

// due reports whether a call that finds the session has to renew it.
func (r *row) due() bool {
	t := duration(r.timeout)
	return t != backends.NeverExpires && r.expires.Before(r.now.Add(t))
}

func (r *row) marked() bool { return r.flags&1 == 1 }

// reports is whether the batch cleared the mark.
func (r *row) reports() bool { return r.flags&2 == 2 }

func (r *row) lockedError(mark bool) error {
	return &backends.LockedError{Cookie: r.cookie, Age: r.lockAge(), Since: r.lockDate, Uninitialized: mark}
}

func (r *row) lockAge() time.Duration { return max(0, r.now.Sub(r.lockDate)) }

func (r *row) item(mark bool) (backends.Item, error) {
	if len(r.data) == 0 {
		return backends.Item{}, fmt.Errorf("the session has no item: %w", backends.ErrPermanent)
	}
	item := backends.Item{Data: r.data, Timeout: duration(r.timeout), LockCookie: r.cookie, LockAge: r.lockAge(), Uninitialized: mark}
	if !r.before.IsZero() && r.before.Before(r.expires) && item.Timeout != backends.NeverExpires {
		item.Unrenewed = backends.Expiry(r.before.UnixMicro())
	}
	return item, nil
}

// minutes is a timeout as the column Timeout has it.
func minutes(timeout time.Duration) int64 {
	switch {
	case timeout == backends.NeverExpires:
		return never
	case timeout < 0:
		return -1
	}
	return int64((timeout-1)/time.Minute) + 1
}

// duration is a Timeout as the contract has it. What is too long for it never expires.
func duration(minutes int64) time.Duration {
	if minutes > int64(math.MaxInt64/time.Minute) {
		return backends.NeverExpires
	}
	return time.Duration(minutes) * time.Minute
}

const keyDeclared = "@id nvarchar(88)"

func keyArg(key backends.Key) sql.NamedArg { return sql.Named("id", key.ID+key.App.Suffix()) }

func wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("sqlserver: %s: %w", operation, err)
}

// read returns the session as it is.
func (s *Store) read(ctx context.Context, key backends.Key, item int) (row, error) {
	return s.row(ctx, item, readSQL, keyDeclared, keyArg(key))
}

// repeated is the item that a request got whose answer was lost, also in a database that was left since.
func (s *Store) repeated(ctx context.Context, key backends.Key, o outcome) (backends.Item, error) {
	r, err := s.row(ctx, anyItem, rereadSQL, keyDeclared, keyArg(key))
	if err != nil {
		return backends.Item{}, err
	}
	if !r.alive() {
		return backends.Item{}, backends.ErrNotFound
	}
	r.cookie = o.cookie
	return r.item(o.mark)
}

// touch renews the session, and clears its mark if clears is set. With onlyLocked it leaves an unlocked session alone.
func (s *Store) touch(ctx context.Context, key backends.Key, tok backends.Token, item int, clears, onlyLocked bool) (row, error) {
	const declared = keyDeclared + ", @clears bit, @onlyLocked bit"
	args := []any{keyArg(key), sql.Named("clears", clears), sql.Named("onlyLocked", onlyLocked)}
	if clears {
		return s.change(ctx, tok, item, touchSQL, declared, args...)
	}
	return s.row(ctx, item, touchSQL, declared+", @slot binary(16), @seq bigint", append(args, sql.Named("slot", tok[:]), sql.Named("seq", int64(0)))...)
}

// settle does for a session what every call does that finds it: renews it and, if clears is set, clears its mark, which it reports. An
// expired one it deletes. It returns the session as it was left, or what stands in its place.
func (s *Store) settle(ctx context.Context, key backends.Key, tok backends.Token, r row, item int, clears, onlyLocked bool) (row, bool, error) {
	var err error
	for r.exact {
		switch {
		case r.dead():
			var deleted bool
			if deleted, err = s.bury(ctx, key); deleted {
				return row{}, false, nil
			}
			if err == nil {
				r, err = s.read(ctx, key, item)
			}
		case onlyLocked && !r.locked || !r.due() && !(clears && r.marked()):
			return r, false, nil
		default:
			r, err = s.touch(ctx, key, tok, item, clears, onlyLocked)
			if err == nil && r.done == done {
				return r, clears && r.reports(), nil
			}
		}
		if err != nil {
			return row{}, false, err
		}
	}
	return r, false, nil
}

// bury deletes the session if it has expired.
func (s *Store) bury(ctx context.Context, key backends.Key) (deleted bool, err error) {
	return query(ctx, s, burySQL, keyDeclared, []any{keyArg(key)}, func(rows *sql.Rows) (deleted bool, err error) {
		err = rows.Scan(&deleted)
		return deleted, err
	})
}

// Get implements backends.Store. It writes only to renew and to clear the mark.
func (s *Store) Get(ctx context.Context, key backends.Key, tok backends.Token) (item backends.Item, err error) {
	get := func(reported bool) error {
		r, err := s.read(ctx, key, itemIfUnlocked)
		if err != nil {
			return err
		}
		r, mark, err := s.settle(ctx, key, tok, r, itemIfUnlocked, true, false)
		switch {
		case err != nil:
			return err
		case !r.exact:
			return backends.ErrNotFound
		case r.locked:
			return r.lockedError(mark || reported)
		}
		item, err = r.item(mark || reported)
		return err
	}
	tried, err := s.earlier(ctx, tok, func(o outcome) error {
		err := get(o.mark)
		if errors.Is(err, backends.ErrMoved) {
			item, err = s.repeated(ctx, key, o)
		}
		return err
	})
	if !tried && err == nil {
		err = get(false)
	}
	return item, wrap("get", err)
}

// GetExclusive implements backends.Store.
func (s *Store) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (item backends.Item, err error) {
	tried, err := s.earlier(ctx, tok, func(o outcome) (err error) {
		item, err = s.repeated(ctx, key, o)
		return err
	})
	for !tried && err == nil {
		var r row
		var mark bool
		r, err = s.change(ctx, tok, anyItem, lockSQL, keyDeclared, keyArg(key))
		if err == nil && r.done == done {
			item, err = r.item(r.reports())
			break
		}
		if err == nil {
			r, mark, err = s.settle(ctx, key, tok, r, noItem, true, true)
		}
		switch {
		case err != nil:
		case !r.exact:
			err = backends.ErrNotFound
		case r.locked:
			err = r.lockedError(mark)
		}
	}
	item.LockAge = 0
	return item, wrap("get exclusive", err)
}

// Release implements backends.Store.
func (s *Store) Release(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (mark bool, err error) {
	tried, err := s.earlier(ctx, tok, func(o outcome) error { mark = o.mark; return nil })
	for !tried && err == nil {
		var r row
		r, err = s.change(ctx, tok, noItem, releaseSQL, keyDeclared+", @cookie int, @ifCookie bit",
			keyArg(key), sql.Named("cookie", int32(cookie)), sql.Named("ifCookie", cond == backends.IfCookie))
		if err == nil && r.done == done {
			mark = r.reports()
			break
		}
		if err == nil && cond == backends.IfCookie {
			err = s.mismatch(ctx, key, r, cookie)
			continue
		}
		if err == nil {
			r, mark, err = s.settle(ctx, key, tok, r, noItem, true, false)
		}
		switch {
		case err != nil:
		case !r.exact:
			err = backends.ErrNotFound
		case r.locked && r.cookie != cookie:
			err = r.lockedError(mark)
		case !r.locked:
			return mark, nil
		}
	}
	return mark, wrap("release", err)
}

// columnsOf returns what SessionItemShort and SessionItemLong become.
func columnsOf(data []byte) (short, long []byte) {
	if len(data) < longItem {
		return data, nil
	}
	return nil, data
}

// Set implements backends.Store. An ID that the database's collation takes for that of another session is a permanent failure.
func (s *Store) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	short, long := columnsOf(bytes.Clone(w.Data)) // which may be sent after this call has ended
	args := []any{
		keyArg(key), sql.Named("cookie", int32(w.LockCookie)), sql.Named("timeout", minutes(w.Timeout)),
		sql.Named("short", short), sql.Named("long", long), sql.Named("mark", w.Uninitialized),
		sql.Named("updates", w.Condition != backends.IfMissing), sql.Named("ifCookie", w.Condition == backends.IfCookie),
		sql.Named("creates", w.Condition != backends.IfCookie),
	}
	tried, err := s.earlier(ctx, tok, func(outcome) error { return nil })
	for !tried && err == nil {
		var r row
		r, err = s.change(ctx, tok, noItem, setSQL, setDeclared, args...)
		switch {
		case isDuplicate(err): // somebody else created it
			err = nil
			continue
		case err != nil:
			return wrap("set", roomFailure(err))
		case r.done == done:
			return nil
		case w.Condition == backends.IfCookie:
			err = s.mismatch(ctx, key, r, w.LockCookie)
			continue
		case r.found && !r.exact:
			err = s.ambiguous(key)
			continue
		}
		r, _, err = s.settle(ctx, key, tok, r, noItem, false, false)
		if err == nil && w.Condition == backends.IfMissing && r.exact {
			err = backends.ErrExists
		} else if err == nil {
			err = r.refusal(w.LockCookie)
		}
	}
	return wrap("set", err)
}

const setDeclared = keyDeclared + `, @cookie int, @timeout int, @short varbinary(7000), @long varbinary(max), @mark bit,
    @updates bit, @ifCookie bit, @creates bit`

// refusal is why a Set or Remove IfUnlocked was refused, nil if there is no reason any more.
func (r *row) refusal(cookie backends.Cookie) error {
	if r.exact && r.locked && r.cookie != cookie {
		return r.lockedError(false)
	}
	return nil
}

// mismatch is why a change IfCookie was refused, nil if there is no reason any more. The session stays as it is.
func (s *Store) mismatch(ctx context.Context, key backends.Key, r row, cookie backends.Cookie) error {
	switch {
	case r.dead():
		deleted, err := s.bury(ctx, key)
		if err != nil || !deleted { // it was renewed
			return err
		}
		return backends.ErrNotFound
	case !r.exact:
		return backends.ErrNotFound
	case r.cookie != cookie:
		return backends.ErrConflict
	}
	return nil
}

// ambiguous refuses an ID and logs it.
func (s *Store) ambiguous(key backends.Key) error {
	err := errors.New("the database's collation takes the session's ID for that of another session")
	s.log.Error("a session ID is refused, which the key of ASPStateTempSessions cannot tell from another one; where web applications make IDs "+
		"that differ in letter case only, use a database made by aspstate migrate up", "session", backends.ShortID(key.ID))
	return fmt.Errorf("%w: %w: %w", err, backends.ErrPermanent, backends.ErrNotApplied)
}

// Remove implements backends.Store.
func (s *Store) Remove(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) error {
	tried, err := s.earlier(ctx, tok, func(outcome) error { return nil })
	for !tried && err == nil {
		var r row
		r, err = s.change(ctx, tok, noItem, removeSQL, keyDeclared+", @cookie int, @ifCookie bit",
			keyArg(key), sql.Named("cookie", int32(cookie)), sql.Named("ifCookie", cond == backends.IfCookie))
		if err == nil && r.done == done {
			break
		}
		if err == nil && cond == backends.IfCookie {
			err = s.mismatch(ctx, key, r, cookie)
			continue
		}
		if err == nil {
			r, _, err = s.settle(ctx, key, tok, r, noItem, false, false)
		}
		if err == nil && !r.exact {
			err = backends.ErrNotFound
		} else if err == nil {
			err = r.refusal(cookie)
		}
	}
	return wrap("remove", err)
}

// ResetTimeout implements backends.Store.
func (s *Store) ResetTimeout(ctx context.Context, key backends.Key) error {
	r, err := s.read(ctx, key, noItem)
	if err == nil {
		r, _, err = s.settle(ctx, key, backends.Token{}, r, noItem, false, false)
	}
	if err == nil && !r.exact {
		err = backends.ErrNotFound
	}
	return wrap("reset timeout", err)
}

// Unread implements backends.Store.
func (s *Store) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	latest := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	if item.Unrenewed != 0 {
		latest = time.UnixMicro(int64(item.Unrenewed)).UTC()
	}
	return wrap("unread", s.exec(ctx, unreadSQL, keyDeclared+", @cookie int, @expires datetime, @data varbinary(max)",
		keyArg(key), sql.Named("cookie", int32(item.LockCookie)), sql.Named("expires", latest.Format(dateFormat)), sql.Named("data", item.Data)))
}
