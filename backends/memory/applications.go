package memory

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"aspstate/backends"
)

const (
	// maxApplications bounds the table of names, which clients choose.
	maxApplications = 10000
	// forgetAfter is how long an application without sessions is remembered after it was
	// last asked for. Who keeps an AppID asks again within that time.
	forgetAfter = 24 * time.Hour
)

// applications is the table of names and their numbers.
type applications struct {
	mu     sync.Mutex
	byName map[string]*application
	ids    map[backends.AppID]struct{}
}

type application struct {
	id    backends.AppID
	asked time.Duration // when last, on the store's clock
}

func newApplications() applications {
	return applications{byName: map[string]*application{}, ids: map[backends.AppID]struct{}{}}
}

// Application implements backends.Store. There is room for 10,000 names. A name is forgotten by DeleteExpired
// when it has no sessions and was not asked for in 24 hours.
func (s *Store) Application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	s.apps.mu.Lock()
	defer s.apps.mu.Unlock()
	if err := s.ready(ctx, "application"); err != nil {
		return 0, err
	}
	if app := s.apps.byName[name]; app != nil {
		app.asked = s.now()
		return app.id, nil
	}
	if !create {
		return 0, backends.ErrUnknownApplication
	}
	if len(s.apps.byName) >= maxApplications {
		return 0, fmt.Errorf("memory: application: %d names are registered: %w", maxApplications, backends.ErrFull)
	}
	id := backends.HashAppID(name)
	for {
		if _, taken := s.apps.ids[id]; !taken {
			break
		}
		id++
	}
	s.apps.byName[strings.Clone(name)] = &application{id: id, asked: s.now()}
	s.apps.ids[id] = struct{}{}
	return id, nil
}

// forgetApplications deletes the names that nobody needs. Names with sessions are not
// looked at again for another forgetAfter, so that it seldom has anything to do.
func (s *Store) forgetApplications(ctx context.Context) error {
	s.apps.mu.Lock()
	defer s.apps.mu.Unlock()
	if err := s.ready(ctx, "forget applications"); err != nil {
		return err
	}
	due := s.now() - forgetAfter
	var used map[backends.AppID]struct{}
	for name, app := range s.apps.byName {
		if app.asked > due {
			continue
		}
		if used == nil {
			used = s.usedApplications()
		}
		if _, ok := used[app.id]; ok {
			app.asked = s.now()
			continue
		}
		delete(s.apps.byName, name)
		delete(s.apps.ids, app.id)
	}
	return nil
}

// usedApplications returns the AppIDs that have sessions.
func (s *Store) usedApplications() map[backends.AppID]struct{} {
	used := map[backends.AppID]struct{}{}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for id := range sh.apps {
			used[id] = struct{}{}
		}
		sh.mu.Unlock()
	}
	return used
}
