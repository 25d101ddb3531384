package backendtest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
)

// observed is a context that is cancelled when it has been looked at so often: it ends
// calls at their own checkpoints, where a timer rarely hits.
type observed struct {
	context.Context
	cancel context.CancelFunc
	left   atomic.Int64
}

func (c *observed) look() {
	if c.left.Add(-1) < 0 {
		c.cancel()
	}
}

func (c *observed) Done() <-chan struct{} {
	c.look()
	return c.Context.Done()
}

func (c *observed) Err() error {
	c.look()
	return c.Context.Err()
}

// interruption makes contexts that end at random moments of a call.
type interruption struct {
	typical time.Duration // a call's duration

	failed, applied atomic.Int64
}

func (in *interruption) context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	switch rand.IntN(8) {
	case 0:
		cancel()
	case 1, 2, 3:
		c := &observed{Context: ctx, cancel: cancel}
		c.left.Store(rand.Int64N(6))
		return c, cancel
	default:
		time.AfterFunc(rand.N(2*in.typical+time.Microsecond), cancel)
	}
	return ctx, cancel
}

// try runs do under contexts that end at random moments, one to three times, and returns the
// answer and true if one came. do must be one request: the same token every time. After a failure
// it lets a moment pass or not, so that a first try that is still under way may end.
func (in *interruption) try(s *suite, what string, do func(ctx context.Context) error) (error, bool) {
	for range 1 + rand.IntN(3) {
		ctx, cancel := in.context(s.ctx)
		began := time.Now()
		err := do(ctx)
		cancel()
		if took := time.Since(began); took > hang {
			s.Errorf("%s took %v although its context had ended", what, took)
		}
		if backends.IsAnswer(err) {
			return err, true
		}
		if !errors.Is(err, context.Canceled) {
			s.Errorf("%s: %v, want an answer or the context's error", what, err)
		}
		in.failed.Add(1)
	}
	if coin() {
		s.create(s.key())
	}
	return nil, false
}

// interruptedCase runs round over and over, in several goroutines at once, while writers of other
// sessions keep the store busy.
func interruptedCase(name string, round func(s *suite, in *interruption)) testCase {
	return testCase{name, func(s *suite) {
		const workers = 4
		rounds := 100
		if testing.Short() {
			rounds = 20
		}
		stop := make(chan struct{})
		var busy sync.WaitGroup
		defer busy.Wait()
		defer close(stop)
		for range 2 {
			key := s.key()
			w := write(timeout)
			w.Data = randomData(7000)
			busy.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if err := s.Store.Set(s.ctx, key, newToken(), w); err != nil {
						s.Errorf("Set of another session: %v", err)
						return
					}
				}
			})
		}

		in := &interruption{}
		began := time.Now()
		for range 20 {
			s.create(s.key())
		}
		in.typical = time.Since(began) / 20

		var work sync.WaitGroup
		for range workers {
			work.Go(func() {
				s := s.forWorker()
				for range rounds {
					round(s, in)
				}
			})
		}
		work.Wait()
		s.Logf("%d calls were cut short, %d of them seen applied", in.failed.Load(), in.applied.Load())
	}}
}

// seen notes that a call that failed has been applied.
func (in *interruption) seen(applied bool) bool {
	if applied {
		in.applied.Add(1)
	}
	return applied
}

// present asks for the session without clearing its mark.
func (s *suite) present(key backends.Key) bool {
	s.Helper()
	err := s.Store.ResetTimeout(s.ctx, key)
	if err != nil {
		s.is("ResetTimeout", err, backends.ErrNotFound)
	}
	return err == nil
}

func coin() bool { return rand.IntN(2) == 0 }

