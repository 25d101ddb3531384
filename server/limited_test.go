package server

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := limit(context.Background(), time.Now().Add(time.Second))
		if at, ok := ctx.Deadline(); !ok || time.Until(at) != time.Second {
			t.Errorf("the deadline is %v, %v", at, ok)
		}
		if err := ctx.Err(); err != nil {
			t.Errorf("at once: %v", err)
		}
		time.Sleep(time.Second) // nobody waits for it
		if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after its time: %v", err)
		}
		select {
		case <-ctx.Done():
		default:
			t.Error("its end cannot be waited for after it")
		}
		ctx.over()

		waited := limit(context.Background(), time.Now().Add(time.Second))
		begun := time.Now()
		<-waited.Done()
		if took := time.Since(begun); took != time.Second || !errors.Is(waited.Err(), context.DeadlineExceeded) {
			t.Errorf("ended after %v: %v", took, waited.Err())
		}
		waited.over()
	})
}

func TestLimitedEndsWithItsParent(t *testing.T) {
	for _, waits := range []bool{false, true} {
		parent, cancel := context.WithCancel(context.Background())
		ctx := limit(parent, time.Now().Add(time.Hour))
		if waits {
			ctx.Done()
		}
		cancel()
		if err := ctx.Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("waits %v: %v", waits, err)
		}
		<-ctx.Done()
		ctx.over()
	}
	parent, cancel := context.WithDeadline(context.Background(), time.Now().Add(time.Minute))
	defer cancel()
	ctx := limit(parent, time.Now().Add(time.Hour))
	defer ctx.over()
	if at, _ := ctx.Deadline(); time.Until(at) > time.Minute {
		t.Errorf("the deadline is %v, later than the parent's", at)
	}
}

// What a store keeps beyond its call, because it waits for the end, is ended, and never becomes another call's context.
func TestLimitedIsNotReusedByWhoWaits(t *testing.T) {
	for range 1000 {
		ctx := limit(context.Background(), time.Now().Add(time.Hour))
		child, cancel := context.WithCancel(ctx) // waits
		ctx.over()
		next := limit(context.Background(), time.Now().Add(time.Hour))
		if next == ctx {
			t.Fatal("the context of a call that waits is used for another")
		}
		<-child.Done()
		if err := ctx.Err(); !errors.Is(err, context.Canceled) {
			t.Fatalf("after the call: %v", err)
		}
		cancel()
		next.over()
	}
}

func TestLimitedByManyAtOnce(t *testing.T) {
	for range 200 {
		ctx := limit(context.Background(), time.Now().Add(time.Hour))
		var running sync.WaitGroup
		channels := make([]<-chan struct{}, 8)
		for i := range channels {
			running.Go(func() {
				channels[i] = ctx.Done()
				ctx.Err()
				ctx.Value("nothing")
			})
		}
		running.Wait()
		ctx.over()
		for _, c := range channels {
			if c != channels[0] {
				t.Fatal("two ends for one context")
			}
			<-c
		}
	}
}
