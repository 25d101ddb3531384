package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"aspstate/backends"
)

// What operators do: looking into the store, and unlocking and removing sessions by their keys. Nothing here is
// retried: somebody sits in front of it.

// Inspect returns a session with its data. The errors are those of backends.Inspector.Inspect, and errors.ErrUnsupported
// for a store that cannot be looked into.
func (s *Sessions) Inspect(ctx context.Context, key backends.Key) (session backends.Session, err error) {
	err = s.inspect(stmtInspect, func(store backends.Inspector) error {
		session, err = store.Inspect(ctx, key)
		return err
	})
	return session, err
}

// List returns the sessions that q chooses. The errors are as for Inspect.
func (s *Sessions) List(ctx context.Context, q backends.Query) (list []backends.Session, err error) {
	err = s.inspect(stmtList, func(store backends.Inspector) error {
		list, err = store.List(ctx, q)
		return err
	})
	return list, err
}

// Applications counts the sessions of all applications. The errors are as for Inspect.
func (s *Sessions) Applications(ctx context.Context) (list []backends.ApplicationInfo, err error) {
	err = s.inspect(stmtApplications, func(store backends.Inspector) error {
		list, err = store.Applications(ctx)
		return err
	})
	return list, err
}

func (s *Sessions) inspect(stmt Statement, ask func(backends.Inspector) error) error {
	store, ok := s.Store().(backends.Inspector)
	if !ok {
		return fmt.Errorf("%v: this store cannot be looked into: %w", stmt, errors.ErrUnsupported)
	}
	begun := time.Now()
	err := ask(store)
	s.Metrics.statement(stmt, time.Since(begun), err)
	return err
}

// AppID returns the AppID of the application of exactly this name, or backends.ErrUnknownApplication.
func (s *Sessions) AppID(ctx context.Context, name string) (backends.AppID, error) {
	return s.Store().Application(ctx, name, false)
}

// Names are the names of the applications that this server was asked for lately.
func (s *Sessions) Names() map[backends.AppID]string {
	store, names := s.Store(), map[backends.AppID]string{}
	a := &s.applications
	a.mu.RLock()
	defer a.mu.RUnlock()
	for name, app := range a.known {
		if r := app.resolved.Load(); r != nil && r.store == store {
			names[r.id] = name
		}
	}
	return names
}

// Unlock releases the lock with this cookie in its owner's stead, and hands it over to who
// waits for it. Another lock is a LockedError; a session that is not locked stays as it is.
func (s *Sessions) Unlock(ctx context.Context, key backends.Key, cookie backends.Cookie) error {
	_, err := s.Store().Release(ctx, key, s.token(), cookie, backends.IfUnlocked)
	if err == nil {
		s.handover.released(key)
	}
	return err
}

// Delete removes a session that is not locked, or locked with this cookie; another lock is a
// LockedError.
func (s *Sessions) Delete(ctx context.Context, key backends.Key, cookie backends.Cookie) error {
	err := s.Store().Remove(ctx, key, s.token(), cookie, backends.IfUnlocked)
	if err == nil {
		s.Metrics.Abandoned.Add(1)
		s.handover.released(key)
	}
	return err
}

// Pool is implemented by stores that share a number of connections among their callers.
type Pool interface {
	// Pool returns how many connections there may be, and how many calls wait for one.
	Pool() (connections, queued int)
}

// Pool is the store's, if it has one.
func (s *Sessions) Pool() (connections, queued int, ok bool) {
	if p, ok := s.Store().(Pool); ok {
		connections, queued = p.Pool()
		return connections, queued, true
	}
	return 0, 0, false
}

// Family is what the names of one application have in common on all nodes of a farm, where they differ only in letter
// case or site number.
func Family(name string) string { return family(name) }
