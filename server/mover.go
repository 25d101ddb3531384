package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Switching to another store while serving. From the moment when the old store is left, nothing in it changes any
// more, and all servers on it are told so by its answers; from then on each session is served by the new
// store, which takes it over from the old one before the first operation on it. In the background one server copies
// the rest.

const (
	// attendEvery is how often a server looks for an announced move, and is seen by the others.
	attendEvery = time.Second
	// agreeWithin is how long a move waits for the servers that share the database: longer than one that ended
	// without a word is in their list.
	agreeWithin = 15 * time.Second
	// closeAfter is how long a store that was left is kept open for requests that ask it still.
	closeAfter = 2 * time.Minute
)

// mover is what a server knows of moves.
type mover struct {
	open  func(ctx context.Context, where string) (backends.Store, error)
	show  func(where string) string
	where string // where the store of the route in force is
	one   chan struct{}
	moves atomic.Int64

	mu       sync.Mutex
	self     backends.Attendance
	prepared backends.Store // the target of the move self.Ready, at
	at       string
	retired  []*retired   // to be closed
	last     *storeOrigin // of the last move
}

func (m *mover) init(origin [8]byte) {
	host, _ := os.Hostname()
	m.self = backends.Attendance{ID: hex.EncodeToString(origin[:]), Name: host + " (process " + strconv.Itoa(os.Getpid()) + ")"}
	m.one = make(chan struct{}, 1)
}

// lock is for one change of the route at a time.
func (m *mover) lock(ctx context.Context) error {
	select {
	case m.one <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *mover) unlock() { <-m.one }

// Opens tells where the store is, as Switch takes it, how another one is opened, and how a place is shown without
// its secrets. Without it sessions cannot be moved.
func (s *Sessions) Opens(where string, open func(ctx context.Context, where string) (backends.Store, error), show func(where string) string) {
	s.mover.where, s.mover.open, s.mover.show = where, open, show
}

// completed is the move as it is kept when it is over.
func (m *mover) completed(move backends.Move) backends.Move {
	move.From, move.To = m.show(move.From), m.show(move.To)
	return move
}

// movable is a store that can be switched from and to.
type movable interface {
	backends.Store
	backends.Movable
}

// Switch moves all sessions to the store at to, for all servers that share the database. When it returns
// nil, they are served from there, and copying what nobody asks for goes on in the background. An error says
// why nothing has changed.
func (s *Sessions) Switch(ctx context.Context, to string) (err error) {
	m := &s.mover
	if m.open == nil {
		return fmt.Errorf("switch: %w", errors.ErrUnsupported)
	}
	if err := m.lock(ctx); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	defer m.unlock()
	r := s.route.Load()
	source, ok := r.store.(movable)
	switch {
	case !ok:
		return errors.New("switch: sessions cannot be moved away from this store")
	case r.moving != nil:
		return errors.New("switch: another switch is under way: wait for its end")
	case to == m.where:
		return nil
	}
	move := backends.Move{ID: m.self.ID + "-" + strconv.FormatInt(m.moves.Add(1), 10), From: m.where, To: to, Stage: backends.Announced}
	if err := s.closeBefore(ctx, to); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	target, err := m.openTarget(ctx, to)
	if err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	left := false
	defer func() {
		if !left {
			m.prepare("", "", nil)
			target.Close()
		}
	}()
	m.prepare(move.ID, to, target)
	if err := s.agree(ctx, source, target, move); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	if left, err = s.begin(ctx, source, target, move); !left {
		return fmt.Errorf("switch: %w", err)
	}
	return s.followLocked(ctx, r)
}

func (m *mover) openTarget(ctx context.Context, where string) (movable, error) {
	store, err := m.open(ctx, where)
	if err != nil {
		return nil, err
	}
	target, ok := store.(movable)
	if !ok {
		store.Close()
		return nil, errors.New("sessions cannot be moved to this store")
	}
	return target, nil
}

// prepare notes the opened target of a move, or that there is none.
func (m *mover) prepare(move, where string, target backends.Store) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.self.Ready, m.self.Fault, m.prepared, m.at = move, "", target, where
}

// attendance is what this server tells the others.
func (m *mover) attendance() backends.Attendance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.self
}

