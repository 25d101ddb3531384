package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"aspstate/backends"
)

// later is the work that a failing store left behind: locks to release and sessions to
// renew. It is done when the store answers again; what the process did
// not get to by its end is lost, as are the sessions that expired meanwhile.
type later struct {
	log *slog.Logger

	mu       sync.Mutex
	tasks    []task
	renewals map[renewal]func(context.Context) error
	dropped  seldom
	wake     chan struct{}
}

type task struct {
	what string
	do   func(context.Context) error
}

type renewal struct{ application, id string }

// maxLater bounds the tasks, and the renewals, that are kept.
const maxLater = 100_000

func (l *later) init(log *slog.Logger) {
	l.log = log
	l.renewals = make(map[renewal]func(context.Context) error)
	l.wake = make(chan struct{}, 1)
}

func (l *later) add(t task) {
	l.mu.Lock()
	if len(l.tasks) < maxLater {
		l.tasks = append(l.tasks, t)
	} else {
		l.drop()
	}
	l.mu.Unlock()
	l.wakeUp()
}

func (l *later) renew(session Session, do func(context.Context) error) {
	key := renewal{session.App.Name, session.ID}
	l.mu.Lock()
	if _, known := l.renewals[key]; known || len(l.renewals) < maxLater {
		l.renewals[key] = do
	} else {
		l.drop()
	}
	l.mu.Unlock()
	l.wakeUp()
}

func (l *later) drop() {
	l.dropped.add(1, func(n int64) {
		l.log.Error("too much is left to be done when the store answers again; some releases and renewals are lost", "lost", n)
	})
}

func (l *later) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next takes what to do first: locks before renewals, since somebody waits for them.
func (l *later) next() (t task, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tasks) > 0 {
		t = l.tasks[0]
		l.tasks[0] = task{}
		l.tasks = l.tasks[1:]
		return t, true
	}
	for key, do := range l.renewals {
		delete(l.renewals, key)
		return task{"renew", do}, true
	}
	return task{}, false
}

// Run does what a failing store left behind, listens for locks that other servers
// release, and follows moves to another store, until ctx ends.
func (s *Sessions) Run(ctx context.Context) {
	var listening sync.WaitGroup
	listening.Go(func() { s.listen(ctx) })
	listening.Go(func() { s.attend(ctx) })
	listening.Go(func() { s.keepAliases(ctx) })
	defer listening.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.later.wake:
		}
		s.Settle(ctx)
	}
}

// Settle does what a failing store left behind, and returns when nothing is left or
// ctx has ended.
func (s *Sessions) Settle(ctx context.Context) {
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		t, ok := s.later.next()
		if !ok {
			return
		}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := t.do(try)
		cancel()
		switch {
		case backends.IsAnswer(err):
			s.outage.worked()
			pause = 100 * time.Millisecond
			continue
		case errors.Is(err, backends.ErrPermanent):
			s.log.Error("work left behind by a failing store cannot be done", "task", t.what, "error", err)
			continue
		}
		s.later.add(t)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}
