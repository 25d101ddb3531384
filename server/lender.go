package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Lender is a place that sessions are taken over from by the means of its clients: another state server, or another
// application of the same store. The errors are those of backends.Store.
type Lender interface {
	// GetExclusive locks the session there and returns its item, in the clear.
	GetExclusive(ctx context.Context, session Session) (backends.Item, error)
	// Release ends a lock there.
	Release(ctx context.Context, session Session, cookie backends.Cookie) error
	// Remove deletes the session there, which is locked with this cookie.
	Remove(ctx context.Context, session Session, cookie backends.Cookie) error
}

// lending takes sessions over from a lender: it locks the session there, imports it here, and
// removes it there. A session that is here already is not asked for.
type lending struct {
	s      *Sessions
	what   string // for the log
	taken  atomic.Int64
	last   atomic.Int64 // when, in Unix nanoseconds
	missed atomic.Int64 // not there either

	mu     sync.Mutex
	locked map[lent]backends.Item // locked at the lender for us, and not known to be here
}

type lent struct {
	sessionName
	from string
}

func (l *lending) claim(ctx context.Context, r *route, from string, lender Lender, session Session, cookie backends.Cookie) error {
	name := lent{sessionName{session.App.Name, session.ID}, from}
	store, ok := r.store.(movable)
	if !ok {
		return fmt.Errorf("take over a session: this store cannot take it: %w", backends.ErrPermanent)
	}
	l.mu.Lock()
	item, begun := l.locked[name]
	l.mu.Unlock()
	if !begun {
		here, err := isHere(ctx, store, session)
		if here || err != nil {
			return err
		}
		item, err = lender.GetExclusive(ctx, session)
		if lock, isLocked := errors.AsType[*backends.LockedError](err); isLocked && cookie > 0 && lock.Cookie == cookie {
			// The page that holds the lock has come here.
			if err = lender.Release(ctx, session, cookie); err == nil {
				item, err = lender.GetExclusive(ctx, session)
			}
		}
		switch {
		case errors.Is(err, backends.ErrNotFound):
			l.missed.Add(1)
			return nil
		case err != nil:
			return err
		}
		l.mu.Lock()
		if l.locked == nil {
			l.locked = make(map[lent]backends.Item)
		}
		l.locked[name] = item
		l.mu.Unlock()
	}
	kept := item
	kept.Data = l.s.seal(session, item.Data)
	if err := importItem(ctx, store, session, kept); err != nil {
		if !begun {
			l.s.later.add(task{"take over a session", func(ctx context.Context) error { return r.settle(ctx, session, backends.NoCookie) }})
		}
		return fmt.Errorf("take over a session from %s: %w", l.what, err)
	}
	l.mu.Lock()
	delete(l.locked, name)
	l.mu.Unlock()
	l.taken.Add(1)
	l.last.Store(time.Now().UnixNano())
	remove := func(ctx context.Context) error { return lender.Remove(ctx, session, item.LockCookie) }
	if err := remove(ctx); !backends.IsAnswer(err) {
		l.s.later.add(task{"remove a session where it was taken over from", remove})
	}
	return nil
}

func isHere(ctx context.Context, store movable, session Session) (bool, error) {
	app, err := store.Application(ctx, session.App.Name, false)
	if err == nil {
		_, err = store.Inspect(ctx, backends.Key{App: app, ID: session.ID})
	}
	if errors.Is(err, backends.ErrNotFound) || errors.Is(err, backends.ErrUnknownApplication) {
		return false, nil
	}
	return err == nil, err
}

// importItem stores a session, unlocked, as a lender gave it, but sealed. Its cookies go on growing from the lender's.
func importItem(ctx context.Context, store movable, session Session, item backends.Item) error {
	app, err := store.Application(ctx, session.App.Name, true)
	if err != nil {
		return err
	}
	_, err = store.Import(ctx, "", []backends.Session{{
		Key: backends.Key{App: app, ID: session.ID}, Data: item.Data, Size: len(item.Data),
		Timeout: item.Timeout, Left: item.Timeout, LockCookie: item.LockCookie, Uninitialized: item.Uninitialized,
	}})
	return err
}

// takeOver claims sessions from another state server.
type takeOver struct {
	lending
	lender Lender
}

func (t *takeOver) concerns(*Application) bool { return true }

func (t *takeOver) claim(ctx context.Context, r *route, session Session, cookie backends.Cookie) error {
	return t.lending.claim(ctx, r, "", t.lender, session, cookie)
}

// TakeOver has sessions that are missing here taken over from another state server. nil ends that.
func (s *Sessions) TakeOver(name string, from Lender) {
	var t *takeOver
	if from != nil {
		t = &takeOver{lending: lending{s: s, what: name}, lender: from}
	}
	s.takesOver.Store(t)
	s.renewRoute()
}

// TakenOver returns how many sessions were taken over from the other state server, how many were not there
// either, and when the last one came (zero if none did). ok is false without TakeOver.
func (s *Sessions) TakenOver() (taken, missed int64, last time.Time, ok bool) {
	t := s.takesOver.Load()
	if t == nil {
		return 0, 0, last, false
	}
	if at := t.last.Load(); at != 0 {
		last = time.Unix(0, at)
	}
	return t.taken.Load(), t.missed.Load(), last, true
}

// TakesOver reports whether Session.Target is needed.
func (s *Sessions) TakesOver() bool { return s.takesOver.Load() != nil }

// ownOrigins are the origins besides a store that sessions are moved away from.
func (s *Sessions) ownOrigins() (origins []origin) {
	if a := s.aliases.Load(); a.matter() {
		origins = append(origins, &aliasOrigin{lending: lending{s: s, what: "another application"}, aliases: a})
	}
	if t := s.takesOver.Load(); t != nil {
		origins = append(origins, t)
	}
	return origins
}

// renewRoute puts the same store in force with the origins there are now.
func (s *Sessions) renewRoute() {
	s.mover.lock(context.Background())
	defer s.mover.unlock()
	old := s.route.Load()
	origins := s.ownOrigins()
	if old.moving != nil {
		origins = append([]origin{old.moving}, origins...)
	}
	r := newRoute(old.store, origins...)
	r.moving, r.closed = old.moving, old.closed
	s.setRoute(r)
}
