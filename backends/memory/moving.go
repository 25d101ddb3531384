package memory

import (
	"context"
	"fmt"

	"aspstate/backends"
)

// Moves implements backends.Movable. Moves are kept in memory too: who starts anew has neither sessions nor moves.
func (s *Store) Moves(ctx context.Context) (away, into backends.Move, err error) {
	if err := s.open(ctx, "moves"); err != nil {
		return backends.Move{}, backends.Move{}, err
	}
	m := s.moves.Load()
	return m.Away, m.Into, nil
}

// Leave implements backends.Movable.
func (s *Store) Leave(ctx context.Context, m backends.Move) error {
	return s.step(ctx, "leave", func(was backends.Moves) (backends.Moves, error) { return was.Leave(m) })
}

// Enter implements backends.Movable.
func (s *Store) Enter(ctx context.Context, m backends.Move) error {
	return s.step(ctx, "enter", func(was backends.Moves) (backends.Moves, error) { return was.Enter(m) })
}

// Complete implements backends.Movable.
func (s *Store) Complete(ctx context.Context, m backends.Move) error {
	return s.step(ctx, "complete", func(was backends.Moves) (backends.Moves, error) { return was.Complete(m) })
}

// step takes a step of a move. Operations look at moves under the lock of a shard or of the applications: after a
// pass over all of these, none is under way that has not seen the step.
func (s *Store) step(ctx context.Context, what string, rule func(backends.Moves) (backends.Moves, error)) error {
	s.moving.Lock()
	defer s.moving.Unlock()
	if err := s.open(ctx, what); err != nil {
		return err
	}
	was := *s.moves.Load()
	is, err := rule(was)
	if err != nil {
		return fmt.Errorf("memory: %s: %w", what, err)
	}
	if is == was {
		return nil
	}
	if was.Left() && !is.Left() {
		s.forgetSessions() // while nobody finds any
	}
	s.apps.mu.Lock()
	s.moves.Store(&is)
	s.apps.mu.Unlock()
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		if is.Into.Stage != backends.Moving {
			sh.arrivals = nil
		}
		sh.mu.Unlock()
	}
	return nil
}

func (s *Store) forgetSessions() {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, se := range sh.queue {
			s.bytes.Add(-se.size())
		}
		sh.sessions = newTable()
		clear(sh.apps)
		sh.queue = nil
		sh.mu.Unlock()
	}
}

// Import implements backends.Movable. Each session is taken in by itself.
func (s *Store) Import(ctx context.Context, move string, sessions []backends.Session) (int, error) {
	if err := s.importing(ctx, move); err != nil {
		return 0, err
	}
	taken := 0
	for i := range sessions {
		took, err := s.take(ctx, move, &sessions[i])
		if err != nil {
			return taken, err
		}
		if took {
			taken++
		}
	}
	return taken, nil
}

func (s *Store) importing(ctx context.Context, move string) error {
	if err := s.open(ctx, "import"); err != nil {
		return err
	}
	if err := s.moves.Load().Import(move); err != nil {
		return fmt.Errorf("memory: import: %w", err)
	}
	return nil
}

func (s *Store) take(ctx context.Context, move string, from *backends.Session) (bool, error) {
	if from.Timeout != backends.NeverExpires && from.Left < 0 {
		return false, nil
	}
	data := string(from.Data) // not under the lock
	sh := s.shard(from.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if err := s.importing(ctx, move); err != nil {
		return false, err
	}
	if _, arrived := sh.arrivals[from.Key]; arrived && move != "" {
		return false, nil
	}
	now := s.now()
	taken := false
	if there := sh.sessions.get(s.hash(from.Key), from.Key); there == nil || there.expires < now {
		if there != nil {
			s.drop(sh, there)
		}
		se := &session{
			key:           from.Key,
			data:          data,
			timeout:       from.Timeout,
			expires:       never,
			created:       from.Created.Sub(s.start),
			lockedAt:      now - from.LockAge,
			cookie:        from.LockCookie,
			locked:        from.Locked,
			uninitialized: from.Uninitialized,
		}
		if from.Timeout != backends.NeverExpires && from.Left <= never-now {
			se.expires = now + from.Left
		}
		if err := s.add(sh, now, se); err != nil {
			return false, err
		}
		taken = true
	}
	if move != "" {
		if sh.arrivals == nil {
			sh.arrivals = map[backends.Key]struct{}{}
		}
		sh.arrivals[from.Key] = struct{}{}
	}
	return taken, nil
}
