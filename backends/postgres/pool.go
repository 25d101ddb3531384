package postgres

// Pool implements server.Pool: how many connections there may be for requests, and how many calls wait for one. Calls that
// wait go out together, so that a few now and then are no sign of want.
func (s *Store) Pool() (connections, queued int) {
	for _, l := range []*lane{s.reads, s.touches, s.sets, s.rest} {
		connections += l.workers
		queued += len(l.queue)
	}
	return connections, queued
}
