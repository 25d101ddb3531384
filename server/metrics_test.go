package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
)

func count(h *Histogram) (n uint64) {
	for _, c := range h.Counts() {
		n += c
	}
	return n
}

func TestHistogram(t *testing.T) {
	h := Histogram{bounds: []int64{10, 100}}
	for _, v := range []int64{0, 10, 11, 100, 101, 1 << 40} {
		h.Observe(v)
	}
	if want := []uint64{2, 2, 2}; !slices.Equal(h.Counts(), want) || h.Sum() != 222+1<<40 {
		t.Errorf("counts %v, sum %d; want %v", h.Counts(), h.Sum(), want)
	}
	for _, bounds := range [][]int64{durationBounds, sizeBounds} {
		if len(bounds) >= maxBuckets || !slices.IsSorted(bounds) {
			t.Errorf("%d bounds, sorted: %v", len(bounds), slices.IsSorted(bounds))
		}
	}
}

// What every request does allocates nothing.
func TestCountingAllocatesNothing(t *testing.T) {
	m := newMetrics()
	if n := testing.AllocsPerRun(100, func() {
		m.Request(TDS, OpSet, AnswerOK, time.Millisecond)
		m.statement(stmtSet, time.Millisecond, nil)
		m.Received.Observe(4000)
		m.Created.Add(1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCounting(b *testing.B) {
	m := newMetrics()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.Request(TDS, OpSet, AnswerOK, 300*time.Microsecond)
			m.statement(stmtSet, 200*time.Microsecond, nil)
			m.Received.Observe(4000)
		}
	})
}

func TestStatementsAndRetriesAreCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		tries := 0
		r.store.Fail(func(_ context.Context, _ string, apply func() error) error {
			time.Sleep(20 * time.Millisecond)
			if tries++; tries <= 3 {
				return backendtest.ErrDown
			}
			return apply()
		})
		if _, err := r.get(); err != nil {
			t.Fatal(err)
		}
		m := r.Metrics
		if n, errs, retries := count(&m.Statements[stmtGet]), m.StatementErrors[stmtGet].Load(), m.Retries[stmtGet].Load(); n != 4 || errs != 3 || retries != 3 {
			t.Errorf("%d tries, %d failed, %d retries", n, errs, retries)
		}
		if took := time.Duration(m.Statements[stmtGet].Sum()); took != 80*time.Millisecond {
			t.Errorf("the store took %v", took)
		}
		if m.GivenUp.Load() != 0 {
			t.Error("a request counts as given up that was answered")
		}
		// An answer is no failure.
		r.store.Fail(nil)
		r.Remove(context.Background(), now(), r.session, backends.NoCookie, backends.IfUnlocked)
		r.get()
		if errs := m.StatementErrors[stmtGet].Load(); errs != 3 {
			t.Errorf("a missing session counts as a failure")
		}
		r.store.Fail(backendtest.Down)
		r.ResetTimeout(context.Background(), now(), r.session)
		r.get()
		if count(&m.Statements[stmtResetTimeout]) != 1 || m.StatementErrors[stmtResetTimeout].Load() != 1 || m.GivenUp.Load() != 1 {
			t.Errorf("after the store went down: %d given up", m.GivenUp.Load())
		}
		if failing, err := r.Failing(); failing <= 0 || !errors.Is(err, backendtest.ErrDown) {
			t.Errorf("failing for %v: %v", failing, err)
		}
		if n := r.WorkLeft(); n != 1 {
			t.Errorf("%d renewals left", n)
		}
	})
}

func TestLockWaitsAreCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		r.SetLockWait(time.Second)
		m := r.Metrics
		item, err := r.lock()
		if err != nil {
			t.Fatal(err)
		}
		r.lock() // waits in vain
		if count(&m.LockWait[WaitLocked]) != 1 || time.Duration(m.LockWait[WaitLocked].Sum()) != time.Second {
			t.Errorf("waits in vain: %v", m.LockWait[WaitLocked].Counts())
		}
		if _, err := r.Release(context.Background(), now(), r.session, item.LockCookie, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
		if item, err = r.lock(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := r.lock()
			done <- err
		}()
		time.Sleep(300 * time.Millisecond)
		r.Release(context.Background(), now(), r.session, item.LockCookie, backends.IfUnlocked)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if count(&m.LockWait[WaitHandedOver]) != 1 || time.Duration(m.LockWait[WaitHandedOver].Sum()) != 300*time.Millisecond {
			t.Errorf("handed over: %v", m.LockWait[WaitHandedOver].Counts())
		}
		r.Drain()
		time.Sleep(time.Millisecond)
		before := m.LockRefused.Load()
		r.lock()
		if m.LockRefused.Load() != before+1 {
			t.Error("a request that may not wait is not counted")
		}
	})
}

func TestWaitsByTheirEnd(t *testing.T) {
	m := newMetrics()
	for _, err := range []error{nil, backends.ErrNotFound, &backends.LockedError{}, errGone, errors.New("down"), context.Canceled} {
		m.waited(time.Second, err)
	}
	if got, want := fmt.Sprint(count(&m.LockWait[WaitHandedOver]), count(&m.LockWait[WaitLocked]), count(&m.LockWait[WaitGone]), count(&m.LockWait[WaitFailed])), "2 1 1 2"; got != want {
		t.Errorf("handed over, locked, gone, failed: %s, want %s", got, want)
	}
}

