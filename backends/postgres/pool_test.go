package postgres

import "testing"

func TestPool(t *testing.T) {
	s := &Store{reads: newLane(nil), touches: newLane(nil), sets: newLane(nil), rest: newLane(nil), looks: newLane(nil)}
	for _, l := range []*lane{s.reads, s.touches, s.sets, s.rest, s.looks} {
		s.start(l, 0)
		l.workers = 2
		l.queue <- &call{}
	}
	if connections, queued := s.Pool(); connections != 8 || queued != 4 {
		t.Errorf("%d connections, %d calls wait; want those of the four lanes that requests use", connections, queued)
	}
}