// agree announces the move and waits until every server on the database is ready for it. A server that
// has ended, or does not reach the database, leaves the list by itself; should it
// come back, the store that was left will tell it.
func (s *Sessions) agree(ctx context.Context, source, target movable, move backends.Move) (err error) {
	shared, ok := source.(backends.SharedMovable)
	if !ok {
		return nil
	}
	_, common := target.(backends.Shared)
	m := &s.mover
	if err := shared.Announce(ctx, move); err != nil {
		return fmt.Errorf("announce the move: %w", err)
	}
	defer func() {
		if err != nil {
			withdraw := move
			withdraw.Stage = backends.NoMove
			if err2 := shared.Announce(context.WithoutCancel(ctx), withdraw); err2 != nil {
				s.log.Warn("the announcement of a switch that was given up could not be withdrawn", "error", err2)
			}
		}
	}()
	for begun := time.Now(); ; {
		servers, err := shared.Attend(ctx, m.attendance())
		if err != nil {
			return fmt.Errorf("look for other servers: %w", err)
		}
		if !common && len(servers) > 1 {
			return fmt.Errorf("%d servers share the sessions, which only a database can go on doing", len(servers))
		}
		var waitsFor []string
		for _, server := range servers {
			if server.Fault != "" {
				return fmt.Errorf("server %s cannot follow: %s", server.Name, server.Fault)
			}
			if server.Ready != move.ID {
				waitsFor = append(waitsFor, server.Name)
			}
		}
		if len(waitsFor) == 0 {
			return nil
		}
		if time.Since(begun) > agreeWithin {
			return fmt.Errorf("these servers are not ready for it: %v", waitsFor)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(attendEvery / 5):
		}
	}
}

