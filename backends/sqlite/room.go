package sqlite

import (
	"context"
	"os"
	"strconv"

	"aspstate/backends"
)

// Room in the file: pages that deleted sessions have left are used again, and beyond what the next sessions will likely need
// they are given back to the file system.

const (
	// keepPages are never given back, nor is a quarter of the pages in use: the load of tomorrow takes them again.
	keepPages  = 1024 // 4 MB
	keepShare  = 4    // this part of them
	slicePages = 256  // given back in one operation; others have their turn between two
	sweepPages = 16384
)

// giveBack shortens the file by pages that are free beyond what is kept, as far as one sweep may.
func (s *Store) giveBack(ctx context.Context) error {
	for range sweepPages / slicePages {
		o := newOp("give back", (*writer).giveBack, backends.Key{}, backends.Token{})
		if err := s.do(ctx, o); err != nil {
			return err
		}
		more, err := o.count, o.err
		o.recycle()
		if err != nil || more == 0 {
			return err
		}
	}
	return nil
}

// giveBack gives back a slice of free pages, and counts those.
func (w *writer) giveBack(o *op) error {
	o.count = 0
	free, err := w.number("PRAGMA freelist_count")
	if err != nil {
		return err
	}
	all, err := w.number("PRAGMA page_count")
	if err != nil {
		return err
	}
	if o.count = min(slicePages, max(0, free-max(keepPages, (all-free)/keepShare))); o.count == 0 {
		return nil
	}
	return w.conn.exec("PRAGMA incremental_vacuum(" + strconv.Itoa(o.count) + ")")
}

// number is what a pragma says.
func (w *writer) number(pragma string) (int, error) {
	text, err := w.conn.query(pragma)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// longestLog is the size of the log's file, in bytes, beyond which the writer waits for readers to leave the log. As a rule it
// is written back beside them; but while there is always one at work, it could never begin anew.
const (
	longestLog = logLimit + logMore
	logLimit   = 64 << 20
	logMore    = 8 << 20 // from one try to the next
	readerWait = "100"   // milliseconds; only lists and counts take longer
	otherWait  = "5000"  // for other programs that look at the file
)

// boundLog has the log begin anew if it has grown too long.
func (w *writer) boundLog() {
	info, err := os.Stat(w.logFile)
	if err != nil || info.Size() <= longestLog {
		w.logTried = 0
		return
	}
	if info.Size() < w.logTried+logMore {
		return
	}
	w.logTried = info.Size()
	w.conn.exec("PRAGMA busy_timeout = " + readerWait)
	w.conn.exec(restartLog) // in vain where somebody still reads
	w.conn.exec("PRAGMA busy_timeout = " + otherWait)
}
