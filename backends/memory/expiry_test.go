package memory

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
)

var tok backends.Token // memory has no use for it

func mustSet(t testing.TB, s *Store, key backends.Key, timeout time.Duration) {
	t.Helper()
	w := backends.Write{Data: []byte("data"), Timeout: timeout, LockCookie: backends.NoCookie}
	if err := s.Set(t.Context(), key, tok, w); err != nil {
		t.Fatalf("Set: %v", err)
	}
}

func exists(t testing.TB, s *Store, key backends.Key) bool {
	t.Helper()
	err := s.ResetTimeout(t.Context(), key)
	if err != nil && !errors.Is(err, backends.ErrNotFound) {
		t.Fatalf("ResetTimeout: %v", err)
	}
	return err == nil
}

func mustSweep(t testing.TB, s *Store, limit, want int) {
	t.Helper()
	n, err := s.DeleteExpired(t.Context(), limit)
	if err != nil {
		t.Fatalf("DeleteExpired: %v", err)
	}
	if n != want {
		t.Fatalf("DeleteExpired(%d) deleted %d, want %d", limit, n, want)
	}
}

// empty asserts that nothing is left of any session, in counters and queues either.
func empty(t testing.TB, s *Store) {
	t.Helper()
	for i := range s.shards {
		sh := &s.shards[i]
		n := len(sh.sessions.byHash) + len(sh.sessions.others)
		if n+len(sh.queue)+len(sh.apps) != 0 {
			t.Fatalf("shard %d holds %d sessions, %d queued, %d applications", i, n, len(sh.queue), len(sh.apps))
		}
	}
	if n := s.bytes.Load(); n != 0 {
		t.Fatalf("an empty store counts %d bytes", n)
	}
}

func TestExpiryIsExact(t *testing.T) {
	for _, timeout := range []time.Duration{time.Nanosecond, time.Second, 20 * time.Minute, 525600 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			s := New(0)
			time.Sleep(time.Hour) // the clock need not stand at its start
			key := backends.Key{App: 1, ID: "a"}
			mustSet(t, s, key, timeout)
			for range 3 { // expired means: expires < now
				time.Sleep(timeout)
				if !exists(t, s, key) {
					t.Fatalf("timeout %v: missing when its time is just up", timeout)
				}
				mustSweep(t, s, 10, 0)
			}
			time.Sleep(timeout + 1)
			if exists(t, s, key) {
				t.Fatalf("timeout %v: alive a nanosecond later", timeout)
			}
			mustSet(t, s, key, timeout)
			time.Sleep(timeout)
			mustSweep(t, s, 10, 0)
			time.Sleep(time.Nanosecond)
			mustSweep(t, s, 10, 1)
			empty(t, s)
		})
	}
}

func TestLockAgeIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		key := backends.Key{App: 1, ID: "a"}
		mustSet(t, s, key, time.Hour)
		since := time.Now()
		if _, err := s.GetExclusive(t.Context(), key, tok); err != nil {
			t.Fatal(err)
		}
		for _, age := range []time.Duration{0, 1, time.Second, 30 * time.Minute} {
			time.Sleep(age - time.Since(since))
			_, err := s.Get(t.Context(), key, tok)
			locked, ok := errors.AsType[*backends.LockedError](err)
			if !ok || locked.Age != age || !locked.Since.Equal(since) {
				t.Fatalf("Get: %#v, want a LockedError of age %v since %v", err, age, since)
			}
		}
	})
}

// Far timeouts would overflow the clock.
func TestFarTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		time.Sleep(time.Hour)
		key := backends.Key{App: 1, ID: "a"}
		for _, timeout := range []time.Duration{never, never - time.Hour, never - time.Minute, 290 * 365 * 24 * time.Hour} {
			mustSet(t, s, key, timeout)
			time.Sleep(time.Hour)
			if !exists(t, s, key) {
				t.Fatalf("a session with timeout %v expired within an hour", timeout)
			}
		}
		mustSet(t, s, key, -never)
		if exists(t, s, key) {
			t.Fatal("a session with a far negative timeout is alive")
		}
	})
}

