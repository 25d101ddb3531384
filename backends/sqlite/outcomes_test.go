package sqlite

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
)

// abandoned makes a call whose context ends while the writer has its operation, and returns what it
// returned. The operation ends when resume is called.
func abandoned(t *testing.T, s *Store, call func(ctx context.Context) error) (resume func(), err error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	first := stall(t, s)
	// The next batch begins with an operation that the writer is held up by, and the call's is in
	// it.
	begun, end := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) })
	go s.finish(context.Background(), newOp("stall", func(*writer, *op) error {
		begin()
		<-end
		return nil
	}, backends.Key{}, backends.Token{}))
	queued(t, s, 1)
	result := make(chan error)
	go func() { result <- call(ctx) }()
	queued(t, s, 2)
	first()
	<-begun
	cancel(errGivenUp)
	resume = sync.OnceFunc(func() { close(end) })
	t.Cleanup(resume)
	return resume, <-result
}

var errGivenUp = errors.New("given up")

func wantUnknown(t *testing.T, err error) {
	t.Helper()
	wantIs(t, err, context.Canceled, errGivenUp)
	if backends.IsAnswer(err) || errors.Is(err, backends.ErrNotApplied) {
		t.Fatalf("%v claims to know the outcome", err)
	}
}

func kept(s *Store) int {
	s.outcomes.mu.Lock()
	defer s.outcomes.mu.Unlock()
	return len(s.outcomes.byToken)
}

func TestRetryGetsTheFirstTrysAnswer(t *testing.T) {
	for _, name := range []string{"while it runs", "when it has finished"} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			marked := write(data(1))
			marked.Uninitialized = true
			set(t, s, key(1), marked)
			tok := newToken()
			getExclusive := func(ctx context.Context) (backends.Item, error) { return s.GetExclusive(ctx, key(1), tok) }
			resume, err := abandoned(t, s, func(ctx context.Context) error {
				_, err := getExclusive(ctx)
				return err
			})
			wantUnknown(t, err)

			// A second try that is given up as well changes nothing.
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errGivenUp)
			_, err = getExclusive(ctx)
			wantUnknown(t, err)

			if name == "when it has finished" {
				resume()
				inWriter(t, s, func(*writer) error { return nil })
			}
			var item backends.Item
			var wg sync.WaitGroup
			wg.Go(func() { item, err = getExclusive(t.Context()) })
			for kept(s) > 0 { // until the retry has found it
				runtime.Gosched()
			}
			resume()
			wg.Wait()
			if err != nil || item.LockCookie != 2 || !item.Uninitialized || !bytes.Equal(item.Data, data(1)) || item.Timeout != timeout {
				t.Fatalf("the retry's answer is %+v, error %v", item, err)
			}
			_, err = s.Get(t.Context(), key(1), newToken())
			wantLocked(t, err, 2)
		})
	}
}

func TestRetryOfGetRepeatsTheMark(t *testing.T) {
	s := newStore(t)
	marked := write(data(1))
	marked.Uninitialized = true
	set(t, s, key(1), marked)
	tok := newToken()
	resume, err := abandoned(t, s, func(ctx context.Context) error {
		_, err := s.Get(ctx, key(1), tok)
		return err
	})
	wantUnknown(t, err)
	resume()
	inWriter(t, s, func(*writer) error { return nil })
	// The mark is cleared in the file, so that a reader would not see it.
	if item, err := s.Get(t.Context(), key(1), tok); err != nil || !item.Uninitialized {
		t.Fatalf("the retry's answer is %+v, error %v", item, err)
	}
	if item, err := s.Get(t.Context(), key(1), newToken()); err != nil || item.Uninitialized {
		t.Fatalf("the next answer is %+v, error %v", item, err)
	}
}

func TestRetryOfSetOverwritesNothing(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	tok := newToken()
	mine := bytes.Clone(data(2))
	try := func(ctx context.Context) error { return s.Set(ctx, key(1), tok, write(mine)) }
	resume, err := abandoned(t, s, try)
	wantUnknown(t, err)
	clear(mine) // the caller's again
	resume()
	inWriter(t, s, func(*writer) error { return nil })
	holds(t, s, key(1), data(2), 1)
	set(t, s, key(1), write(data(3)))
	if err := try(t.Context()); err != nil {
		t.Fatal(err)
	}
	holds(t, s, key(1), data(3), 1)
}

func TestRetryOfRemoveAndRelease(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	remove, release := newToken(), newToken()
	resume, err := abandoned(t, s, func(ctx context.Context) error {
		return s.Remove(ctx, key(1), remove, 1, backends.IfCookie)
	})
	wantUnknown(t, err)
	resume()
	marked := write(data(2))
	marked.Uninitialized = true
	set(t, s, key(1), marked)
	if err := s.Remove(t.Context(), key(1), remove, 1, backends.IfCookie); err != nil {
		t.Fatal(err)
	}
	resume, err = abandoned(t, s, func(ctx context.Context) error {
		_, err := s.Release(ctx, key(1), release, 1, backends.IfUnlocked)
		return err
	})
	wantUnknown(t, err)
	resume()
	if mark, err := s.Release(t.Context(), key(1), release, 1, backends.IfUnlocked); !mark || err != nil {
		t.Fatalf("mark %t, error %v, want the first try's", mark, err)
	}
	holds(t, s, key(1), data(2), 1)
}

