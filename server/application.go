package server

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Application is an ASP.NET application by the name under which stores know it,
// and what is remembered of its AppID.
type Application struct {
	Name     string
	family   string
	resolved atomic.Pointer[resolved]
}

type resolved struct {
	store backends.Store // whose AppID it is
	id    backends.AppID
	until time.Time
}

const (
	// maxApplications bounds the cache of known applications.
	maxApplications = 10_000
	// resolveEvery is how often the store is asked again for an AppID that is
	// known. Stores forget names that nobody asked for in a day.
	resolveEvery = time.Hour
)

// applications caches known applications by name. What is unknown is asked of the
// store every time: another server may have registered it.
type applications struct {
	mu         sync.RWMutex
	known      map[string]*Application
	generation atomic.Uint64 // of the names
}

func (a *applications) init() { a.known = make(map[string]*Application) }

// forget forgets everything, because names mean other applications from now on.
func (a *applications) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.known)
	a.generation.Add(1)
}

// Generation changes whenever a name may mean another application than before.
func (s *Sessions) Generation() uint64 { return s.applications.generation.Load() }

// Application returns the application of this name, or that of its alias, without asking the store.
func (s *Sessions) Application(name string) *Application {
	name = s.aliases.Load().application(name)
	a := &s.applications
	a.mu.RLock()
	app := a.known[name]
	a.mu.RUnlock()
	if app == nil {
		app = &Application{Name: name, family: family(name)}
	}
	return app
}

// Known reports whether the store has told the application's AppID.
func (app *Application) Known() bool { return app.resolved.Load() != nil }

// key is the store's key of a session, of application 0 while that is not known.
func (app *Application) key(id string) backends.Key {
	key := backends.Key{ID: id}
	if known := app.resolved.Load(); known != nil {
		key.App = known.id
	}
	return key
}

func (a *applications) resolve(ctx context.Context, store backends.Store, app *Application, create bool) (backends.AppID, error) {
	was := app.resolved.Load()
	if was != nil && was.store == store && time.Now().Before(was.until) {
		return was.id, nil
	}
	id, err := store.Application(ctx, app.Name, create)
	if err != nil {
		return 0, err
	}
	app.resolved.Store(&resolved{store, id, time.Now().Add(resolveEvery)})
	if was == nil {
		a.remember(app)
	}
	return id, nil
}

func (a *applications) remember(app *Application) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxApplications {
		for name := range a.known { // any one: it is asked for again when needed
			delete(a.known, name)
			break
		}
	}
	a.known[app.Name] = app
}