// Many sessions in each shard, so that a sweep takes several portions of each, and the queues'
// order matters. A third is renewed, one shortened, one left alone.
func TestSweepOfMany(t *testing.T) {
	const third = shardCount * portion
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		keys := make([]backends.Key, 3*third)
		for i := range keys {
			keys[i] = backends.Key{App: 1, ID: fmt.Sprint(i)}
			mustSet(t, s, keys[i], time.Hour+time.Duration(i%1000))
		}
		renewed, shortened, alone := keys[:third], keys[third:2*third], keys[2*third:]
		time.Sleep(40 * time.Minute)
		for _, key := range renewed {
			if !exists(t, s, key) {
				t.Fatal("a session has expired early")
			}
		}
		for i, key := range shortened {
			mustSet(t, s, key, time.Minute+time.Duration(i%2000))
		}
		sweepAll := func(n int) {
			t.Helper()
			const limit = 5000
			for left := n; left > 0; left -= min(left, limit) {
				mustSweep(t, s, limit, min(left, limit))
			}
			mustSweep(t, s, limit, 0)
		}
		sweepAll(0)
		time.Sleep(2 * time.Minute)
		sweepAll(third)
		time.Sleep(20 * time.Minute)
		sweepAll(third)
		for _, key := range slices.Concat(shortened, alone) {
			if exists(t, s, key) {
				t.Fatal("an expired session is there")
			}
		}
		for _, key := range renewed {
			if !exists(t, s, key) {
				t.Fatal("a renewed session was swept")
			}
		}
		time.Sleep(2 * time.Hour)
		sweepAll(third)
		empty(t, s)
	})
}

// A sweep that stops at its limit goes on there, so that no shard waits for ever for its turn.
func TestSweepGoesRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		last := keyIn(t, s, &s.shards[shardCount-1], 0)
		mustSet(t, s, last, time.Minute)
		time.Sleep(2 * time.Minute)
		for i := range shardCount {
			mustSet(t, s, keyIn(t, s, &s.shards[0], i), -1)
			mustSweep(t, s, 1, 1)
			if len(s.shards[shardCount-1].queue) == 0 {
				return
			}
		}
		t.Fatalf("after %d sweeps the last shard's expired session is still there", shardCount)
	})
}

// Sessions that were removed, or changed to never expire, must not wait in the queue for the time
// they would have expired.
func TestQueueForgetsTheRemoved(t *testing.T) {
	s := New(0)
	for i := range 10000 {
		key := backends.Key{App: 1, ID: fmt.Sprint(i)}
		mustSet(t, s, key, 525600*time.Minute)
		switch i % 3 {
		case 1:
			mustSet(t, s, key, backends.NeverExpires)
		case 2:
			mustSet(t, s, key, time.Minute)
		}
		if err := s.Remove(t.Context(), key, tok, 1, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
	}
	empty(t, s)
}

// keyIn returns the n-th key that lives in the shard.
func keyIn(t testing.TB, s *Store, sh *shard, n int) backends.Key {
	t.Helper()
	for i := range shardCount * 1000 * (n + 1) {
		key := backends.Key{App: 1, ID: fmt.Sprint(i)}
		if s.shard(key) != sh {
			continue
		}
		if n == 0 {
			return key
		}
		n--
	}
	t.Fatal("no key found for the shard")
	return backends.Key{}
}

// The sweeper has looked at a session that was renewed, and then it was not.
func TestUnreadSessionIsSweptInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		key := backends.Key{App: 1, ID: "a"}
		mustSet(t, s, key, 20*time.Minute)
		time.Sleep(20 * time.Minute)
		item, err := s.Get(t.Context(), key, tok)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Nanosecond)
		mustSweep(t, s, 10, 0)
		if err := s.Unread(t.Context(), key, item); err != nil {
			t.Fatal(err)
		}
		mustSweep(t, s, 10, 1)
		empty(t, s)
	})
}