// Slow operations are logged with their statement, and no more than once in a while.
func TestSlowOperationsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		store := &backendtest.Failing{Store: memory.New(0)}
		s := NewSessions(store, budget, slog.New(slog.NewTextHandler(&log, nil)))
		session := Session{App: s.Application("shop"), ID: "bpr4mimb2vjnvtn2jc4yp3uo"}
		took := 900 * time.Millisecond
		store.Fail(func(_ context.Context, _ string, apply func() error) error {
			time.Sleep(took)
			return apply()
		})
		get := func() { s.Get(context.Background(), now(), session) } // asks for the application only, which takes as long
		get()
		s.SetSlow(time.Second)
		get()
		if log.Len() > 0 {
			t.Errorf("logged:\n%s", &log)
		}
		took = 1200 * time.Millisecond
		get()
		get()
		if text := log.String(); strings.Count(text, "slow") != 1 || !strings.Contains(text, "statement=get operations=1 took=1.2s") {
			t.Errorf("logged:\n%s", text)
		}
		log.Reset()
		time.Sleep(logEvery)
		get()
		if text := log.String(); !strings.Contains(text, "operations=2") {
			t.Errorf("logged later:\n%s", text)
		}
	})
}

// While nobody asks the store, its failures and recovery are seen all the same.
func TestProbe(t *testing.T) {
	inBubble(t, func(t *testing.T, r *retryRig) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Probe(ctx)
		}()
		failing := func(want bool) {
			t.Helper()
			time.Sleep(2*probeEvery + time.Second)
			if d, err := r.Failing(); (d > 0) != want || (err != nil) != want {
				t.Errorf("failing for %v: %v, want %v", d, err, want)
			}
		}
		failing(false)
		r.store.Fail(backendtest.Down)
		failing(true)
		r.store.Fail(nil)
		failing(false)
		// Requests show how the store does, and leave nothing to probe.
		pings := count(&r.Metrics.Statements[stmtPing])
		for range 10 {
			r.get()
			time.Sleep(probeEvery / 2)
		}
		if n := count(&r.Metrics.Statements[stmtPing]) - pings; n > 1 {
			t.Errorf("%d pings among requests", n)
		}
		cancel()
		<-done
	})
}

// slowInspector takes its time to count.
type slowInspector struct {
	*memory.Store
	mu    sync.Mutex // for what follows
	took  time.Duration
	calls int
	err   error
}

func (s *slowInspector) Applications(ctx context.Context) ([]backends.ApplicationInfo, error) {
	s.mu.Lock()
	s.calls++
	took, err := s.took, s.err
	s.mu.Unlock()
	time.Sleep(took)
	if err != nil {
		return nil, err
	}
	return s.Store.Applications(ctx)
}

// set changes how long a count takes and how it ends.
func (s *slowInspector) set(took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took, s.err = took, err
}

// counted returns how many counts there have been.
func (s *slowInspector) counted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func TestSamplerRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowInspector{Store: memory.New(0)}
		log := slog.New(slog.DiscardHandler)
		sessions := NewSessions(store, budget, log)
		s := &Sampler{Sessions: sessions, Log: log}
		if !s.Latest().At.IsZero() {
			t.Error("a sample before the first count")
		}
		if err := sessions.Set(t.Context(), now(), Session{App: sessions.Application("shop"), ID: "1"}, backends.Write{Data: []byte("abc"), Timeout: time.Hour}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		in := func(d time.Duration) int {
			before := store.counted()
			time.Sleep(d)
			synctest.Wait()
			return store.counted() - before
		}
		if n := in(time.Minute); n < 11 || n > 13 {
			t.Errorf("%d counts a minute of a quick store", n)
		}
		if total := s.Latest().Total(); total.Sessions != 1 || total.Bytes != 3 {
			t.Errorf("sample: %+v", s.Latest())
		}
		store.set(2*time.Second, nil)
		in(time.Minute)
		if n := in(10 * time.Minute); n < 5 || n > 7 { // 2 s of every 102
			t.Errorf("%d counts in ten minutes of a store that takes 2 s", n)
		}
		store.set(0, errors.New("down"))
		in(3 * time.Minute)
		if sample := s.Latest(); sample.Err == nil || sample.Total().Sessions != 1 || time.Since(sample.At) < time.Minute {
			t.Errorf("while the store fails: %+v", sample)
		}
		store.set(0, nil)
		in(3 * time.Minute)
		if sample := s.Latest(); sample.Err != nil || time.Since(sample.At) > time.Minute {
			t.Errorf("afterwards: %+v", sample)
		}
		cancel()
		<-done
	})
}

func TestSweeperTellsHowItDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &backendtest.Failing{Store: memory.New(0)}
		s := &Sweeper{Store: store, Log: slog.New(slog.DiscardHandler)}
		s.Configure(time.Minute, 10)
		if last, err := s.Done(); !last.IsZero() || err != nil || s.Interval() != time.Minute {
			t.Errorf("at first: %v, %v", last, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		time.Sleep(2 * time.Minute)
		if last, err := s.Done(); time.Since(last) > time.Minute || err != nil {
			t.Errorf("after two minutes: %v, %v", last, err)
		}
		store.Fail(backendtest.Down)
		time.Sleep(3 * time.Minute)
		if last, err := s.Done(); time.Since(last) < 2*time.Minute || !errors.Is(err, backendtest.ErrDown) || s.Faults() < 2 {
			t.Errorf("while the store fails: %v, %v", last, err)
		}
		store.Fail(nil)
		time.Sleep(2 * time.Minute)
		if last, err := s.Done(); time.Since(last) > time.Minute || err != nil {
			t.Errorf("afterwards: %v, %v", last, err)
		}
		cancel()
		<-done
	})
}