// tokenCases are rule 7 seen from outside: whatever moment a call is cut short at, the
// same request tried again is applied once, and answered as the first try was or would have been.
var tokenCases = []testCase{
	interruptedCase("GetExclusive tried again gets its lock, and one only", func(s *suite, in *interruption) {
		key := s.key()
		w := s.createUninitialized(key)
		for cookie := backends.Cookie(2); cookie < 6; cookie++ {
			tok := newToken()
			var item backends.Item
			getExclusive := func(ctx context.Context) (err error) {
				item, err = s.Store.GetExclusive(ctx, key, tok)
				return err
			}
			err, answered := in.try(s, "GetExclusive", getExclusive)
			if !answered {
				err = getExclusive(s.ctx)
			}
			s.is("GetExclusive", err, nil)
			s.sameItem(item, w, cookie)
			if item.Uninitialized != (cookie == 2) {
				s.Fatalf("lock %d: uninitialized is %t", cookie, item.Uninitialized)
			}
			s.locked(key, cookie)
			s.release(key, cookie)
			s.holds(key, w, cookie) // and no late first try has locked it again
		}
	}),
	interruptedCase("GetExclusive tried again leaves a later lock alone", func(s *suite, in *interruption) {
		key := s.key()
		w := s.create(key)
		tok := newToken()
		var item backends.Item
		getExclusive := func(ctx context.Context) (err error) {
			item, err = s.Store.GetExclusive(ctx, key, tok)
			return err
		}
		err, answered := in.try(s, "GetExclusive", getExclusive)
		if answered {
			s.is("GetExclusive", err, nil)
			return
		}
		if _, err := s.Store.Get(s.ctx, key, newToken()); !in.seen(err != nil) {
			return // it may still come, and that is what the case above is about
		}
		s.locked(key, 2)
		s.release(key, 2) // as a waiter does that takes the holder for dead
		if c := s.lock(key); c != 3 {
			s.Fatalf("the waiter's lock has cookie %d, want 3", c)
		}
		s.is("GetExclusive tried again", getExclusive(s.ctx), nil)
		s.sameItem(item, w, 2)
		s.locked(key, 3)
	}),
	interruptedCase("what failed as not applied is not applied later either", func(s *suite, in *interruption) {
		key := s.key()
		w := s.create(key)
		op := operations[rand.IntN(len(operations))]
		ctx, cancel := in.context(s.ctx)
		err := op.do(ctx, s, key, newToken())
		cancel()
		if err != nil {
			in.failed.Add(1)
		}
		if errors.Is(err, backends.ErrNotApplied) {
			s.holds(key, w, 1)
			s.release(key, s.lock(key))
			s.holds(key, w, 2)
		}
	}),
	interruptedCase("Set tried again never overwrites a later write", func(s *suite, in *interruption) {
		key := s.key()
		s.create(key)
		w := write(timeout)
		w.LockCookie = 1
		cookie := backends.Cookie(1)
		if coin() {
			w.Condition = backends.IfCookie
		}
		if coin() {
			w.Timeout += minute
		}
		if coin() {
			cookie = s.lock(key)
			w.LockCookie = cookie
		}
		tok := newToken()
		set := func(ctx context.Context) error {
			own := w
			own.Data = bytes.Clone(w.Data)
			err := s.Store.Set(ctx, key, tok, own)
			clear(own.Data) // a call that has returned has no more use for it
			return err
		}
		err, answered := in.try(s, "Set", set)
		if answered {
			s.is("Set", err, nil)
			s.holds(key, w, cookie)
			return
		}
		item, err := s.Store.Get(s.ctx, key, newToken())
		if !in.seen(err == nil && bytes.Equal(item.Data, w.Data)) {
			s.is("Set tried again", set(s.ctx), nil)
			s.holds(key, w, cookie)
			return
		}
		switch rand.IntN(3) {
		case 0: // another request wrote
			later := write(timeout)
			s.set(key, later)
			s.is("Set tried again", set(s.ctx), nil)
			s.holds(key, later, cookie)
		case 1: // another request has the lock, so that the retry must not be refused nor unlock
			s.lock(key)
			s.is("Set tried again", set(s.ctx), nil)
			s.locked(key, cookie+1)
		default:
			s.is("Set tried again", set(s.ctx), nil)
			s.holds(key, w, cookie)
		}
	}),
	interruptedCase("Set IfMissing tried again finds its own session", func(s *suite, in *interruption) {
		key := s.key()
		w := write(timeout)
		w.Condition, w.Uninitialized = backends.IfMissing, true
		tok := newToken()
		set := func(ctx context.Context) error { return s.Store.Set(ctx, key, tok, w) }
		err, answered := in.try(s, "Set IfMissing", set)
		if !answered && in.seen(s.present(key)) && coin() {
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 1, backends.IfUnlocked), nil)
			later := s.create(key)
			s.is("Set IfMissing tried again", set(s.ctx), nil)
			item := s.get(key)
			s.sameItem(item, later, 1)
			if item.Uninitialized {
				s.Fatal("the retry marked the later session")
			}
			return
		}
		if !answered {
			err = set(s.ctx)
		}
		s.is("Set IfMissing", err, nil)
		item := s.getExclusive(key)
		s.sameItem(item, w, 2)
		if !item.Uninitialized {
			s.Fatal("the session has lost its mark")
		}
	}),
	interruptedCase("Remove tried again never removes a later session", func(s *suite, in *interruption) {
		key := s.key()
		s.create(key)
		cookie := backends.Cookie(1)
		if coin() {
			cookie = s.lock(key)
		}
		cond := backends.IfUnlocked
		if coin() {
			cond = backends.IfCookie
		}
		tok := newToken()
		remove := func(ctx context.Context) error { return s.Store.Remove(ctx, key, tok, cookie, cond) }
		err, answered := in.try(s, "Remove", remove)
		if !answered && in.seen(!s.present(key)) && coin() {
			w := s.create(key)
			s.is("Remove tried again", remove(s.ctx), nil)
			s.holds(key, w, 1)
			return
		}
		if !answered {
			err = remove(s.ctx)
		}
		s.is("Remove", err, nil)
		s.missing(key)
		w := s.create(key)
		s.holds(key, w, 1)
	}),
	interruptedCase("Release tried again leaves a later lock alone", func(s *suite, in *interruption) {
		key := s.key()
		w := s.createLocked(key)
		tok := newToken()
		cond := backends.IfUnlocked
		if coin() {
			cond = backends.IfCookie
		}
		release := func(ctx context.Context) error {
			_, err := s.Store.Release(ctx, key, tok, 2, cond)
			return err
		}
		err, answered := in.try(s, "Release", release)
		if !answered {
			_, getErr := s.Store.Get(s.ctx, key, newToken())
			if in.seen(getErr == nil) && coin() {
				s.lock(key)
				s.is("Release tried again", release(s.ctx), nil)
				s.locked(key, 3)
				return
			}
			err = release(s.ctx)
		}
		s.is("Release", err, nil)
		s.holds(key, w, 2)
		s.lock(key)
		s.locked(key, 3)
	}),
	interruptedCase("Release tried again leaves a session alone that was begun anew", func(s *suite, in *interruption) {
		key := s.key()
		marked := coin()
		if marked {
			s.createUninitialized(key)
		} else {
			s.createLocked(key)
		}
		tok := newToken()
		var mark bool
		release := func(ctx context.Context) (err error) {
			mark, err = s.Store.Release(ctx, key, tok, 2, backends.IfUnlocked)
			return err
		}
		if err, answered := in.try(s, "Release", release); answered {
			s.is("Release", err, nil)
			return
		}
		item, err := s.Store.Get(s.ctx, key, newToken())
		if !in.seen(err == nil && !item.Uninitialized) {
			return
		}
		s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), backends.NoCookie, backends.IfUnlocked), nil)
		s.createUninitialized(key)
		s.is("Release tried again", release(s.ctx), nil)
		if mark != marked {
			s.Fatalf("Release tried again reports %t as the mark, want %t", mark, marked)
		}
		if !s.get(key).Uninitialized {
			s.Fatal("Release tried again took the new session's mark")
		}
	}),
	interruptedCase("a mark is reported by the request that cleared it, however often it tries", func(s *suite, in *interruption) {
		key := s.key()
		s.createUninitialized(key)
		tok := newToken()
		var mark bool
		name, report := "Get", func(ctx context.Context) error {
			item, err := s.Store.Get(ctx, key, tok)
			mark = item.Uninitialized
			return err
		}
		if coin() {
			name, report = "Release", func(ctx context.Context) (err error) {
				mark, err = s.Store.Release(ctx, key, tok, 1, backends.IfUnlocked)
				return err
			}
		}
		err, answered := in.try(s, name, report)
		if !answered {
			err = report(s.ctx)
		}
		s.is(name, err, nil)
		if !mark {
			s.Fatalf("%s cleared the mark and did not report it", name)
		}
		if s.get(key).Uninitialized {
			s.Fatal("the mark is reported twice")
		}
	}),
}
