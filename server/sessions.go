package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Session names a session as front ends know it.
type Session struct {
	App *Application
	ID  string
}

// Request is what Sessions knows of the request that a front end carries out.
type Request struct {
	Arrived time.Time // with its request line: the budget counts from here
	Client  netip.Addr
	// Watch, where it is set, is called when the request begins to wait. gone closes
	// when the client closes its connection; stop ends the watching and returns when it has.
	Watch func() (gone <-chan struct{}, stop func())
}

func (r Request) watch() (gone <-chan struct{}, stop func()) {
	if r.Watch == nil {
		return nil, func() {}
	}
	return r.Watch()
}

// errGone says that the client closed its connection while its request waited.
var errGone = errors.New("the client has gone")

// Sessions is what front ends ask: a store, with the patience that web servers
// need. It retries what fails until the request's budget is spent, because a web
// server takes every failure for a page error or, worse, for a missing session. An
// error that is not an answer (backends.IsAnswer) means that the budget is spent:
// the front end closes the connection without an answer.
type Sessions struct {
	store  backends.Store
	log    *slog.Logger
	budget atomic.Int64 // time.Duration

	origin   [8]byte // first half of this process's tokens
	sequence atomic.Uint64

	applications applications
	outage       outage
	refused      seldom
	later        later
	handover     handover
}

// NewSessions returns Sessions over store, whose calls end budget after a
// request's arrival. Run must be running for what is left to be done later.
func NewSessions(store backends.Store, budget time.Duration, log *slog.Logger) *Sessions {
	s := &Sessions{store: store, log: log}
	rand.Read(s.origin[:])
	s.SetBudget(budget)
	s.applications.init()
	s.later.init(log)
	s.handover.init(store)
	s.outage.log = log
	return s
}

// SetBudget changes the budget of requests that arrive from now on.
func (s *Sessions) SetBudget(d time.Duration) { s.budget.Store(int64(d)) }

// Get returns the item of a session (MS-ASP 3.1.5.1), waiting for its lock to be
// released for as long as SetLockWait says. The errors are those of backends.Store.Get.
func (s *Sessions) Get(ctx context.Context, req Request, session Session) (backends.Item, error) {
	return s.await(ctx, req, session, false, func() (backends.Item, error) {
		return s.Lookup(ctx, req, session)
	})
}

// GetExclusive locks the session and returns its item (MS-ASP 3.1.5.2), waiting as Get does.
// A lock that may have been taken although the call failed is released later.
func (s *Sessions) GetExclusive(ctx context.Context, req Request, session Session) (backends.Item, error) {
	return s.await(ctx, req, session, true, func() (backends.Item, error) {
		return s.getExclusive(ctx, req, session)
	})
}

// Lookup is Get without waiting: it renews the session and clears its mark.
func (s *Sessions) Lookup(ctx context.Context, req Request, session Session) (item backends.Item, err error) {
	tok := s.token()
	_, err = s.do(ctx, "get", req, func(ctx context.Context) error {
		key, err := s.key(ctx, session, false)
		if err == nil {
			item, err = s.store.Get(ctx, key, tok)
		}
		return err
	})
	return item, err
}

func (s *Sessions) getExclusive(ctx context.Context, req Request, session Session) (item backends.Item, err error) {
	tok := s.token()
	unknown, err := s.do(ctx, "get exclusive", req, func(ctx context.Context) error {
		key, err := s.key(ctx, session, false)
		if err == nil {
			item, err = s.store.GetExclusive(ctx, key, tok)
		}
		return err
	})
	if unknown {
		s.later.add(task{"release a lock that nobody was told of", func(ctx context.Context) error {
			key, err := s.key(ctx, session, false)
			if err != nil {
				return err
			}
			item, err := s.store.GetExclusive(ctx, key, tok)
			if err == nil {
				_, err = s.release(ctx, session, s.token(), item.LockCookie)
			}
			return err
		}})
	}
	return item, err
}

// Release unlocks the session if it is locked with this cookie (MS-ASP 3.1.5.4)
// and reports whether it was uninitialized. The client ignores every
// failure, so a failing store is no error here: the lock is released later.
func (s *Sessions) Release(ctx context.Context, req Request, session Session, cookie backends.Cookie) (uninitialized bool, err error) {
	tok := s.token()
	_, err = s.do(ctx, "release", req, func(ctx context.Context) (err error) {
		uninitialized, err = s.release(ctx, session, tok, cookie)
		return err
	})
	if !backends.IsAnswer(err) {
		s.releaseLater(session, tok, cookie)
		return false, nil
	}
	return uninitialized, err
}

// ReleaseLater releases a lock that its owner will not release: the answer that
// grants it could not be written, or the owner's Set was refused.
func (s *Sessions) ReleaseLater(session Session, cookie backends.Cookie) {
	s.releaseLater(session, s.token(), cookie)
}

func (s *Sessions) releaseLater(session Session, tok backends.Token, cookie backends.Cookie) {
	s.later.add(task{"release", func(ctx context.Context) error {
		_, err := s.release(ctx, session, tok, cookie)
		return err
	}})
}

