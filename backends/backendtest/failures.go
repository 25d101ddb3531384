package backendtest

import (
	"context"
	"errors"
	"sync"
	"time"

	"aspstate/backends"
)

// operation is one that succeeds on an unlocked session of cookie 1, and may be tried again
// with the same token.
type operation struct {
	name string
	do   func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error
}

var operations = []operation{
	{"Get", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		_, err := s.Store.Get(ctx, key, tok)
		return err
	}},
	{"GetExclusive", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		item, err := s.Store.GetExclusive(ctx, key, tok)
		if err == nil && item.LockCookie != 2 {
			s.Errorf("the first lock's cookie is %d, want 2", item.LockCookie)
		}
		return err
	}},
	{"Release", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		_, err := s.Store.Release(ctx, key, tok, 1, backends.IfUnlocked)
		return err
	}},
	{"Release IfCookie", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		_, err := s.Store.Release(ctx, key, tok, 1, backends.IfCookie)
		return err
	}},
	{"Set", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		return s.Store.Set(ctx, key, tok, write(timeout))
	}},
	{"Set IfCookie", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		w := write(timeout)
		w.Condition, w.LockCookie = backends.IfCookie, 1
		return s.Store.Set(ctx, key, tok, w)
	}},
	{"Remove", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		return s.Store.Remove(ctx, key, tok, 1, backends.IfUnlocked)
	}},
	{"ResetTimeout", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		return s.Store.ResetTimeout(ctx, key)
	}},
	{"Unread", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		return s.Store.Unread(ctx, key, backends.Item{Data: []byte("what it never had"), LockCookie: 2, Unrenewed: 1})
	}},
	{"DeleteExpired", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		_, err := s.Store.DeleteExpired(ctx, 10)
		return err
	}},
	{"Application", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		_, err := s.Store.Application(ctx, "/lm/w3svc/1/root", true)
		return err
	}},
	{"Ping", func(ctx context.Context, s *suite, key backends.Key, tok backends.Token) error {
		return s.Store.Ping(ctx)
	}},
}

// within fails the case if f has not come back after hang.
func (s *suite) within(what string, f func()) {
	s.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(hang):
		s.Fatalf("%s hangs", what)
	}
}

// ended are contexts that are over before the call.
var ended = []struct {
	name string
	ctx  func(parent context.Context) (context.Context, context.CancelFunc)
}{
	{"cancelled", func(parent context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(parent)
		cancel()
		return ctx, cancel
	}},
	{"past its deadline", func(parent context.Context) (context.Context, context.CancelFunc) {
		return context.WithDeadline(parent, time.Now().Add(-time.Second))
	}},
}

var failureCases = []testCase{
	{"Ping of a store that serves is nil", func(s *suite) {
		s.is("Ping", s.Store.Ping(s.ctx), nil)
	}},
	{"a context that is over ends the call, which is no answer about the session", func(s *suite) {
		for _, e := range ended {
			for _, op := range operations {
				s.sub(op.name+", context "+e.name, func(s *suite) {
					key := s.key()
					s.create(key)
					ctx, cancel := e.ctx(s.ctx)
					defer cancel()
					tok := newToken()
					var err error
					s.within(op.name, func() { err = op.do(ctx, s, key, tok) })
					if err == nil {
						return // it was quick enough, and GetExclusive has checked its cookie
					}
					if backends.IsAnswer(err) {
						s.Fatalf("%s answers %v", op.name, err)
					}
					s.is(op.name, err, ctx.Err())
					s.is(op.name+" tried again", op.do(s.ctx, s, key, tok), nil)
				})
			}
		}
	}},
	{"a call that fails as not applied has left nothing behind", func(s *suite) {
		for _, e := range ended {
			for _, op := range operations {
				key := s.key()
				w := s.create(key)
				ctx, cancel := e.ctx(s.ctx)
				defer cancel()
				if err := op.do(ctx, s, key, newToken()); errors.Is(err, backends.ErrNotApplied) {
					s.holds(key, w, 1)
				}
			}
		}
	}},
	{"after Close every call fails, and not with an answer", func(s *suite) {
		key := s.key()
		s.create(key)
		s.within("Close", func() { s.is("Close", s.Store.Close(), nil) })
		for _, op := range operations {
			var err error
			s.within(op.name, func() { err = op.do(s.ctx, s, key, newToken()) })
			if backends.IsAnswer(err) {
				s.Fatalf("%s on a closed store answers %v", op.name, err)
			}
		}
		for _, cond := range []backends.Condition{backends.IfUnlocked, backends.IfMissing} {
			w := write(timeout)
			w.Condition = cond
			if err := s.Store.Set(s.ctx, s.key(), newToken(), w); backends.IsAnswer(err) {
				s.Fatalf("Set of a new session on a closed store answers %v", err)
			}
		}
		if _, err := s.Store.Application(s.ctx, "/lm/w3svc/8/root", false); backends.IsAnswer(err) {
			s.Fatalf("Application on a closed store answers %v", err)
		}
		s.within("a second Close", func() { s.Store.Close() })
	}},
	{"Close during calls gives them their answer or a failure", func(s *suite) {
		var wg sync.WaitGroup
		for range 8 {
			key := s.key()
			s.create(key)
			wg.Go(func() {
				for {
					item, err := s.Store.GetExclusive(s.ctx, key, newToken())
					if err == nil {
						w := write(timeout)
						w.LockCookie = item.LockCookie
						err = s.Store.Set(s.ctx, key, newToken(), w)
					}
					if err == nil {
						continue
					}
					if backends.IsAnswer(err) {
						s.Errorf("a call on a closing store answers %v", err)
					}
					return
				}
			})
		}
		key := s.key()
		s.create(key)
		for range 20 { // the others are well under way
			s.release(key, s.lock(key))
		}
		s.within("Close", func() { s.is("Close", s.Store.Close(), nil) })
		s.within("a call that was under way", wg.Wait)
	}},
}
