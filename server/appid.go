package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"aspstate/backends"
)

// Clients of mode="SQLServer" ask for the AppID of their application once, and end session IDs with it from then on.

// appIDs are the app ids that AppIDs lead back to.
type appIDs struct {
	mu    sync.RWMutex
	names map[backends.AppID]appName
	list  chan struct{} // held by who asks the store for all applications
}

type appName struct {
	name  string
	until time.Time // when it is to be looked for again; zero for never
}

func (a *appIDs) init() {
	a.names = make(map[backends.AppID]appName)
	a.list = make(chan struct{}, 1)
}

// maxAppIDs bounds what is remembered. Applications that the store knows can be found again.
const maxAppIDs = 10_000

func (a *appIDs) find(id backends.AppID) (name string, ok bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	found, ok := a.names[id]
	return found.name, ok && (found.until.IsZero() || time.Now().Before(found.until))
}

func (a *appIDs) remember(id backends.AppID, name appName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.names) >= maxAppIDs {
		for other := range a.names { // any one
			delete(a.names, other)
			break
		}
	}
	a.names[id] = name
}

// Register registers the application of an app id, in any letter case, and returns the number that leads back to it
// (ApplicationOf): its AppID, or that of its alias. ErrFull says that there is no room for it.
func (s *Sessions) Register(ctx context.Context, req Request, appID string) (id backends.AppID, err error) {
	app := s.Application(strings.ToLower(appID))
	_, err = s.do(ctx, stmtApplications, req, func(ctx context.Context) error {
		for {
			r := s.route.Load()
			id, err = s.applications.resolve(ctx, r.store, app, true)
			if !errors.Is(err, backends.ErrMoved) {
				return err
			}
			if err := s.follow(ctx, r); err != nil {
				return err
			}
		}
	})
	if err == nil {
		s.appIDs.remember(id, appName{name: appID})
	}
	return id, err
}

// ApplicationOf returns the app id or application that has this number, for Application. It is known where Register told it; else the
// store's list is searched, which may take long, once. A number that is nobody's has an application of
// its own: some clients make their numbers themselves.
func (s *Sessions) ApplicationOf(ctx context.Context, req Request, id backends.AppID) (name string, err error) {
	if name, ok := s.appIDs.find(id); ok {
		return name, nil
	}
	select {
	case s.appIDs.list <- struct{}{}:
		defer func() { <-s.appIDs.list }()
	case <-ctx.Done():
		return "", fmt.Errorf("look for an application: %w", ctx.Err())
	}
	if name, ok := s.appIDs.find(id); ok { // meanwhile
		return name, nil
	}
	var list []backends.ApplicationInfo
	_, err = s.do(ctx, stmtApplications, req, func(ctx context.Context) error {
		list, err = s.route.Load().applications(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	for _, app := range list {
		if _, known := s.appIDs.find(app.ID); !known {
			s.appIDs.remember(app.ID, appName{name: app.Name})
		}
	}
	name, ok := s.appIDs.find(id)
	if !ok {
		name = "sqlserver/" + id.Suffix() + "/"
		s.appIDs.remember(id, appName{name, time.Now().Add(resolveEvery)})
	}
	return name, nil
}

// applications returns the applications of the store, and those of a store that sessions are moved away from.
func (r *route) applications(ctx context.Context) (list []backends.ApplicationInfo, err error) {
	if store, ok := r.store.(backends.Inspector); ok {
		if list, err = backends.Names(ctx, store); err != nil {
			return nil, err
		}
	}
	if r.moving != nil {
		former, err := backends.Names(ctx, r.moving.source)
		if err != nil {
			return nil, err
		}
		list = append(list, former...)
	}
	return list, nil
}
