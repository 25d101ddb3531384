package sqlite

import (
	"testing"
)

// The writer does not wait while its log is written back beside it, but where it outruns that; it finishes what was done.
func TestLogIsWrittenBackBesideTheWriter(t *testing.T) {
	s := newStore(t)
	c, err := openConn(s.file.Path(), filePragmas...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	b := &behind{ask: make(chan struct{}, 1), done: make(chan struct{}, 1)} // nobody works for it
	l := &writtenLog{behind: b}
	tend := func(pages int, asks, busy bool) {
		t.Helper()
		l.pages = pages
		l.tend(c)
		if asked := len(b.ask) == 1; asked != asks || l.busy != busy {
			t.Errorf("at %d pages: asked %v, busy %v; want %v, %v", pages, asked, l.busy, asks, busy)
		}
		if len(b.ask) == 1 {
			<-b.ask
		}
	}
	tend(1, false, false)
	tend(writeBackPages-1, false, false)
	tend(writeBackPages, true, true)
	tend(writeBackPages+writeBackWait-1, false, true) // and goes on
	b.done <- struct{}{}
	tend(writeBackPages+1000, false, false)
	// It could not begin anew, for a reader.
	tend(writeBackPages+1000+writeBackMore-1, false, false)
	tend(writeBackPages+1000+writeBackMore, true, true)
	waited := make(chan struct{})
	go func() {
		defer close(waited)
		b.done <- struct{}{}
	}()
	tend(l.due+writeBackWait, false, false) // too far ahead: waits for it
	<-waited
	// It has begun anew.
	tend(10, false, false)
	tend(writeBackPages, true, true)
}
