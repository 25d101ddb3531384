package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"aspstate/backends"
)

const (
	listMoves     = `SELECT away, move_id, source, target, stage FROM moves`
	putMove       = `INSERT OR REPLACE INTO moves (away, move_id, source, target, stage) VALUES (?1, ?2, ?3, ?4, ?5)`
	clearArrivals = `DELETE FROM arrivals`
	insertArrival = `INSERT INTO arrivals (app_id, session_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING RETURNING 1`
	someSessions  = `SELECT rowid FROM sessions LIMIT ?1`
	importSession = `INSERT INTO sessions (app_id, session_id, created, expires, lock_date, lock_cookie, timeout, locked, flags, item)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)`
)

// Bounds of what one operation imports or forgets, so that others get in between.
const (
	importRows  = 256
	importBytes = 4 << 20
	forgetRows  = 1000
)

// loadMoves reads the table.
func loadMoves(c *conn) (moves backends.Moves, err error) {
	s, err := c.prepareOnce(listMoves)
	if err != nil {
		return moves, err
	}
	defer s.finalize()
	for {
		row, err := s.step()
		if err != nil || !row {
			return moves, err
		}
		m := backends.Move{ID: s.text(1), From: s.text(2), To: s.text(3), Stage: backends.Stage(s.int(4))}
		if s.int(0) != 0 {
			moves.Away = m
		} else {
			moves.Into = m
		}
	}
}

// keep writes down a step of a move.
func (w *writer) keep(is backends.Moves) error {
	if is == w.moves {
		return nil
	}
	if is.Into.Stage != backends.Moving || is.Into.ID != w.moves.Into.ID {
		if err := w.clearArrivals.run(); err != nil {
			return err
		}
	}
	for away, m := range []backends.Move{is.Into, is.Away} {
		w.putMove.bindInt(1, int64(away))
		w.putMove.bindText(2, m.ID)
		w.putMove.bindText(3, m.From)
		w.putMove.bindText(4, m.To)
		w.putMove.bindInt(5, int64(m.Stage))
		if err := w.putMove.run(); err != nil {
			return err
		}
	}
	w.moves = is
	return nil
}

// Moves implements backends.Movable.
func (s *Store) Moves(ctx context.Context) (away, into backends.Move, err error) {
	err = ctx.Err()
	select {
	case <-s.closing:
		err = errClosed
	default:
	}
	if err != nil {
		return backends.Move{}, backends.Move{}, notApplied("moves", err)
	}
	m := s.moves.Load()
	return m.Away, m.Into, nil
}

// Leave implements backends.Movable. What was queued before it is still done.
func (s *Store) Leave(ctx context.Context, m backends.Move) error {
	_, err := s.step(ctx, "leave", func(was backends.Moves) (backends.Moves, error) { return was.Leave(m) })
	return err
}

// Enter implements backends.Movable.
func (s *Store) Enter(ctx context.Context, m backends.Move) error {
	for {
		forgotten, err := s.step(ctx, "enter", func(was backends.Moves) (backends.Moves, error) { return was.Enter(m) })
		if err != nil || forgotten == 0 {
			return err
		}
	}
}

// Complete implements backends.Movable.
func (s *Store) Complete(ctx context.Context, m backends.Move) error {
	_, err := s.step(ctx, "complete", func(was backends.Moves) (backends.Moves, error) { return was.Complete(m) })
	return err
}

// step takes a step of a move. Before a store serves again that was left, its sessions go: then step returns how many it
// has forgotten and has to be called again.
func (s *Store) step(ctx context.Context, name string, rule func(backends.Moves) (backends.Moves, error)) (int, error) {
	o := newOp(name, func(w *writer, o *op) error {
		o.count = 0
		is, err := rule(w.moves)
		if err != nil {
			o.err = fmt.Errorf("sqlite: %s: %w", name, err)
			return nil
		}
		if w.moves.Left() && !is.Left() {
			if o.count, err = w.forgetSessions(); err != nil || o.count > 0 {
				return err
			}
		}
		return w.keep(is)
	}, backends.Key{}, backends.Token{})
	o.always = true
	if err := s.do(ctx, o); err != nil {
		return 0, err
	}
	defer o.recycle()
	return o.count, o.err
}

func (w *writer) forgetSessions() (int, error) {
	rows, err := rowsOf(w.someSessions, forgetRows)
	if err != nil {
		return 0, err
	}
	for _, row := range rows {
		if err := w.delete(row); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// Import implements backends.Movable. It takes in a few hundred sessions at a time.
func (s *Store) Import(ctx context.Context, move string, sessions []backends.Session) (int, error) {
	taken := 0
	for {
		n, size := 0, 0
		for n < len(sessions) && n < importRows && (n == 0 || size+len(sessions[n].Data) <= importBytes) {
			size += len(sessions[n].Data)
			n++
		}
		part := slices.Clone(sessions[:n])
		for i := range part {
			part[i].Data = bytes.Clone(part[i].Data) // the writer may still be at it when this call has ended
		}
		o := newOp("import", func(w *writer, o *op) (err error) {
			if err := w.moves.Import(move); err != nil {
				o.err = fmt.Errorf("sqlite: import: %w", err)
				return nil
			}
			o.count, err = w.take(move, part)
			return err
		}, backends.Key{}, backends.Token{})
		o.always, o.stores = true, true
		if err := s.do(ctx, o); err != nil {
			return taken, err
		}
		took, err := o.count, o.err
		o.recycle()
		if err != nil {
			return taken, err
		}
		taken += took
		if sessions = sessions[n:]; len(sessions) == 0 {
			return taken, nil
		}
	}
}

// take imports sessions and counts those that it has taken in.
func (w *writer) take(move string, sessions []backends.Session) (taken int, err error) {
	for i := range sessions {
		from := &sessions[i]
		if from.Timeout != backends.NeverExpires && from.Left < 0 {
			continue
		}
		if move != "" {
			first, err := w.arrive(from.Key)
			if err != nil {
				return 0, err
			}
			if !first {
				continue
			}
		}
		there, err := w.find(from.Key)
		if err != nil {
			return 0, err
		}
		if !there.missing(w.now) {
			continue
		}
		if there.row != 0 {
			if err := w.delete(there.row); err != nil {
				return 0, err
			}
		}
		if err := w.insertImported(from); err != nil {
			return 0, err
		}
		taken++
	}
	return taken, nil
}

// arrive notes that a session came, and reports whether it is the first time.
func (w *writer) arrive(key backends.Key) (first bool, err error) {
	defer w.insertArrival.reset()
	w.insertArrival.bindInt(1, int64(key.App))
	bindBlob(w.insertArrival, 2, key.ID)
	for {
		row, err := w.insertArrival.step()
		if err != nil || !row {
			return first, err
		}
		first = true
	}
}

func (w *writer) insertImported(from *backends.Session) error {
	expires := int64(never)
	if from.Timeout != backends.NeverExpires {
		expires = w.now + milliseconds(from.Left)
	}
	s := w.importSession
	s.bindInt(1, int64(from.App))
	bindBlob(s, 2, from.ID)
	s.bindInt(3, from.Created.UnixMilli())
	s.bindInt(4, expires)
	s.bindInt(5, w.now-int64(from.LockAge/time.Millisecond))
	s.bindInt(6, int64(from.LockCookie))
	s.bindInt(7, milliseconds(from.Timeout))
	s.bindInt(8, bit(from.Locked))
	s.bindInt(9, uninitialized*bit(from.Uninitialized))
	bindBlob(s, 10, from.Data)
	return s.run()
}