func (s *Sessions) release(ctx context.Context, session Session, tok backends.Token, cookie backends.Cookie) (uninitialized bool, err error) {
	key, err := s.key(ctx, session, false)
	if err != nil {
		return false, err
	}
	uninitialized, err = s.store.Release(ctx, key, tok, cookie)
	if err == nil {
		s.handover.released(key)
	}
	return uninitialized, err
}

// Set stores an item (MS-ASP 3.1.5.3). The errors are those of
// backends.Store.Set. Where the write is refused as too much, or the store fails, the
// lock with the write's cookie is released, because the client will not do it.
func (s *Sessions) Set(ctx context.Context, req Request, session Session, w backends.Write) error {
	tok := s.token()
	_, err := s.do(ctx, "set", req, func(ctx context.Context) error {
		key, err := s.key(ctx, session, true)
		if err == nil {
			err = s.store.Set(ctx, key, tok, w)
		}
		if err == nil {
			s.handover.released(key)
		}
		return err
	})
	if errors.Is(err, backends.ErrFull) {
		s.refused.add(1, func(n int64) {
			s.log.Error("items were refused because the store is full; their sessions keep the old ones",
				"items", n, "application", session.App.Name, "session", backends.ShortID(session.ID), "bytes", len(w.Data), "error", err)
		})
	}
	if (errors.Is(err, backends.ErrFull) || !backends.IsAnswer(err)) && w.LockCookie > 0 {
		s.ReleaseLater(session, w.LockCookie)
	}
	return err
}

// Remove deletes the session under the condition (MS-ASP 3.1.5.5).
func (s *Sessions) Remove(ctx context.Context, req Request, session Session, cookie backends.Cookie, cond backends.Condition) error {
	tok := s.token()
	_, err := s.do(ctx, "remove", req, func(ctx context.Context) error {
		key, err := s.key(ctx, session, false)
		if err == nil {
			err = s.store.Remove(ctx, key, tok, cookie, cond)
		}
		if err == nil {
			s.handover.released(key)
		}
		return err
	})
	return err
}

// ResetTimeout renews the session (MS-ASP 3.1.5.6). A failing store is no error
// here: the session is renewed later.
func (s *Sessions) ResetTimeout(ctx context.Context, req Request, session Session) error {
	try := func(ctx context.Context) error {
		key, err := s.key(ctx, session, false)
		if err == nil {
			err = s.store.ResetTimeout(ctx, key)
		}
		return err
	}
	once, cancel := context.WithDeadline(ctx, s.end(req.Arrived, time.Second))
	err := try(once)
	cancel()
	if !backends.IsAnswer(err) {
		s.outage.failed("reset timeout", err)
		s.later.renew(session, try)
		return nil
	}
	s.outage.worked()
	return err
}

// do calls op until it answers or the budget is spent. One try takes at most a
// third of the budget, so that a database that hangs leaves time for the next host;
// when an outage is older than the budget, there is one try of at most a second.
// unknown says that op failed and may all the same have been applied.
func (s *Sessions) do(ctx context.Context, name string, req Request, op func(context.Context) error) (unknown bool, err error) {
	budget := time.Duration(s.budget.Load())
	atMost, last := budget, s.outage.olderThan(budget)
	if last {
		atMost = time.Second
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		try, cancel := context.WithDeadline(ctx, s.end(req.Arrived, atMost))
		err = op(try)
		cancel()
		if backends.IsAnswer(err) {
			s.outage.worked()
			return false, err
		}
		unknown = unknown || !errors.Is(err, backends.ErrNotApplied)
		s.outage.failed(name, err)
		pause := pause/2 + mathrand.N(pause)
		if last || errors.Is(err, backends.ErrPermanent) || ctx.Err() != nil || time.Since(req.Arrived)+pause >= budget {
			s.outage.gaveUp(name, err)
			return unknown, fmt.Errorf("%s: the store is failing: %w", name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// end is when a try that begins now ends: after at most this long, a third of the budget,
// or at the end of the budget.
func (s *Sessions) end(arrived time.Time, atMost time.Duration) time.Time {
	budget := time.Duration(s.budget.Load())
	end, deadline := time.Now().Add(min(atMost, budget/3)), arrived.Add(budget)
	if end.After(deadline) {
		return deadline
	}
	return end
}

// key finds the store's key of a session. An application that does not exist, and is
// not to be created, has no sessions.
func (s *Sessions) key(ctx context.Context, session Session, create bool) (backends.Key, error) {
	id, err := s.applications.resolve(ctx, s.store, session.App, create)
	if errors.Is(err, backends.ErrUnknownApplication) {
		err = backends.ErrNotFound
	}
	return backends.Key{App: id, ID: session.ID}, err
}

func (s *Sessions) token() (t backends.Token) {
	copy(t[:8], s.origin[:])
	binary.BigEndian.PutUint64(t[8:], s.sequence.Add(1))
	return t
}
