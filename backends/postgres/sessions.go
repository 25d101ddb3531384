package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"aspstate/backends"
)

// Get implements backends.Store. It writes only to renew and to clear the mark.
func (s *Store) Get(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	item, _, err := s.read(ctx, "get", key, tok, opGet)
	return item, err
}

// ResetTimeout implements backends.Store.
func (s *Store) ResetTimeout(ctx context.Context, key backends.Key) error {
	_, _, err := s.read(ctx, "reset timeout", key, backends.Token{}, opResetTimeout)
	return err
}

// Unread implements backends.Store.
func (s *Store) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	latest := item.Unrenewed
	if latest == 0 {
		latest = math.MaxInt64 // infinity
	}
	sql := unreadSQL
	if s.noNotify.Load() { // as finding the item has told
		sql = strings.ReplaceAll(sql, notify, "NULL")
	}
	_, err := run(ctx, s, "unread", func(ctx context.Context, c *conn) (_ struct{}, err error) {
		moved := false
		err = c.query(ctx, sql, [][]byte{
			binary.BigEndian.AppendUint32(nil, uint32(key.App)), []byte(key.ID),
			binary.BigEndian.AppendUint32(nil, uint32(item.LockCookie)),
			binary.BigEndian.AppendUint64(nil, uint64(latest)), item.Data,
		}, func(row [][]byte) { moved = row[0][0] == 1 })
		if err == nil && moved {
			err = backends.ErrMoved
		}
		return struct{}{}, err
	})
	return err
}

// GetExclusive implements backends.Store.
func (s *Store) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	item, _, err := s.touch(ctx, "get exclusive", key, tok, opGetExclusive, backends.NoCookie)
	return item, err
}

// Release implements backends.Store.
func (s *Store) Release(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (bool, error) {
	op := int32(opRelease)
	if cond == backends.IfCookie {
		op = opReleaseIfCookie
	}
	_, mark, err := s.touch(ctx, "release", key, tok, op, cookie)
	return mark, err
}

// Remove implements backends.Store. The row stays for two minutes, for its tokens, without the item.
func (s *Store) Remove(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) error {
	op := int32(opRemove)
	if cond == backends.IfCookie {
		op = opRemoveIfCookie
	}
	_, _, err := s.touch(ctx, "remove", key, tok, op, cookie)
	return err
}

// read answers from a snapshot if nothing has to be written.
func (s *Store) read(ctx context.Context, what string, key backends.Key, tok backends.Token, op int32) (backends.Item, bool, error) {
	for {
		c := &call{ctx: ctx, key: key, op: op, token: tok}
		if err := s.do(s.reads, c); err != nil {
			return backends.Item{}, false, fmt.Errorf("postgres: %s: %w", what, err)
		}
		if c.answer.act == actAgain {
			continue
		}
		if c.answer.act != actTouch {
			return c.result(false)
		}
		c = &call{ctx: ctx, key: key, op: op, token: tok}
		if err := s.do(s.touches, c); err != nil {
			return backends.Item{}, false, fmt.Errorf("postgres: %s: %w", what, err)
		}
		if c.answer.act != actAgain && c.answer.act != actLate {
			return c.result(c.answer.marked)
		}
	}
}

// touch runs touchSQL until it answers.
func (s *Store) touch(ctx context.Context, what string, key backends.Key, tok backends.Token, op int32, cookie backends.Cookie) (backends.Item, bool, error) {
	for {
		c := &call{ctx: ctx, key: key, op: op, token: tok, cookie: cookie}
		if err := s.do(s.touches, c); err != nil {
			return backends.Item{}, false, fmt.Errorf("postgres: %s: %w", what, err)
		}
		if c.answer.act != actAgain && c.answer.act != actLate {
			return c.result(c.answer.marked)
		}
	}
}

// Set implements backends.Store.
func (s *Store) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	data := bytes.Clone(w.Data) // it may be sent after this call has ended
	for {
		c := &call{ctx: ctx, key: key, op: int32(w.Condition), token: tok, cookie: w.LockCookie,
			timeout: milliseconds(w.Timeout), mark: w.Uninitialized, data: data}
		var err error
		if len(data) < largeItem {
			err = s.do(s.sets, c)
		} else {
			c.run = func(ctx context.Context, w *worker) error { return execSet(ctx, w, []*call{c}) }
			err = s.do(s.rest, c)
		}
		if err != nil {
			return fmt.Errorf("postgres: set: %w", setFailure(err))
		}
		if c.answer.act != actAgain && c.answer.act != actLate {
			_, _, err := c.result(false)
			return err
		}
	}
}

// milliseconds rounds away from zero, which means something else.
func milliseconds(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	switch rest := d % time.Millisecond; {
	case rest > 0:
		ms++
	case rest < 0:
		ms--
	}
	return ms
}

