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
	// Target is what the client called it, for a state server that sessions are taken over from
	// (TakesOver); else it may be empty.
	Target string
}

// Request is what Sessions knows of the request that a front end carries out.
type Request struct {
	Arrived time.Time // with its request line: the budget counts from here, but what took longer to arrive is tried, too
	Client  netip.Addr
	// Watch, where it is set, is called when the request begins to wait. gone closes
	// when the client closes its connection; stop ends the watching and returns when it has.
	Watch func() (gone <-chan struct{}, stop func())
	Conn  *Conn // whose memory for items counts; nil for none
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
	Metrics *Metrics

	route  atomic.Pointer[route]
	log    *slog.Logger
	budget atomic.Int64 // time.Duration
	slow   atomic.Int64 // time.Duration

	origin   [8]byte // first half of this process's tokens
	sequence atomic.Uint64

	applications applications
	appIDs       appIDs
	outage       outage
	sizes        sizes
	refused      seldom
	slowed       [Statements]seldom
	later        later
	handover     handover
	mover        mover
	takesOver    atomic.Pointer[takeOver]
	aliases      atomic.Pointer[aliases]
	strangers    strangers
	quotas       quotas
	encryption   atomic.Pointer[Encryption]
	unreadable   [Unreadables]seldom
}

// NewSessions returns Sessions over store, whose calls end budget after a
// request's arrival. Run must be running for what is left to be done later.
func NewSessions(store backends.Store, budget time.Duration, log *slog.Logger) *Sessions {
	s := &Sessions{Metrics: newMetrics(), log: log}
	rand.Read(s.origin[:])
	s.SetBudget(budget)
	s.applications.init()
	s.appIDs.init()
	s.later.init(log)
	s.handover.init()
	s.mover.init(s.origin)
	s.outage.log = log
	s.quotas.init()
	s.SetEncryption(Encryption{})
	s.setRoute(newRoute(store))
	return s
}

// SetBudget changes the budget of requests that arrive from now on.
func (s *Sessions) SetBudget(d time.Duration) { s.budget.Store(int64(d)) }

// Budget is how long after its arrival a request ends, answered or not.
func (s *Sessions) Budget() time.Duration { return time.Duration(s.budget.Load()) }

// SetSlow sets from when on an operation of the store is slow, and logged; 0 is never.
func (s *Sessions) SetSlow(d time.Duration) { s.slow.Store(int64(d)) }

// Get returns the item of a session (MS-ASP 3.1.5.1), waiting for its lock to be
// released for as long as SetLockWait says. The errors are those of backends.Store.Get.
func (s *Sessions) Get(ctx context.Context, req Request, session Session) (backends.Item, error) {
	item, err := s.await(ctx, req, session, false, func() (backends.Item, error) {
		return s.Lookup(ctx, req, session)
	})
	if errors.Is(err, backends.ErrNotFound) {
		s.lookForStranger(ctx, session)
	}
	return item, err
}

// GetExclusive locks the session and returns its item (MS-ASP 3.1.5.2), waiting as Get does.
// A lock that may have been taken although the call failed is released later.
func (s *Sessions) GetExclusive(ctx context.Context, req Request, session Session) (backends.Item, error) {
	item, err := s.await(ctx, req, session, true, func() (backends.Item, error) {
		return s.getExclusive(ctx, req, session)
	})
	if errors.Is(err, backends.ErrNotFound) {
		s.lookForStranger(ctx, session)
	}
	return item, err
}

// Lookup is Get without waiting: it renews the session and clears its mark.
func (s *Sessions) Lookup(ctx context.Context, req Request, session Session) (item backends.Item, err error) {
	tok, at := s.token(), s.place(session, backends.NoCookie)
	_, err = s.do(ctx, stmtGet, req, func(ctx context.Context) error {
		return at.do(ctx, false, func(store backends.Store, key backends.Key) (err error) {
			if err := s.holdFor(ctx, req, key); err != nil {
				return err
			}
			item, err = store.Get(ctx, key, tok)
			s.held(req, key, item, err)
			return err
		})
	})
	if err == nil {
		item, err = s.openFound(ctx, req, &at, item, false)
	}
	return item, err
}

func (s *Sessions) getExclusive(ctx context.Context, req Request, session Session) (item backends.Item, err error) {
	tok, at := s.token(), s.place(session, backends.NoCookie)
	unknown, err := s.do(ctx, stmtGetExclusive, req, func(ctx context.Context) (err error) {
		item, err = at.getExclusive(ctx, req, tok)
		return err
	})
	if unknown {
		s.settleLater(at, req, tok)
	}
	if err == nil {
		item, err = s.openFound(ctx, req, &at, item, true)
	}
	return item, err
}

