package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
)

const budget = 8 * time.Second

// retryRig is Sessions over a store that fails on demand. It runs in a bubble, in which
// time passes only while everybody waits.
type retryRig struct {
	*Sessions
	store   *backendtest.Failing
	session Session
}

func inBubble(t *testing.T, test func(t *testing.T, r *retryRig)) {
	synctest.Test(t, func(t *testing.T) {
		store := &backendtest.Failing{Store: memory.New(0)}
		r := &retryRig{Sessions: NewSessions(store, budget, slog.New(slog.DiscardHandler)), store: store}
		r.session = Session{App: r.Application("shop"), ID: "1"}
		if err := r.set("first", backends.NoCookie); err != nil {
			t.Fatal(err)
		}
		test(t, r)
	})
}

func (r *retryRig) set(data string, cookie backends.Cookie) error {
	return r.Set(context.Background(), now(), r.session, backends.Write{Data: []byte(data), Timeout: time.Hour, LockCookie: cookie})
}

func (r *retryRig) get() (backends.Item, error) {
	return r.Get(context.Background(), now(), r.session)
}

func (r *retryRig) lock() (backends.Item, error) {
	return r.GetExclusive(context.Background(), now(), r.session)
}

func now() Request { return Request{Arrived: time.Now()} }

func TestRetriesEndWithTheBudget(t *testing.T) {
	for name, fault := range map[string]backendtest.Fault{"down": backendtest.Down, "hanging": backendtest.Hang} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *retryRig) {
				tries := 0
				r.store.Fail(func(ctx context.Context, op string, apply func() error) error {
					tries++
					if end, ok := ctx.Deadline(); !ok || time.Until(end) > budget/3 {
						t.Errorf("try %d may take %v, want at most a third of the budget", tries, time.Until(end))
					}
					return fault(ctx, op, apply)
				})
				begun := time.Now()
				_, err := r.Get(context.Background(), Request{Arrived: begun.Add(-2 * time.Second)}, r.session) // 2 s gone already
				if backends.IsAnswer(err) {
					t.Errorf("a failing store answered %v", err)
				}
				if took := time.Since(begun); took < 5*time.Second || took > 6*time.Second {
					t.Errorf("gave up after %v, want the 6 s that were left", took)
				}
				if tries < 3 {
					t.Errorf("%d tries", tries)
				}
			})
		})
	}
}

// An item that took longer than the budget to arrive is stored: its client is still there.
func TestWhatArrivedLateIsTriedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		late := Request{Arrived: time.Now().Add(-2 * budget)}
		if err := r.Set(t.Context(), late, r.session, backends.Write{Data: []byte("late"), Timeout: time.Minute}); err != nil {
			t.Errorf("a working store: %v", err)
		}
		tries := 0
		r.store.Fail(func(context.Context, string, func() error) error {
			tries++
			time.Sleep(budgetAfterWait)
			return backendtest.ErrDown
		})
		if err := r.Set(t.Context(), late, r.session, backends.Write{Data: []byte("later"), Timeout: time.Minute}); backends.IsAnswer(err) || tries != 1 {
			t.Errorf("a failing store: %v after %d tries, want a failure after one", err, tries)
		}
	})
}

func TestRetryGetsThroughWithTheSameToken(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		var tokens []backends.Token
		spy := &tokenSpy{Store: r.store, seen: &tokens}
		r.Sessions.setRoute(newRoute(spy))
		tries := 0
		r.store.Fail(func(ctx context.Context, op string, apply func() error) error {
			if tries++; op == "set" && tries < 5 {
				return backendtest.ErrDown
			}
			return apply()
		})
		if err := r.set("second", 0); err != nil {
			t.Fatal(err)
		}
		if err := r.set("third", 0); err != nil {
			t.Fatal(err)
		}
		if len(tokens) != 5 || tokens[0] != tokens[1] || tokens[0] != tokens[3] || tokens[3] == tokens[4] {
			t.Errorf("tokens %x; want the first four equal and the fifth another", tokens)
		}
	})
}

type tokenSpy struct {
	backends.Store
	seen *[]backends.Token
}

func (s *tokenSpy) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	*s.seen = append(*s.seen, tok)
	return s.Store.Set(ctx, key, tok, w)
}

func TestPermanentFailureIsNotRetried(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		tries := 0
		r.store.Fail(func(context.Context, string, func() error) error {
			tries++
			return fmt.Errorf("%w: no such table", backends.ErrPermanent)
		})
		begun := time.Now()
		if _, err := r.get(); !errors.Is(err, backends.ErrPermanent) || backends.IsAnswer(err) {
			t.Errorf("got %v", err)
		}
		if tries != 1 || time.Since(begun) != 0 {
			t.Errorf("%d tries in %v", tries, time.Since(begun))
		}
	})
}

// In a long outage requests do not pile up for the whole budget each.
func TestInALongOutageThereIsOneShortTry(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		r.store.Fail(backendtest.Hang)
		r.get()
		time.Sleep(budget)
		tries := 0
		r.store.Fail(func(ctx context.Context, op string, apply func() error) error {
			tries++
			return backendtest.Hang(ctx, op, apply)
		})
		begun := time.Now()
		r.get()
		if tries != 1 || time.Since(begun) != time.Second {
			t.Errorf("%d tries in %v, want one of 1 s", tries, time.Since(begun))
		}
		r.store.Fail(nil)
		if item, err := r.get(); err != nil || string(item.Data) != "first" {
			t.Errorf("got %q, %v", item.Data, err)
		}
		r.store.Fail(backendtest.Hang)
		begun = time.Now()
		r.get()
		if time.Since(begun) < budget-time.Second {
			t.Errorf("the next outage's first request was given up after %v", time.Since(begun))
		}
	})
}

