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

// storeOrigin is the store that sessions are moved away from. It was left: nothing in it changes any more.
type storeOrigin struct {
	move           backends.Move
	source, target movable
	from           *route       // that source was the store of, nil where this process did not serve it
	claimed        atomic.Int64 // on first touch
	progress       progress

	mu           sync.Mutex
	applications map[string]backends.AppID // nil until they have been read
}

func (o *storeOrigin) concerns(*Application) bool { return true }

func (o *storeOrigin) claim(ctx context.Context, r *route, session Session, _ backends.Cookie) error {
	app, known, err := o.application(ctx, session.App.Name)
	if err != nil || !known {
		return err
	}
	found, err := o.source.Inspect(ctx, backends.Key{App: app, ID: session.ID})
	if errors.Is(err, backends.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take over the session: %w", err)
	}
	if found.App, err = o.target.Application(ctx, session.App.Name, true); err != nil {
		return fmt.Errorf("take over the session: %w", err)
	}
	n, err := o.target.Import(ctx, o.move.ID, []backends.Session{found})
	if errors.Is(err, backends.ErrMoved) { // all have been moved
		return nil
	}
	if err != nil {
		return fmt.Errorf("take over the session: %w", err)
	}
	o.claimed.Add(int64(n))
	return nil
}

// application returns the AppID that an application had in the source.
func (o *storeOrigin) application(ctx context.Context, name string) (backends.AppID, bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.applications == nil {
		list, err := backends.Names(ctx, o.source)
		if err != nil {
			return 0, false, fmt.Errorf("take over the session: %w", err)
		}
		o.applications = make(map[string]backends.AppID, len(list))
		for _, app := range list {
			o.applications[app.Name] = app.ID
		}
	}
	id, known := o.applications[name]
	return id, known, nil
}

// progress is how far the copying has come.
type progress struct {
	mu      sync.Mutex
	begun   time.Time
	total   int
	done    int
	over    bool
	failure error
}

// SwitchProgress is how far a switch to another store has come.
type SwitchProgress struct {
	Move    backends.Move
	Claimed int64         // sessions taken over because they were asked for, by this server
	Copying bool          // this server copies the others
	Total   int           // sessions in the old store when it was left
	Done    int           // of these, looked at by the copier
	Rate    float64       // sessions a second
	Left    time.Duration // until all are looked at, at this rate
	Over    bool
	Failure error // the copier's last, which tries again
}

// Progress returns how far the last switch has come that this server took part in. ok is false if there was none.
func (s *Sessions) Progress() (p SwitchProgress, ok bool) {
	s.mover.mu.Lock()
	o := s.mover.last
	s.mover.mu.Unlock()
	if o == nil {
		return p, false
	}
	g := &o.progress
	g.mu.Lock()
	defer g.mu.Unlock()
	p = SwitchProgress{Move: o.move, Claimed: o.claimed.Load(), Copying: !g.begun.IsZero() && !g.over, Total: g.total, Done: g.done, Over: g.over, Failure: g.failure}
	if took := time.Since(g.begun); !g.begun.IsZero() && took > 0 {
		p.Rate = float64(g.done) / took.Seconds()
	}
	if p.Rate > 0 && p.Total > p.Done {
		p.Left = time.Duration(float64(p.Total-p.Done) / p.Rate * float64(time.Second))
	}
	return p, true
}

// copier moves the sessions that nobody asks for, on one of the servers.
type copier struct {
	s      *Sessions
	of     *storeOrigin
	cancel context.CancelFunc
	ended  chan struct{}
}

func newCopier(s *Sessions) *copier { return &copier{s: s} }