func (p *place) getExclusive(ctx context.Context, req Request, tok backends.Token) (item backends.Item, err error) {
	err = p.do(ctx, false, func(store backends.Store, key backends.Key) (err error) {
		if err := p.s.holdFor(ctx, req, key); err != nil {
			return err
		}
		item, err = store.GetExclusive(ctx, key, tok)
		p.s.held(req, key, item, err)
		return err
	})
	return item, err
}

// settleLater finds out whether a GetExclusive was applied, and releases the lock that nobody was told of.
func (s *Sessions) settleLater(at place, req Request, tok backends.Token) {
	req.Conn = nil // which may have ended by then
	s.later.add(task{"release a lock that nobody was told of", func(ctx context.Context) error {
		item, err := at.getExclusive(ctx, req, tok)
		if err == nil {
			s.ReleaseLater(at.session, item.LockCookie)
		}
		return err
	}})
}

// Release unlocks the session under the condition (MS-ASP 3.1.5.4)
// and reports whether it was uninitialized. The client ignores every
// failure, so a failing store is no error here: the lock is released later.
func (s *Sessions) Release(ctx context.Context, req Request, session Session, cookie backends.Cookie, cond backends.Condition) (uninitialized bool, err error) {
	tok, at := s.token(), s.place(session, cookie)
	_, err = s.do(ctx, stmtRelease, req, func(ctx context.Context) (err error) {
		uninitialized, err = s.release(ctx, &at, tok, cookie, cond)
		return err
	})
	if !backends.IsAnswer(err) {
		s.releaseLater(at, tok, cookie, cond)
		return false, nil
	}
	return uninitialized, err
}

// ReleaseLater releases a lock that its owner will not release: the answer that
// grants it could not be written, or the owner's Set was refused.
func (s *Sessions) ReleaseLater(session Session, cookie backends.Cookie) {
	s.releaseLater(s.place(session, cookie), s.token(), cookie, backends.IfCookie)
}

func (s *Sessions) releaseLater(at place, tok backends.Token, cookie backends.Cookie, cond backends.Condition) {
	s.later.add(task{"release", func(ctx context.Context) error {
		_, err := s.release(ctx, &at, tok, cookie, cond)
		return err
	}})
}