// A lock taken by a request that was given up is released when the store is back.
func TestLockOfARequestGivenUpIsReleased(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		store := &losesAnswers{Store: r.store, down: true, answers: make(map[backends.Token]backends.Item)}
		r.Sessions.setRoute(newRoute(store))
		if _, err := r.lock(); backends.IsAnswer(err) {
			t.Fatalf("got %v", err)
		}
		if _, err := r.get(); err == nil || len(store.answers) != 1 {
			t.Fatalf("the session is not locked (%v), %d locks were taken", err, len(store.answers))
		}
		store.down = false
		r.Settle(context.Background())
		if _, err := r.get(); err != nil {
			t.Errorf("the session is still %v", err)
		}
	})
}

// losesAnswers is a store that applies every GetExclusive, once a token, and tells nobody
// while it is down.
type losesAnswers struct {
	backends.Store
	down    bool
	answers map[backends.Token]backends.Item
}

func (s *losesAnswers) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	item, known := s.answers[tok]
	if !known {
		var err error
		if item, err = s.Store.GetExclusive(ctx, key, tok); err != nil {
			return item, err
		}
		s.answers[tok] = item
	}
	if s.down {
		return backends.Item{}, backendtest.ErrDown
	}
	return item, nil
}

// A Set that was given up leaves its lock to nobody: the web server does not release it.
func TestSetThatWasGivenUpReleasesItsLock(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		item, err := r.lock()
		if err != nil {
			t.Fatal(err)
		}
		r.store.Fail(backendtest.Down)
		if err := r.set("lost", item.LockCookie); backends.IsAnswer(err) {
			t.Fatalf("got %v", err)
		}
		r.store.Fail(nil)
		r.Settle(context.Background())
		if item, err := r.get(); err != nil || string(item.Data) != "first" {
			t.Errorf("the session is %q, %v", item.Data, err)
		}
	})
}

func TestReleaseAndRenewalAreDoneLater(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { r.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		item, err := r.lock()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		r.store.Fail(backendtest.Down)
		begun := time.Now()
		if err := r.ResetTimeout(context.Background(), now(), r.session); err != nil || time.Since(begun) != 0 {
			t.Errorf("reset timeout: %v after %v; want nil after one try", err, time.Since(begun))
		}
		if _, err := r.Release(context.Background(), now(), r.session, item.LockCookie, backends.IfUnlocked); err != nil {
			t.Errorf("release: %v", err)
		}
		if took := time.Since(begun); took < budget-time.Second || took > budget {
			t.Errorf("release was tried for %v, want the budget", took)
		}
		r.store.Fail(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		time.Sleep(30 * time.Minute) // only the renewal brought it here
		if _, err := r.get(); err != nil {
			t.Errorf("the session is %v; want it unlocked and renewed", err)
		}
	})
}

func TestApplicationIsAskedForOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		asked := 0
		r.store.Fail(func(_ context.Context, op string, apply func() error) error {
			if op == "application" {
				asked++
			}
			return apply()
		})
		for range 10 {
			r.session.App = r.Application("shop")
			if _, err := r.get(); err != nil {
				t.Fatal(err)
			}
		}
		if asked != 0 {
			t.Errorf("a known application was asked for %d times", asked)
		}
		time.Sleep(resolveEvery)
		r.set("again", 0)
		r.get()
		if asked != 1 {
			t.Errorf("asked %d times after an hour, want once", asked)
		}
		// Unknown is not remembered, nor registered by a Get.
		unknown := Session{App: r.Application("unknown"), ID: "1"}
		for range 2 {
			if _, err := r.Get(context.Background(), now(), unknown); !errors.Is(err, backends.ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
		if asked != 3 {
			t.Errorf("asked %d times in all, want 3", asked)
		}
		if _, err := r.store.Application(context.Background(), "unknown", false); !errors.Is(err, backends.ErrUnknownApplication) {
			t.Errorf("the Get registered it: %v", err)
		}
	})
}

func TestSweeperSweepsInBatchesAtIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &backendtest.Failing{Store: memory.New(0)}
		var mu sync.Mutex
		var calls []time.Duration
		begun, fail := time.Now(), false
		store.Fail(func(_ context.Context, op string, apply func() error) error {
			mu.Lock()
			defer mu.Unlock()
			if op == "delete expired" {
				calls = append(calls, time.Since(begun))
				if fail {
					return backendtest.ErrDown
				}
			}
			return apply()
		})
		pass := func(failing bool) []time.Duration { // lets a minute pass
			mu.Lock()
			fail = failing
			mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return calls
		}
		for i := range 25 {
			key := backends.Key{App: 1, ID: fmt.Sprint(i)}
			if err := store.Set(t.Context(), key, backends.Token{}, backends.Write{Data: []byte("x"), Timeout: time.Second}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second)
		begun = time.Now()
		sweeper := &Sweeper{Store: store, Log: slog.New(slog.DiscardHandler)}
		sweeper.Configure(time.Minute, 10)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { sweeper.Run(ctx); close(done) }()
		if calls := pass(false); sweeper.Swept() != 25 || len(calls) != 3 || calls[0] != calls[2] || calls[0] >= time.Minute {
			t.Errorf("swept %d in calls at %v; want 25 in three calls at once, within the first minute", sweeper.Swept(), calls)
		}
		pass(true)
		if calls := pass(false); len(calls) != 5 || calls[4]-calls[3] != time.Minute {
			t.Errorf("calls at %v; want the failed sweep followed by one a minute later", calls)
		}
		cancel()
		<-done
	})
}