// result is what the answer means to the caller.
func (c *call) result(mark bool) (backends.Item, bool, error) {
	a := &c.answer
	switch a.act {
	case actMissing:
		return backends.Item{}, false, backends.ErrNotFound
	case actLocked:
		age := max(0, a.now.Sub(a.lockAt))
		return backends.Item{}, false, &backends.LockedError{Cookie: a.cookie, Age: age, Since: a.lockAt, Uninitialized: mark}
	case actConflict:
		return backends.Item{}, false, backends.ErrConflict
	case actExists:
		return backends.Item{}, false, backends.ErrExists
	case actMoved:
		return backends.Item{}, false, backends.ErrMoved
	case actRepeated:
		if a.found != nil {
			a.cookie = backends.Cookie(int4(a.found[33:37])) // the first try's lock
		}
	}
	item := backends.Item{
		Data:          a.item,
		Timeout:       time.Duration(a.timeout) * time.Millisecond,
		LockCookie:    a.cookie,
		Uninitialized: mark,
		Unrenewed:     a.unrenewed,
	}
	if a.item != nil && c.op == opGet {
		item.LockAge = max(0, a.now.Sub(a.lockAt))
	}
	return item, mark, nil
}

// entry appends what the statements make an entry in recent of: the token, the stream that wrote it, and when (microseconds of the
// database's clock, big-endian). They add a byte that says whether the request reported the mark, and the cookie of the lock it took, or 0.
func (w *worker) entry(b []byte, c *call) []byte {
	b = append(b, c.token[:]...)
	if c.sticky {
		b = append(b, make([]byte, 8)...) // no worker's
	} else {
		b = append(b, w.stream[:]...)
	}
	return binary.BigEndian.AppendUint64(b, uint64(w.conn.now().UnixMicro()))
}

func execRead(ctx context.Context, w *worker, batch []*call) error {
	return w.query(ctx, readSQL, batch, keyParams(batch,
		int4s(batch, func(c *call) int32 { return c.op }),
		byteas(batch, 16*len(batch), func(b []byte, c *call) []byte { return append(b, c.token[:]...) }),
	))
}

func execTouch(ctx context.Context, w *worker, batch []*call) error {
	return w.write(ctx, touchSQL, batch, w.writeParams(batch))
}

func execSet(ctx context.Context, w *worker, batch []*call) error {
	size := 0
	for _, c := range batch {
		size += len(c.data)
	}
	return w.write(ctx, setSQL, batch, append(w.writeParams(batch),
		byteas(batch, size, func(b []byte, c *call) []byte { return append(b, c.data...) }),
		int8s(batch, func(c *call) int64 { return c.timeout }),
		int4s(batch, func(c *call) int32 {
			if c.mark {
				return 1
			}
			return 0
		}),
	))
}

// write runs touchSQL or setSQL, without telling of releases where the engine cannot.
func (w *worker) write(ctx context.Context, sql string, batch []*call, params [][]byte) error {
	if w.store.noNotify.Load() {
		sql = strings.ReplaceAll(sql, notify, "NULL")
	}
	err := w.query(ctx, sql, batch, params)
	if isCode(err, "42883") && w.store.noNotify.CompareAndSwap(false, true) { // no such function
		return w.write(ctx, sql, batch, params)
	}
	return err
}

// keyParams are $1 and $2, and others.
func keyParams(batch []*call, others ...[]byte) [][]byte {
	return append([][]byte{
		int4s(batch, func(c *call) int32 { return int32(c.key.App) }),
		byteas(batch, 32*len(batch), func(b []byte, c *call) []byte { return append(b, c.key.ID...) }),
	}, others...)
}

// writeParams are $1 to $9.
func (w *worker) writeParams(batch []*call) [][]byte {
	now := w.conn.now()
	lockTimeout := "1000" // milliseconds
	if len(batch) == 1 {
		lockTimeout = "300" // whoever waits for this one holds up all others
	}
	return keyParams(batch,
		int4s(batch, func(c *call) int32 { return c.op }),
		int4s(batch, func(c *call) int32 { return int32(c.cookie) }),
		byteas(batch, 32*len(batch), w.entry),
		w.stream[:],
		binary.BigEndian.AppendUint64(nil, uint64(now.Add(-remembered).UnixMicro())),
		timestamp(now.Add(patienceWith(batch))),
		[]byte(lockTimeout),
	)
}

var errRow = errors.New("the database answered with a row that makes no sense")

// query runs a statement and gives its rows to the calls of the batch. A call without a row is answered with again.
func (w *worker) query(ctx context.Context, sql string, batch []*call, params [][]byte) error {
	for _, c := range batch {
		c.answer = answer{act: actAgain}
	}
	var bad error
	err := w.conn.query(ctx, sql, params, func(row [][]byte) {
		n := int8(row[0])
		if n < 1 || n > int64(len(batch)) {
			bad = errRow
			return
		}
		a := &batch[n-1].answer
		*a = answer{act: int4(row[1]), now: instant(row[2]), found: bytes.Clone(row[3]), marked: row[7][0] == 1, item: bytes.Clone(row[8])}
		if row[4] != nil {
			a.cookie, a.lockAt, a.timeout = backends.Cookie(int4(row[4])), instant(row[5]), int8(row[6])
		}
		if len(row) > 10 && row[10] != nil { // of touchSQL
			a.unrenewed = backends.Expiry(int8(row[10]))
		}
	})
	if now := batch[0].answer.now; !now.IsZero() {
		w.conn.learn(now)
	}
	if err == nil {
		err = bad
	}
	return err
}