// mind sees to it that one server copies, and ends the move here when it is complete. What it starts
// runs until running ends.
func (c *copier) mind(ctx, running context.Context, r *route) error {
	o := r.moving
	_, into, err := o.target.Moves(ctx)
	if err != nil {
		return err
	}
	if into.ID != o.move.ID || into.Stage != backends.Moving {
		if c.of == o { // completes the move in the source, too: cut short, it would be in the way of one back
			select {
			case <-c.ended:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c.stop()
		return c.s.endMove(ctx, r)
	}
	if shared, ok := o.source.(backends.SharedMovable); ok {
		servers, err := shared.Attend(ctx, c.s.mover.attendance())
		if err != nil {
			return err
		}
		for _, server := range servers { // the first that is ready
			if server.Ready == o.move.ID {
				if server.ID != c.s.mover.self.ID {
					return nil
				}
				break
			}
		}
	}
	if c.of == o {
		select {
		case <-c.ended: // with a failure, or it is complete
		default:
			return nil
		}
	}
	ctx, c.cancel = context.WithCancel(running)
	ended := make(chan struct{})
	c.of, c.ended = o, ended
	go func() {
		defer close(ended)
		err := c.s.copyAll(ctx, o)
		o.progress.mu.Lock()
		o.progress.failure = err
		o.progress.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			c.s.log.Warn("copying sessions from the old store failed; it is tried again", "error", err)
		}
	}()
	return nil
}

func (c *copier) stop() {
	if c.of != nil {
		c.cancel()
		<-c.ended
		c.of = nil
	}
}

// endMove serves from the target alone, which has all sessions.
func (s *Sessions) endMove(ctx context.Context, r *route) error {
	if err := s.mover.lock(ctx); err != nil {
		return err
	}
	defer s.mover.unlock()
	if s.route.Load() != r {
		return nil
	}
	o := r.moving
	next := newRoute(r.store, s.ownOrigins()...)
	next.closed = r.closed
	s.setRoute(next)
	o.progress.mu.Lock()
	o.progress.over, o.progress.failure = true, nil
	o.progress.mu.Unlock()
	s.depart(ctx, o.source)
	s.retire(o.move.From, o.source, o.from)
	s.log.Info("the switch is complete, the old store is not needed any more", "move", o.move.ID, "claimed", o.claimed.Load())
	return nil
}

const (
	copyKeys  = 500     // sessions listed at once
	copyBytes = 4 << 20 // of items read at once
	// progressEvery is how often copying says how far it is.
	progressEvery = 5 * time.Second
)

// copyAll imports every session of the source, and completes the move.
func (s *Sessions) copyAll(ctx context.Context, o *storeOrigin) error {
	apps, err := o.source.Applications(ctx)
	if err != nil {
		return err
	}
	g := &o.progress
	g.mu.Lock()
	g.begun, g.total, g.done = time.Now(), 0, 0
	for _, app := range apps {
		g.total += app.Sessions
	}
	g.mu.Unlock()
	told := time.Now()
	c := Copy{From: o.source, To: o.target, Move: o.move.ID, Done: func(n int) {
		g.mu.Lock()
		g.done += n
		g.mu.Unlock()
		if time.Since(told) >= progressEvery {
			told = time.Now()
			p, _ := s.Progress()
			s.log.Info("copying sessions to the new store", "done", p.Done, "left", max(0, p.Total-p.Done),
				"a_second", int(p.Rate), "time_left", p.Left.Round(time.Second))
		}
	}}
	if _, err = c.Run(ctx); err != nil && !errors.Is(err, backends.ErrMoved) {
		return err
	}
	done := s.mover.completed(o.move)
	if err := o.target.Complete(ctx, done); err != nil {
		return err
	}
	return o.source.Complete(ctx, done)
}

// Copy copies sessions between stores.
type Copy struct {
	From backends.Inspector
	To   interface {
		backends.Store
		backends.Movable
	}
	Move string // the move's ID; empty to import what is missing, outside of any move
	// Done is told of sessions that were dealt with.
	Done func(n int)
}

// Copied counts what a Copy did.
type Copied struct{ Found, Copied int }

// Run copies all sessions, in the order of their keys.
func (c Copy) Run(ctx context.Context) (sum Copied, err error) {
	apps, err := backends.Names(ctx, c.From)
	if err != nil {
		return sum, err
	}
	ids := make(map[backends.AppID]backends.AppID, len(apps))
	for _, app := range apps {
		if ids[app.ID], err = c.To.Application(ctx, app.Name, true); err != nil {
			return sum, err
		}
	}
	err = eachBatch(ctx, c.From, backends.Key{}, func(_ backends.Key, n int, sessions []backends.Session) error {
		for i := range sessions {
			sessions[i].App = ids[sessions[i].App]
		}
		imported, err := c.To.Import(ctx, c.Move, sessions)
		sum.Found += len(sessions)
		sum.Copied += imported
		if err == nil {
			c.Done(n)
		}
		return err
	})
	return sum, err
}

// eachBatch calls do with all sessions of a store behind a key and their data, in the order of their keys and so many at once that
// their data are not more than copyBytes, or one session. last is the key of the last, and n their number, those included that
// have expired meanwhile.
func eachBatch(ctx context.Context, store backends.Inspector, after backends.Key,
	do func(last backends.Key, n int, sessions []backends.Session) error) error {
	for {
		page, err := store.List(ctx, backends.Query{After: after, Limit: copyKeys})
		if err != nil {
			return err
		}
		for rest := page; len(rest) > 0; {
			n := batch(rest, copyBytes)
			sessions, err := store.List(ctx, backends.Query{After: after, Limit: n, Data: true})
			if err != nil {
				return err
			}
			after, rest = rest[n-1].Key, rest[n:]
			for i := range sessions {
				if sessions[i].Compare(after) > 0 { // some have expired since
					sessions = sessions[:i]
					break
				}
			}
			if err := do(after, n, sessions); err != nil {
				return err
			}
		}
		if len(page) < copyKeys {
			return nil
		}
	}
}

// batch returns how many sessions, from the first on, have no more than so many bytes together; one if there is any.
func batch(sessions []backends.Session, most int) (n int) {
	size := 0
	for n < len(sessions) && (n == 0 || size+sessions[n].Size <= most) {
		size += sessions[n].Size
		n++
	}
	return n
}