// begin makes the target enter the move and leaves the source. left says that it was left.
func (s *Sessions) begin(ctx context.Context, source, target movable, move backends.Move) (left bool, err error) {
	m := &s.mover
	away, into, err := target.Moves(ctx)
	if err != nil {
		return false, err
	}
	if away.Stage == backends.Moving { // over, perhaps, but for a word to that store: the server that copied was killed
		_, last, err := source.Moves(ctx)
		if err == nil && last.ID == away.ID && last.Stage == backends.Moved {
			err = target.Complete(ctx, m.completed(away))
		}
		if err != nil {
			return false, err
		}
	}
	if into.Stage == backends.Moving && into.From == move.From { // tried before, and came no further
		if err := target.Complete(ctx, m.completed(into)); err != nil {
			return false, err
		}
	}
	if err := target.Enter(ctx, move); err != nil {
		return false, fmt.Errorf("begin the move in the new store: %w", err)
	}
	for try := 0; ; try++ {
		if err = source.Leave(ctx, move); err == nil {
			return true, nil
		}
		if ctx.Err() != nil || try == 3 || errors.Is(err, backends.ErrMoved) || errors.Is(err, backends.ErrPermanent) {
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	away, _, err2 := source.Moves(ctx)
	if err2 != nil || away.ID == move.ID && away.Stage >= backends.Moving {
		return true, nil // or it may have been: the store's answers tell
	}
	if err2 := target.Complete(ctx, m.completed(move)); err2 != nil {
		s.log.Warn("a switch was given up, and the new store does not know it yet", "error", err2)
	}
	return false, fmt.Errorf("leave the old store: %w", err)
}

// follow puts the store in force to which the sessions of r's were moved.
func (s *Sessions) follow(ctx context.Context, r *route) error {
	if err := s.mover.lock(ctx); err != nil {
		return err
	}
	defer s.mover.unlock()
	return s.followLocked(ctx, r)
}

func (s *Sessions) followLocked(ctx context.Context, r *route) error {
	m := &s.mover
	if s.route.Load() != r {
		return nil // somebody has
	}
	source, ok := r.store.(movable)
	if !ok || m.open == nil {
		return errors.New("the store was left, and this server cannot follow")
	}
	move, _, err := source.Moves(ctx)
	if err != nil {
		return fmt.Errorf("ask where the sessions are: %w", err)
	}
	if move.Stage < backends.Moving {
		return errors.New("the store says that it was left, and then that it was not")
	}
	target, where := m.takePrepared(move.ID)
	if target == nil {
		where = move.To
		if err := s.closeBefore(ctx, move.To); err != nil {
			return err
		}
		if target, err = m.openTarget(ctx, move.To); err != nil {
			return err
		}
	}
	m.where = where
	if move.Stage == backends.Moved {
		s.setRoute(newRoute(target, s.ownOrigins()...))
		s.retire(move.From, r.store, r)
		s.log.Info("sessions are served from another store now", "move", move.ID)
		return nil
	}
	s.serveMove(source, target, move, r)
	s.log.Info("sessions are served from another store now, which takes them over from the old one", "move", move.ID)
	return nil
}

func (m *mover) takePrepared(move string) (target movable, where string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.prepared == nil || m.self.Ready != move {
		return nil, ""
	}
	target = m.prepared.(movable)
	m.prepared = nil
	return target, m.at
}

// serveMove puts the route in force on which sessions are taken over from source.
func (s *Sessions) serveMove(source, target movable, move backends.Move, from *route) {
	o := &storeOrigin{move: move, source: source, target: target, from: from}
	r := newRoute(target, append([]origin{o}, s.ownOrigins()...)...)
	r.moving = o
	s.mover.mu.Lock()
	s.mover.self.Ready = move.ID
	s.mover.last = o
	s.mover.mu.Unlock()
	s.setRoute(r)
}

// Resume goes on with a move into the store that was under way when its servers ended.
func (s *Sessions) Resume(ctx context.Context, move backends.Move) error {
	target, ok := s.Store().(movable)
	if !ok {
		return fmt.Errorf("resume a move: %w", errors.ErrUnsupported)
	}
	source, err := s.mover.openTarget(ctx, move.From)
	if err != nil {
		return fmt.Errorf("resume the move of sessions from another store: %w", err)
	}
	if err := source.Leave(ctx, move); err != nil {
		source.Close()
		return fmt.Errorf("resume the move of sessions from another store: %w", err)
	}
	s.serveMove(source, target, move, nil)
	s.log.Info("the move of sessions from another store goes on", "move", move.ID)
	return nil
}

// retired is a store that was left.
type retired struct {
	where string
	since time.Time
	store backends.Store
	route *route // that it was the store of, nil where it was only moved away from
}

// retire closes a store that was left when no request can be asking it.
func (s *Sessions) retire(where string, store backends.Store, r *route) {
	old := &retired{where: where, since: time.Now(), store: store, route: r}
	s.mover.mu.Lock()
	s.mover.retired = append(s.mover.retired, old)
	s.mover.mu.Unlock()
	time.AfterFunc(closeAfter, func() { s.closeRetired(old) })
}

func (s *Sessions) closeRetired(old *retired) error {
	m := &s.mover
	m.mu.Lock()
	i := slices.Index(m.retired, old)
	if i >= 0 {
		m.retired = slices.Delete(m.retired, i, i+1)
	}
	m.mu.Unlock()
	if i < 0 {
		return nil
	}
	if old.route != nil {
		close(old.route.closed)
	}
	err := old.store.Close()
	if err != nil {
		s.log.Warn("the store that was left could not be closed", "error", err)
	}
	return err
}

// closeBefore closes a store that was left before it is opened again, when the requests of that time have ended.
func (s *Sessions) closeBefore(ctx context.Context, where string) error {
	m := &s.mover
	m.mu.Lock()
	i := slices.IndexFunc(m.retired, func(old *retired) bool { return old.where == where })
	var old *retired
	if i >= 0 {
		old = m.retired[i]
	}
	m.mu.Unlock()
	if old == nil {
		return nil
	}
	if _, shared := old.store.(backends.Shared); shared {
		return nil // it can be open twice
	}
	select {
	case <-time.After(time.Until(old.since.Add(time.Duration(s.budget.Load())))):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.closeRetired(old)
}

// Close closes the store that serves, and those that were left. Run has returned.
func (s *Sessions) Close() error {
	m := &s.mover
	m.mu.Lock()
	left := slices.Clone(m.retired)
	prepared := m.prepared
	m.prepared = nil
	m.mu.Unlock()
	var errs []error
	for _, old := range left {
		errs = append(errs, s.closeRetired(old))
	}
	if prepared != nil {
		errs = append(errs, prepared.Close())
	}
	r := s.route.Load()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.moving != nil {
		s.depart(ctx, r.moving.source)
		errs = append(errs, r.moving.source.Close())
	}
	s.depart(ctx, r.store)
	return errors.Join(append(errs, r.store.Close())...)
}

// depart takes this server out of the list of those on a database.
func (s *Sessions) depart(ctx context.Context, store backends.Store) {
	if shared, ok := store.(backends.SharedMovable); ok {
		if err := shared.Depart(ctx, s.mover.self.ID); err != nil {
			s.log.Debug("this server could not be taken out of the list of servers; it leaves it by itself", "error", err)
		}
	}
}