func (s *Sessions) release(ctx context.Context, at *place, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (uninitialized bool, err error) {
	err = at.do(ctx, false, func(store backends.Store, key backends.Key) (err error) {
		uninitialized, err = store.Release(ctx, key, tok, cookie, cond)
		if err == nil {
			s.handover.released(key)
		}
		return err
	})
	return uninitialized, err
}

// Set stores an item (MS-ASP 3.1.5.3). The errors are those of
// backends.Store.Set. Where the write is refused as too much, or the store fails, the
// lock with the write's cookie is released, because the client will not do it.
func (s *Sessions) Set(ctx context.Context, req Request, session Session, w backends.Write) error {
	exists, err := s.checkQuota(ctx, req, session, w)
	_, over := errors.AsType[*overQuota](err)
	if err == nil {
		err = s.set(ctx, req, session, w)
	}
	if err == nil && !exists && (w.Condition == backends.IfMissing || w.LockCookie <= 0) { // who writes to a session of old has its lock cookie
		s.Metrics.Created.Add(1)
		s.quotas.add(session.App.Name, 1)
	}
	if errors.Is(err, backends.ErrFull) && !over {
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

func (s *Sessions) set(ctx context.Context, req Request, session Session, w backends.Write) error {
	w.Data = s.seal(session, w.Data)
	tok, at := s.token(), s.place(session, w.LockCookie)
	_, err := s.do(ctx, stmtSet, req, func(ctx context.Context) error {
		return at.do(ctx, true, func(store backends.Store, key backends.Key) error {
			err := store.Set(ctx, key, tok, w)
			if err == nil {
				s.sizes.note(key, w.Data)
				s.handover.released(key)
			}
			return err
		})
	})
	return err
}

// Remove deletes the session under the condition (MS-ASP 3.1.5.5).
func (s *Sessions) Remove(ctx context.Context, req Request, session Session, cookie backends.Cookie, cond backends.Condition) error {
	tok, at := s.token(), s.place(session, cookie)
	_, err := s.do(ctx, stmtRemove, req, func(ctx context.Context) error {
		return at.do(ctx, false, func(store backends.Store, key backends.Key) error {
			err := store.Remove(ctx, key, tok, cookie, cond)
			if err == nil {
				s.handover.released(key)
			}
			return err
		})
	})
	if err == nil {
		s.Metrics.Abandoned.Add(1)
		s.quotas.add(session.App.Name, -1)
	}
	return err
}

// ResetTimeout renews the session (MS-ASP 3.1.5.6). A failing store is no error
// here: the session is renewed later.
func (s *Sessions) ResetTimeout(ctx context.Context, req Request, session Session) error {
	at := s.place(session, backends.NoCookie)
	err := s.try(ctx, stmtResetTimeout, req.Arrived.Add(s.Budget()), min(time.Second, s.Budget()/3), func(ctx context.Context) error { return at.renew(ctx) })
	if !backends.IsAnswer(err) {
		s.outage.failed(stmtResetTimeout.String(), err)
		s.renewLater(at)
		return nil
	}
	s.outage.worked()
	return err
}

func (p *place) renew(ctx context.Context) error {
	err := p.do(ctx, false, func(store backends.Store, key backends.Key) error { return store.ResetTimeout(ctx, key) })
	if _, elsewhere := errors.AsType[*backends.LockedError](err); elsewhere {
		return nil // by an origin, whose session was renewed by asking for it
	}
	return err
}

func (s *Sessions) renewLater(at place) { s.later.renew(at.session, at.renew) }

// do calls op until it answers or the budget is spent. One try takes at most a
// third of the budget, so that a database that hangs leaves time for the next host;
// when an outage is older than the budget, there is one try of at most a second.
// What took the budget to arrive, a long item over a slow line, is tried once all the same.
// unknown says that op failed and may all the same have been applied.
func (s *Sessions) do(ctx context.Context, stmt Statement, req Request, op func(context.Context) error) (unknown bool, err error) {
	budget := time.Duration(s.budget.Load())
	atMost, last := budget, s.outage.olderThan(budget)
	if last {
		atMost = time.Second
	}
	end := req.Arrived.Add(budget)
	if late := time.Now().Add(min(budgetAfterWait, budget/3)); end.Before(late) {
		end = late
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		err = s.try(ctx, stmt, end, min(atMost, budget/3), op)
		if backends.IsAnswer(err) {
			s.outage.worked()
			return false, err
		}
		unknown = unknown || !errors.Is(err, backends.ErrNotApplied)
		if errors.Is(err, ErrUnreadable) || errors.Is(err, errNoMemory) { // where it was to be taken over from, or here; the store works
			return unknown, err
		}
		s.outage.failed(stmt.String(), err)
		pause := pause/2 + mathrand.N(pause)
		if last || errors.Is(err, backends.ErrPermanent) || ctx.Err() != nil || time.Until(end) <= pause {
			s.Metrics.GivenUp.Add(1)
			s.outage.gaveUp(stmt.String(), err)
			return unknown, fmt.Errorf("%v: the store is failing: %w", stmt, err)
		}
		s.Metrics.Retries[stmt].Add(1)
		if req.Conn != nil {
			req.Conn.retried = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// try calls op once, for at most this long, and not beyond end.
func (s *Sessions) try(ctx context.Context, stmt Statement, end time.Time, atMost time.Duration, op func(context.Context) error) error {
	begun := time.Now()
	if sooner := begun.Add(atMost); sooner.Before(end) {
		end = sooner
	}
	limited := limit(ctx, end)
	err := op(limited)
	limited.over()
	took := time.Since(begun)
	s.Metrics.statement(stmt, took, err)
	if slow := s.slow.Load(); slow > 0 && int64(took) >= slow {
		s.slowed[stmt].add(1, func(n int64) {
			s.log.Warn("operations of the store are slow", "statement", stmt.String(), "operations", n, "took", took.Round(time.Millisecond), "error", err)
		})
	}
	return err
}

// DeleteExpired deletes expired sessions from the store (backends.Store.DeleteExpired).
func (s *Sessions) DeleteExpired(ctx context.Context, limit int) (int, error) {
	r := s.route.Load()
	begun := time.Now()
	n, err := r.store.DeleteExpired(ctx, limit)
	s.Metrics.statement(stmtDeleteExpired, time.Since(begun), err)
	if errors.Is(err, backends.ErrMoved) {
		return 0, s.follow(ctx, r)
	}
	return n, err
}

func (s *Sessions) token() (t backends.Token) {
	copy(t[:8], s.origin[:])
	binary.BigEndian.PutUint64(t[8:], s.sequence.Add(1))
	return t
}
