package sqlite

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

const (
	// maxApplications bounds the table of names, which clients choose.
	maxApplications = 10000
	// forgetAfter is how long an application without sessions is remembered after it was last asked
	// for. Who keeps an AppID asks again within that time.
	forgetAfter = 24 * time.Hour
	// noteAfter is how old a last use in the table may be before it is written anew.
	noteAfter = time.Hour
	// forgetAtOnce is how many applications one DeleteExpired looks at.
	forgetAtOnce = 100
)

const (
	listApplications  = `SELECT app_id, app_name, last_use FROM applications`
	findApplication   = `SELECT app_id FROM applications WHERE app_name = ?1`
	countApplications = `SELECT count(*) FROM applications`
	insertApplication = `INSERT INTO applications (app_id, app_name, last_use) VALUES (?1, ?2, ?3)`
	touchApplication  = `UPDATE applications SET last_use = ?2 WHERE app_id = ?1`
	forgetApplication = `DELETE FROM applications WHERE app_id = ?1`

	// Whether a number is an application's, and whether sessions are kept under it.
	appIDInUse = `SELECT EXISTS (SELECT 1 FROM applications WHERE app_id = ?1), EXISTS (SELECT 1 FROM sessions WHERE app_id = ?1)`
)

// applications are the names in the table, so that known ones are found without asking it. What is
// not here may still be there: the writer knows.
type applications struct {
	mu     sync.RWMutex
	byName map[string]*application
}

type application struct {
	name  string
	id    backends.AppID
	asked atomic.Int64 // when last
	noted atomic.Int64 // last use in the table
}

// load reads the table.
func (a *applications) load(c *conn) error {
	a.byName = map[string]*application{}
	s, err := c.prepareOnce(listApplications)
	if err != nil {
		return err
	}
	defer s.finalize()
	for {
		row, err := s.step()
		if err != nil || !row {
			return err
		}
		a.put(s.text(1), backends.AppID(s.int(0)), s.int(2))
	}
}

func (a *applications) put(name string, id backends.AppID, asked int64) {
	app := &application{name: strings.Clone(name), id: id}
	app.asked.Store(asked)
	app.noted.Store(asked)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.byName[app.name] = app
}

// ask returns a known application, which counts as used now.
func (a *applications) ask(name string, now int64) *application {
	a.mu.RLock()
	defer a.mu.RUnlock()
	app := a.byName[name]
	if app != nil {
		app.asked.Store(now)
	}
	return app
}

func (a *applications) knows(name string) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.byName[name] != nil
}

func (a *applications) full() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.byName) >= maxApplications
}

// Application implements backends.Store. There is room for 10,000 names. A name is forgotten by
// DeleteExpired when it has no sessions and was not asked for in 24 hours.
func (s *Store) Application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	select {
	case <-s.closing:
		return 0, notApplied("application", errClosed)
	default:
	}
	if s.moves.Load().Left() {
		return 0, movedError("application")
	}
	if app := s.apps.ask(name, time.Now().UnixMilli()); app != nil {
		return app.id, nil
	}
	if create && s.apps.full() {
		return 0, errTooManyApplications
	}
	var id backends.AppID
	o := newOp("application", func(w *writer, o *op) (err error) {
		id, err = w.application(o, name, create)
		return err
	}, backends.Key{}, backends.Token{})
	o.stores = true
	if err := s.do(ctx, o); err != nil {
		return 0, err
	}
	defer o.recycle()
	if o.err == nil {
		s.apps.put(name, id, time.Now().UnixMilli())
	}
	return id, o.err
}

var errTooManyApplications = fmt.Errorf("sqlite: application: %d names are registered: %w", maxApplications, backends.ErrFull)

