package sqlserver

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"sync"
	"time"

	"aspstate/backends"
)

// slot is a row of ASPStateRequests. One request uses it at a time, until its outcome is known.
type slot struct {
	id    [16]byte
	seq   int64 // of the last request
	inUse bool  // the row has been made
}

const (
	// remembered is how long a doubt is kept: the retry comes within seconds or not at all.
	remembered = 2 * time.Minute
	// maxDoubts bounds what an outage leaves behind.
	maxDoubts = 100_000
)

// slots are those of this store.
type slots struct {
	mu      sync.Mutex
	free    []*slot
	doubts  map[backends.Token]doubt
	cleaned time.Time
}

// doubt is a request whose outcome is unknown.
type doubt struct {
	slot  *slot
	since time.Time
}

// take returns a slot that no request uses.
func (s *slots) take() *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		sl := s.free[n-1]
		s.free = s.free[:n-1]
		return sl
	}
	sl := &slot{}
	rand.Read(sl.id[:])
	return sl
}

// doubted returns the slot of the request's earlier try whose outcome is unknown, nil if there is none.
func (s *slots) doubted(tok backends.Token) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.doubts[tok]
	if !ok {
		return nil
	}
	delete(s.doubts, tok)
	return d.slot
}

// put gives the slot back.
func (s *slots) put(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, sl)
}

// doubt keeps the slot for the request's next try.
func (s *slots) doubt(tok backends.Token, sl *slot) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.cleaned) > remembered {
		s.cleaned = now
		for t, d := range s.doubts {
			if now.Sub(d.since) > remembered {
				delete(s.doubts, t) // and its slot, whose row the sweeper deletes
			}
		}
	}
	if s.doubts == nil {
		s.doubts = make(map[backends.Token]doubt)
	}
	if len(s.doubts) < maxDoubts {
		s.doubts[tok] = doubt{sl, now}
	}
}

// outcome is what a request was answered with that changed its session.
type outcome struct {
	cookie backends.Cookie
	mark   bool
}

// earlier finds out what became of the request's earlier tries. If one was applied, tried is true and answer is called with its
// outcome, for the rest of the answer.
func (s *Store) earlier(ctx context.Context, tok backends.Token, answer func(outcome) error) (tried bool, err error) {
	sl := s.slots.doubted(tok)
	if sl == nil {
		return false, nil
	}
	before, err := s.fence(ctx, sl)
	switch {
	case err != nil:
		s.slots.doubt(tok, sl)
		return true, err
	case before == nil:
		s.slots.put(sl)
		return false, nil
	}
	if err = answer(*before); backends.IsAnswer(err) {
		s.slots.put(sl)
	} else {
		s.slots.doubt(tok, sl)
	}
	return true, err
}

// change runs a batch that changes a session, of a request whose earlier tries have not been applied.
func (s *Store) change(ctx context.Context, tok backends.Token, item int, batch, declared string, args ...any) (row, error) {
	sl := s.slots.take()
	for {
		if !sl.inUse {
			before, err := s.fence(ctx, sl)
			if err == nil && before != nil {
				err = errSlot
			}
			if err != nil {
				s.slots.put(sl)
				return row{}, err
			}
		}
		sl.seq++
		r, err := s.row(ctx, item, batch, declared+", @slot binary(16), @seq bigint", append(args, sql.Named("slot", sl.id[:]), sql.Named("seq", sl.seq))...)
		switch {
		case err != nil && !errors.Is(err, backends.ErrNotApplied):
			s.slots.doubt(tok, sl)
			return row{}, err
		case err != nil || r.done != late:
			s.slots.put(sl)
			return r, err
		}
		sl.inUse = false // it was not used for so long that it was swept
	}
}

var errSlot = errors.New("another server uses a row of ASPStateRequests that is this one's")

// fence makes sure that the slot's row is there and that its last request is not applied from now on. Where that has been applied, it
// returns its outcome.
func (s *Store) fence(ctx context.Context, sl *slot) (*outcome, error) {
	type answer struct{ cookie, flags int }
	a, err := query(ctx, s, fenceSQL, "@slot binary(16), @seq bigint", []any{sql.Named("slot", sl.id[:]), sql.Named("seq", sl.seq)},
		func(rows *sql.Rows) (a answer, err error) { err = rows.Scan(&a.cookie, &a.flags); return a, err })
	if err != nil {
		return nil, err
	}
	sl.inUse = true
	if a.flags&4 == 4 {
		return nil, nil
	}
	return &outcome{backends.Cookie(a.cookie), a.flags&2 == 2}, nil
}