func TestRetryOfWhatFailedRunsAnew(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	tok := newToken()
	getExclusive := func(ctx context.Context) (backends.Item, error) { return s.GetExclusive(ctx, key(1), tok) }
	const trigger = "CREATE TRIGGER broken BEFORE UPDATE ON sessions BEGIN SELECT RAISE(ABORT, 'planted'); END"
	if _, err := s.file.DB().ExecContext(t.Context(), trigger); err != nil {
		t.Fatal(err)
	}
	resume, err := abandoned(t, s, func(ctx context.Context) error {
		_, err := getExclusive(ctx)
		return err
	})
	wantUnknown(t, err)
	resume()
	inWriter(t, s, func(*writer) error { return nil })
	if _, err := s.file.DB().ExecContext(t.Context(), "DROP TRIGGER broken"); err != nil {
		t.Fatal(err)
	}
	if item, err := getExclusive(t.Context()); err != nil || item.LockCookie != 2 {
		t.Fatalf("cookie %d, error %v", item.LockCookie, err)
	}
}

func TestQueuedOperationIsWithdrawn(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	for name, call := range map[string]func(ctx context.Context, tok backends.Token) error{
		"GetExclusive": func(ctx context.Context, tok backends.Token) error {
			_, err := s.GetExclusive(ctx, key(1), tok)
			return err
		},
		"Release": func(ctx context.Context, tok backends.Token) error {
			_, err := s.Release(ctx, key(1), tok, 1, backends.IfUnlocked)
			return err
		},
		"Set": func(ctx context.Context, tok backends.Token) error { return s.Set(ctx, key(1), tok, write(data(2))) },
		"Remove": func(ctx context.Context, tok backends.Token) error {
			return s.Remove(ctx, key(1), tok, 1, backends.IfUnlocked)
		},
		"Ping": func(ctx context.Context, _ backends.Token) error { return s.Ping(ctx) },
		"Application": func(ctx context.Context, _ backends.Token) error {
			_, err := s.Application(ctx, "new", true)
			return err
		},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		resume := stall(t, s)
		result := make(chan error)
		tok := newToken()
		go func() { result <- call(ctx, tok) }()
		queued(t, s, 1)
		cancel(errGivenUp)
		err := <-result
		wantIs(t, err, context.Canceled, errGivenUp, backends.ErrNotApplied)
		if backends.IsAnswer(err) {
			t.Errorf("%s: %v is an answer", name, err)
		}
		queued(t, s, 0)
		resume()
		holds(t, s, key(1), data(1), 1)
		if n := kept(s); n != 0 {
			t.Errorf("%s: %d outcomes are kept", name, n)
		}
	}
	if _, err := s.Application(t.Context(), "new", false); err != backends.ErrUnknownApplication {
		t.Errorf("a withdrawn registration: %v", err)
	}
}

func finished(tok byte, bytes int) *op {
	return &op{token: backends.Token{tok, 1}, item: backends.Item{Data: make([]byte, bytes)}, abandoned: true, done: make(chan struct{}, 1)}
}

func TestOutcomesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := outcomes{byToken: map[backends.Token]*op{}}
		keep := func(o *op) {
			t.Helper()
			o.abandoned = false
			if !k.abandon(o) {
				t.Fatal("an operation that runs was not kept")
			}
			k.settle([]*op{o})
		}
		has := func(want bool, o *op) {
			t.Helper()
			if got := k.byToken[o.token] == o; got != want {
				t.Fatalf("outcome %v is kept: %t, want %t", o.token[:2], got, want)
			}
		}
		first, second := finished(1, 10), finished(2, 10)
		keep(first)
		time.Sleep(outcomesAge - time.Second)
		keep(second)
		has(true, first)
		time.Sleep(2 * time.Second)
		k.settle(nil)
		has(false, first)
		has(true, second)

		// One that still runs is not given up, however long it takes.
		running := finished(3, 10)
		running.abandoned = false
		k.abandon(running)
		time.Sleep(10 * outcomesAge)
		k.settle(nil)
		has(true, running)
		has(false, second)
		k.settle([]*op{running})
		has(true, running)
		if k.bytes != 10 {
			t.Fatalf("%d bytes are counted, want 10", k.bytes)
		}

		// One that finishes just before its caller gives up has a caller.
		late := finished(7, 10)
		late.abandoned = false
		k.settle([]*op{late})
		if k.abandon(late) {
			t.Fatal("the outcome was there, and yet the call was told to go")
		}
		has(false, late)

		// Bytes, then number.
		keep(finished(4, outcomesBytes-10))
		has(true, running)
		large := finished(5, 1)
		keep(large)
		has(false, running)
		has(true, large)
		for i := range outcomesKept {
			o := finished(6, 0)
			o.token[2], o.token[3] = byte(i), byte(i>>8)
			keep(o)
		}
		has(false, large)
		if len(k.byToken) != outcomesKept || int(k.count.Load()) != outcomesKept || k.bytes != 0 {
			t.Fatalf("%d outcomes of %d bytes are kept, counted %d", len(k.byToken), k.bytes, k.count.Load())
		}
	})
}

func TestCloseFinishesWhatIsQueued(t *testing.T) {
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	resume := stall(t, s)
	results := make(chan error)
	go func() { results <- s.Set(context.Background(), key(1), newToken(), write(data(2))) }()
	queued(t, s, 1)
	go func() { results <- s.Close() }()
	<-s.closing
	err := s.Set(t.Context(), key(1), newToken(), write(data(3)))
	for !errors.Is(err, errClosed) { // Close has not got to the queue yet
		runtime.Gosched()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		err = s.Set(ctx, key(1), newToken(), write(data(2)))
		cancel()
	}
	wantIs(t, err, errClosed, backends.ErrNotApplied)
	resume()
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("sqlite.(*writer).run(")) {
		t.Errorf("the writer still runs:\n%s", stacks)
	}
	s = openStore(t, s.file.Path())
	holds(t, s, key(1), data(2), 1)
}
