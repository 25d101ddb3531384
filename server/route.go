package server

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"aspstate/backends"
)

// route is where sessions are served: by a store, which takes over from the origins what it
// does not have yet. A route never changes; a switch puts another in its place.
type route struct {
	store   backends.Store
	shared  backends.Shared // the store, where other servers use it too
	origins []origin
	settled settled
	moving  *storeOrigin  // one of the origins, while sessions are moved away from it
	over    chan struct{} // closed when another route is in place
	closed  chan struct{} // closed when the store has been closed; routes to one store share it
}

// origin is another place where a session may be that the store does not have.
type origin interface {
	// concerns reports whether sessions of the application may be there.
	concerns(app *Application) bool
	// claim moves the session from there into the route's store, if it is there. It is called
	// before the first operation on the session, by one request at a time. cookie is the lock's with which the
	// request comes. A lock of a page that runs elsewhere is a LockedError.
	claim(ctx context.Context, r *route, session Session, cookie backends.Cookie) error
}

func newRoute(store backends.Store, origins ...origin) *route {
	r := &route{store: store, origins: origins, over: make(chan struct{}), closed: make(chan struct{})}
	r.shared, _ = store.(backends.Shared)
	return r
}

// setRoute puts r in the place of the route in force.
func (s *Sessions) setRoute(r *route) {
	old := s.route.Swap(r)
	s.handover.shared.Store(r.shared != nil)
	if old != nil {
		close(old.over)
	}
}

// Store returns the store that serves now. A switch puts another in its place.
func (s *Sessions) Store() backends.Store { return s.route.Load().store }

// place is where one request is carried out. A try whose answer was lost can be repeated only by the store that it
// was sent to; so the request stays there until that store answers, or says that it did not apply it before it
// was left.
type place struct {
	s       *Sessions
	session Session
	cookie  backends.Cookie
	route   *route
	key     backends.Key
	sent    bool // a try may have been applied by route.store, as key
}

func (s *Sessions) place(session Session, cookie backends.Cookie) place {
	return place{s: s, session: session, cookie: cookie}
}

// do calls op with the store that serves the session, and its key there. An application that does not exist, and is not to
// be created, has no sessions.
func (p *place) do(ctx context.Context, create bool, op func(store backends.Store, key backends.Key) error) error {
	for {
		if p.sent {
			select {
			case <-p.route.closed: // nobody is left to ask
				p.sent = false
			default:
			}
		}
		if !p.sent {
			p.route = p.s.route.Load()
			var err error
			if p.key, err = p.s.key(ctx, p.route, p.session, create, p.cookie); err != nil {
				if p.leave(ctx, err) {
					continue
				}
				return notApplied(err)
			}
		}
		err := op(p.route.store, p.key)
		switch {
		case errors.Is(err, backends.ErrMoved):
			if p.sent = false; p.leave(ctx, err) {
				continue
			}
			return notApplied(err)
		case backends.IsAnswer(err):
			p.sent = false
		case !errors.Is(err, backends.ErrNotApplied):
			p.sent = true
		}
		return err
	}
}

// leave follows a store that was left to the one that serves its sessions now. It returns false where err
// is something else, or that store cannot be reached.
func (p *place) leave(ctx context.Context, err error) bool {
	if !errors.Is(err, backends.ErrMoved) {
		return false
	}
	if err := p.s.follow(ctx, p.route); err != nil {
		p.s.outage.failed("follow the sessions to another store", err)
		return false
	}
	return true
}

// notApplied marks a failure that came before the operation. Answers stay as they are.
func notApplied(err error) error {
	if backends.IsAnswer(err) || errors.Is(err, backends.ErrNotApplied) {
		return err
	}
	return fmt.Errorf("%w: %w", err, backends.ErrNotApplied)
}

// key finds the store's key of a session, which the origins have given away by then.
func (s *Sessions) key(ctx context.Context, r *route, session Session, create bool, cookie backends.Cookie) (backends.Key, error) {
	if len(r.origins) > 0 {
		if err := r.settle(ctx, session, cookie); err != nil {
			return backends.Key{}, err
		}
	}
	id, err := s.applications.resolve(ctx, r.store, session.App, create)
	if errors.Is(err, backends.ErrUnknownApplication) {
		err = backends.ErrNotFound
	}
	return backends.Key{App: id, ID: session.ID}, err
}

// settle asks the origins for a session, unless they have been asked.
func (r *route) settle(ctx context.Context, session Session, cookie backends.Cookie) error {
	concerned := false
	for _, o := range r.origins {
		concerned = concerned || o.concerns(session.App)
	}
	if !concerned {
		return nil
	}
	name := sessionName{session.App.Name, session.ID}
	return r.settled.once(ctx, name, func() error {
		for _, o := range r.origins {
			if !o.concerns(session.App) {
				continue
			}
			if err := o.claim(ctx, r, session, cookie); err != nil {
				return err
			}
		}
		return nil
	})
}

// sessionName is a session by names that are the same in every store.
type sessionName struct{ application, id string }

// settled are the sessions whose origins have been asked, and nothing is left there.
type settled struct {
	mu    sync.Mutex
	done  map[sessionName]struct{}
	under map[sessionName]chan struct{} // being asked for; closed when that is over
}

// maxSettled bounds what is remembered. Origins may be asked again.
const maxSettled = 200_000

// once calls ask unless it has succeeded for this session, and for one request at a time.
func (s *settled) once(ctx context.Context, name sessionName, ask func() error) error {
	var own chan struct{}
	for own == nil {
		s.mu.Lock()
		if _, ok := s.done[name]; ok {
			s.mu.Unlock()
			return nil
		}
		other := s.under[name]
		if other == nil {
			own = make(chan struct{})
			if s.under == nil {
				s.done, s.under = make(map[sessionName]struct{}), make(map[sessionName]chan struct{})
			}
			s.under[name] = own
		}
		s.mu.Unlock()
		if other != nil {
			select {
			case <-other:
			case <-ctx.Done():
				return fmt.Errorf("take over the session: %w", ctx.Err())
			}
		}
	}
	err := ask()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		if len(s.done) >= maxSettled {
			clear(s.done)
		}
		s.done[name] = struct{}{}
	}
	delete(s.under, name)
	close(own)
	return err
}
