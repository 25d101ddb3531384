package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"aspstate/backends"
)

// step is one thing that happens in the model test.
type step struct {
	What string
	Who  int
	Wait time.Duration
}

// A random history of arrivals, releases, departures and passing time: at every moment at most
// one request has the lock; nobody waits for a session that is free, nor
// longer than lockWait; what has ended leaves nothing behind.
func TestHandoverModel(t *testing.T) {
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			What: rapid.SampledFrom([]string{"lock", "lock", "lock", "get", "release", "set", "hang up", "time", "remove"}).Draw(t, "what"),
			Who:  rapid.IntRange(0, 7).Draw(t, "who"),
			Wait: time.Duration(rapid.IntRange(1, 700).Draw(t, "ms")) * time.Millisecond,
		}
	}), 1, 40)
	rapid.Check(t, func(rt *rapid.T) {
		script := steps.Draw(rt, "steps")
		var fault error
		synctest.Test(t, func(t *testing.T) { fault = playModel(script) })
		if fault != nil {
			rt.Fatal(fault)
		}
	})
}

func playModel(script []step) error {
	r, err := newWaitRig()
	if err != nil {
		return err
	}
	defer r.stop()
	var calls []*call
	holder := func() (holders []*call) {
		for _, c := range calls {
			if c.exclusive && c.isDone() && c.err == nil {
				holders = append(holders, c)
			}
		}
		return holders
	}
	over := func(c *call) { calls = slices.DeleteFunc(calls, func(other *call) bool { return other == c }) }
	for i, s := range script {
		has := holder()
		switch {
		case s.What == "lock" || s.What == "get":
			calls = append(calls, r.begin(s.What == "lock", ""))
		case s.What == "time":
			time.Sleep(s.Wait)
		case s.What == "remove":
			r.store.Store.Remove(context.Background(), r.session.App.key(r.session.ID), backends.Token{}, 0, backends.IfCookie)
		case s.What == "hang up" && len(calls) > 0:
			if c := calls[s.Who%len(calls)]; !c.isDone() {
				c.hangUp()
			}
		case s.What == "release" && len(has) > 0:
			r.Release(context.Background(), now(), r.session, has[0].item.LockCookie, backends.IfUnlocked)
			over(has[0])
		case s.What == "set" && len(has) > 0:
			if err := r.set(fmt.Sprint(i), has[0].item.LockCookie); err != nil {
				return fmt.Errorf("step %d: the holder's Set: %w", i, err)
			}
			over(has[0])
		}
		synctest.Wait()
		if has = holder(); len(has) > 1 {
			return fmt.Errorf("step %d: %d requests have the lock", i, len(has))
		}
		for _, c := range calls {
			switch {
			case !c.isDone() && len(has) == 0:
				return fmt.Errorf("step %d: a request waits though the session is free", i)
			case !c.isDone() && time.Since(c.begun) > lockWait, c.isDone() && c.took > lockWait:
				return fmt.Errorf("step %d: a request waits longer than lockWait", i)
			}
		}
	}
	for _, c := range calls {
		c.hangUp()
	}
	synctest.Wait()
	return r.leftBehind()
}
