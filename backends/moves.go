package backends

import "fmt"

// Moves is what a store keeps of its moves, and the rules of Movable and SharedMovable: each method returns what the store
// is to keep from then on, or why the step is refused. One that changes nothing was repeated.
type Moves struct{ Away, Into Move }

// Left reports whether the store serves no more.
func (s Moves) Left() bool { return s.Away.Stage >= Moving }

// Announce is the rule of SharedMovable.Announce.
func (s Moves) Announce(m Move) (Moves, error) {
	announced := s.Away.Stage == Announced && s.Away.ID == m.ID
	switch {
	case m.Stage == NoMove && announced:
		s.Away = Move{}
	case m.Stage == NoMove && s.Left() && s.Away.ID == m.ID:
		return s, fmt.Errorf("withdraw move %s, which has begun: %w", m.ID, ErrMoved)
	case m.Stage == NoMove || announced:
	case s.Away.Stage != NoMove || s.Into.Stage == Moving:
		return s, s.inTheWay("announce", m)
	default:
		m.Stage = Announced
		s.Away = m
	}
	return s, nil
}

// Leave is the rule of Movable.Leave.
func (s Moves) Leave(m Move) (Moves, error) {
	own := s.Away.Stage != NoMove && s.Away.ID == m.ID
	switch {
	case own && s.Left():
	case s.Away.Stage != NoMove && !own, s.Into.Stage == Moving:
		return s, s.inTheWay("begin", m)
	default:
		m.Stage = Moving
		s.Away = m
	}
	return s, nil
}

// Enter is the rule of Movable.Enter. Where it ends the time that the store was left for, the store first forgets its sessions.
func (s Moves) Enter(m Move) (Moves, error) {
	switch {
	case s.Into.Stage != NoMove && s.Into.ID == m.ID:
	case s.Away.Stage == Announced, s.Away.Stage == Moving, s.Into.Stage == Moving:
		return s, s.inTheWay("begin", m)
	default:
		m.Stage = Moving
		s = Moves{Into: m}
	}
	return s, nil
}

// Import is the rule of Movable.Import.
func (s Moves) Import(move string) error {
	if s.Left() || move != "" && (s.Into.ID != move || s.Into.Stage != Moving) {
		return ErrMoved
	}
	return nil
}

// Complete is the rule of Movable.Complete.
func (s Moves) Complete(m Move) (Moves, error) {
	m.Stage = Moved
	switch {
	case s.Into.Stage != NoMove && s.Into.ID == m.ID:
		s.Into = m
	case s.Left() && s.Away.ID == m.ID:
		s.Away = m
	default:
		return s, fmt.Errorf("move %s is none that entered or left this store last: %w", m.ID, ErrPermanent)
	}
	return s, nil
}

func (s Moves) inTheWay(what string, m Move) error {
	other := s.Into.ID
	if s.Away.Stage != NoMove && s.Away.ID != m.ID {
		other = s.Away.ID
	}
	return fmt.Errorf("%s move %s: move %s is in the way: %w", what, m.ID, other, ErrMoved)
}
