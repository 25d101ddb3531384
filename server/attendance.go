package server

import (
	"context"
	"slices"
	"time"

	"aspstate/backends"
)

// attend makes this server seen, follows the moves that others make, and does its share of them,
// until ctx ends.
func (s *Sessions) attend(ctx context.Context) {
	if s.mover.open == nil {
		return
	}
	copying := newCopier(s)
	defer copying.stop()
	for {
		r := s.route.Load()
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		var err error
		if r.moving != nil {
			err = copying.mind(try, ctx, r)
		} else {
			err = s.watch(try, r)
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			s.log.Debug("looking after moves of sessions failed", "error", err)
		}
		every := attendEvery
		if r.moving != nil {
			every /= 5
		}
		select {
		case <-ctx.Done():
			return
		case <-r.over:
		case <-time.After(every):
		}
	}
}

// watch looks whether the store's servers are to move.
func (s *Sessions) watch(ctx context.Context, r *route) error {
	m := &s.mover
	source, ok := r.store.(backends.SharedMovable)
	if !ok {
		return nil
	}
	servers, err := source.Attend(ctx, m.attendance())
	if err != nil {
		return err
	}
	away, _, err := source.Moves(ctx)
	if err != nil {
		return err
	}
	switch away.Stage {
	case backends.Moving, backends.Moved:
		return s.follow(ctx, r)
	case backends.Announced:
		if !announcerIsThere(away.ID, servers) && servers[0].ID == m.self.ID {
			away.Stage = backends.NoMove
			return source.Announce(ctx, away)
		}
		return s.getReady(ctx, source, away)
	default:
		return s.standDown(ctx)
	}
}

// announcerIsThere reports whether the server whose move it is is in the list.
func announcerIsThere(move string, servers []backends.Attendance) bool {
	return slices.ContainsFunc(servers, func(a backends.Attendance) bool { return len(move) > len(a.ID) && move[:len(a.ID)+1] == a.ID+"-" })
}

// getReady opens the target of an announced move, and says so.
func (s *Sessions) getReady(ctx context.Context, source backends.SharedMovable, move backends.Move) error {
	m := &s.mover
	if self := m.attendance(); self.Ready == move.ID || m.lock(ctx) != nil {
		return nil
	}
	defer m.unlock()
	m.prepare("", "", nil)
	target, err := m.openTarget(ctx, move.To)
	if err == nil {
		m.prepare(move.ID, move.To, target)
	} else {
		m.mu.Lock()
		m.self.Fault = err.Error()
		m.mu.Unlock()
	}
	_, err = source.Attend(ctx, m.attendance())
	return err
}

// standDown closes the target of a move that was withdrawn.
func (s *Sessions) standDown(ctx context.Context) error {
	m := &s.mover
	select {
	case m.one <- struct{}{}: // else it is being made ready
	default:
		return nil
	}
	defer m.unlock()
	m.mu.Lock()
	prepared := m.prepared
	m.prepared, m.self.Ready, m.self.Fault = nil, "", ""
	m.mu.Unlock()
	if prepared != nil {
		return prepared.Close()
	}
	return nil
}