// application finds an application or registers it.
func (w *writer) application(o *op, name string, create bool) (backends.AppID, error) {
	id, found, err := w.registered(name)
	switch {
	case err != nil:
		return 0, err
	case found:
		w.apps.put(name, id, w.now) // at once, so that it is not forgotten before the caller has it
		return id, nil
	case !create:
		o.err = backends.ErrUnknownApplication
		return 0, nil
	}
	n, err := w.registeredCount()
	if err != nil {
		return 0, err
	}
	if n >= maxApplications {
		o.err = errTooManyApplications
		return 0, nil
	}
	if id, err = w.freeAppID(backends.HashAppID(name)); err != nil {
		return 0, err
	}
	w.insertApplication.bindInt(1, int64(id))
	w.insertApplication.bindText(2, name)
	w.insertApplication.bindInt(3, w.now)
	return id, w.insertApplication.run()
}

func (w *writer) registered(name string) (id backends.AppID, found bool, err error) {
	defer w.findApplication.reset()
	w.findApplication.bindText(1, name)
	if found, err = w.findApplication.step(); found {
		id = backends.AppID(w.findApplication.int(0))
	}
	return id, found, err
}

func (w *writer) registeredCount() (int64, error) {
	defer w.countApplications.reset()
	if _, err := w.countApplications.step(); err != nil {
		return 0, err
	}
	return w.countApplications.int(0), nil
}

// freeAppID returns the first number from hash on that is no application's. Sessions without an
// application may be kept under hash: this is the application that was forgotten. Under another
// number they are those of a name that is not known any more, and not for this one to find.
func (w *writer) freeAppID(hash backends.AppID) (backends.AppID, error) {
	for id := hash; ; id++ {
		application, sessions, err := w.inUse(id)
		if err != nil || !application && (!sessions || id == hash) {
			return id, err
		}
	}
}

func (w *writer) inUse(id backends.AppID) (application, sessions bool, err error) {
	defer w.appIDInUse.reset()
	w.appIDInUse.bindInt(1, int64(id))
	if _, err := w.appIDInUse.step(); err != nil {
		return false, false, err
	}
	return w.appIDInUse.int(0) != 0, w.appIDInUse.int(1) != 0, nil
}

// tendApplications writes down when applications were last used, and forgets those that nobody
// needs.
func (s *Store) tendApplications(ctx context.Context) error {
	used, idle := s.apps.due(time.Now())
	if len(used)+len(idle) == 0 {
		return nil
	}
	var forgotten int
	o := newOp("tend applications", func(w *writer, _ *op) (err error) {
		forgotten, err = w.tendApplications(used, idle)
		return err
	}, backends.Key{}, backends.Token{})
	if err := s.finish(ctx, o); err != nil {
		return err
	}
	for _, app := range used {
		app.noted.Store(app.asked.Load())
	}
	if forgotten > 0 {
		s.log.Info("applications without sessions were forgotten", "applications", forgotten)
	}
	return nil
}

// due returns the applications whose use is to be noted and some that may be forgotten. The latter
// are not known from here on, until the writer has looked at them or is asked.
func (a *applications) due(now time.Time) (used, idle []*application) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, app := range a.byName {
		asked := app.asked.Load()
		switch {
		case asked < now.Add(-forgetAfter).UnixMilli():
			if len(idle) < forgetAtOnce {
				delete(a.byName, name)
				idle = append(idle, app)
			}
		case asked-app.noted.Load() > noteAfter.Milliseconds():
			used = append(used, app)
		}
	}
	return used, idle
}

func (w *writer) tendApplications(used, idle []*application) (forgotten int, err error) {
	for _, app := range used {
		w.touchApplication.bindInt(1, int64(app.id))
		w.touchApplication.bindInt(2, app.asked.Load())
		if err := w.touchApplication.run(); err != nil {
			return 0, err
		}
	}
	for _, app := range idle {
		if w.apps.knows(app.name) {
			continue // asked for again meanwhile
		}
		_, sessions, err := w.inUse(app.id)
		if err != nil {
			return 0, err
		}
		if sessions {
			w.apps.put(app.name, app.id, w.now) // to be looked at again in another forgetAfter
			continue
		}
		w.forgetApplication.bindInt(1, int64(app.id))
		if err := w.forgetApplication.run(); err != nil {
			return 0, err
		}
		forgotten++
	}
	return forgotten, nil
}
