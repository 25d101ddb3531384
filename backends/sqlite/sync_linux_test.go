package sqlite

import "testing"

// Where it cannot be sure, the store leaves the log to SQLite; with the SQLite that it is built with it is sure.
func TestLogIsFlushedByData(t *testing.T) {
	s := newStore(t)
	inWriter(t, s, func(w *writer) error {
		if w.conn.methods == 0 {
			t.Error("SQLite flushes its log by fsync")
		}
		return nil
	})
}
