package sqlite

import (
	"context"
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
