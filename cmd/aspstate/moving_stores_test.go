//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/backends/postgres/pgtest"
	"aspstate/config"
	"aspstate/server"
)

// forgetful is a store that loses one answer to a Set, and has something happen before the caller hears.
type forgetful struct {
	movableStore
	meanwhile atomic.Pointer[func()]
}

func (s *forgetful) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	err := s.movableStore.Set(ctx, key, tok, w)
	if meanwhile := s.meanwhile.Swap(nil); meanwhile != nil {
		(*meanwhile)()
		return errors.New("the answer was lost")
	}
	return err
}

// A write whose answer was lost just before its store was left is not repeated in the new store, over what was written there.
func TestWriteIsNotRepeatedInTheNewStore(t *testing.T) {
	from, to := pgtest.Shared(t).Database(t), pgtest.Shared(t).Database(t)
	store := &forgetful{movableStore: openPlaceForTest(t, from)}
	s := server.NewSessions(store, 8*time.Second, slog.New(slog.DiscardHandler))
	s.Opens(from, func(context.Context, string) (backends.Store, error) { return openPlaceForTest(t, to), nil }, func(where string) string { return where })
	t.Cleanup(func() { s.Close() })
	session := server.Session{App: s.Application("shop"), ID: "a"}
	set := func(data string) {
		t.Helper()
		if err := s.Set(t.Context(), server.Request{Arrived: time.Now()}, session, backends.Write{Data: []byte(data), Timeout: time.Hour}); err != nil {
			t.Error(err)
		}
	}
	set("first")
	meanwhile := func() {
		if err := s.Switch(t.Context(), to); err != nil {
			t.Error(err)
		}
		set("another page's")
	}
	store.meanwhile.Store(&meanwhile)
	set("second")
	if item, err := s.Get(t.Context(), server.Request{Arrived: time.Now()}, session); err != nil || string(item.Data) != "another page's" {
		t.Errorf("the session is %q, %v, want what was written last", item.Data, err)
	}
}

// Servers that share a database agree before anything happens.
func TestSwitchIsRefusedWhereAServerCannotFollow(t *testing.T) {
	from := pgtest.Shared(t).Database(t)
	r := start(t, "--sql-connection-string="+from, "--auto-migrate", "--lock-wait=0s")
	lock := fillAndLock(t, r)
	admin := "--admin=" + adminAddress(t, r)
	store := openPlaceForTest(t, from).(backends.SharedMovable)
	attend := func(a backends.Attendance) {
		t.Helper()
		if _, err := store.Attend(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	attend(backends.Attendance{ID: "other", Name: "web2"})
	want(t, 1, []string{"2 servers share the sessions, which only a database can go on doing"}, "switch", admin, "--to=StateServer")
	attend(backends.Attendance{ID: "other", Name: "web2", Fault: "no route to host"})
	want(t, 1, []string{"server web2 cannot follow: no route to host"}, "switch", admin, "--to="+pgtest.Shared(t).Database(t))
	if away, _, err := store.Moves(t.Context()); err != nil || away.Stage != backends.NoMove {
		t.Errorf("a refused switch leaves %+v, %v", away, err)
	}
	hasAll(t, r, lock)
	if err := store.Depart(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	want(t, 0, []string{"complete: 10 sessions"}, "switch", admin, "--to=StateServer")
	hasAll(t, r, lock)
	store.(backends.Store).Close()
}

// From store to store a session keeps what is left of its time, to the second.
func TestExpiryStaysThroughSwitches(t *testing.T) {
	places := []string{"sqlite:" + filepath.Join(t.TempDir(), "a.db"), pgtest.Shared(t).Database(t), string(config.ModeStateServer)}
	var store backends.Store = memory.New(0)
	s := server.NewSessions(store, 8*time.Second, slog.New(slog.DiscardHandler))
	s.Opens("memory at first", func(_ context.Context, where string) (backends.Store, error) { return openPlaceForTest(t, where), nil }, func(where string) string { return where })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	app := s.Application("shop")
	timeouts := []time.Duration{time.Minute, 20 * time.Minute, 1000 * time.Minute, backends.NeverExpires}
	for i, timeout := range timeouts {
		err := s.Set(t.Context(), server.Request{Arrived: time.Now()}, server.Session{App: app, ID: fmt.Sprint(i)}, backends.Write{Data: []byte("x"), Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
	}
	left := func() (all []time.Duration) {
		list, err := s.Store().(backends.Inspector).List(t.Context(), backends.Query{Limit: 100})
		if err != nil || len(list) != len(timeouts) {
			t.Fatalf("%d sessions, %v", len(list), err)
		}
		for i, session := range list {
			if session.Timeout != timeouts[i] {
				t.Errorf("session %d has timeout %v, want %v", i, session.Timeout, timeouts[i])
			}
			all = append(all, session.Left)
		}
		return all
	}
	begun, before := time.Now(), left()
	for _, place := range places {
		if err := s.Switch(t.Context(), place); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			if p, _ := s.Progress(); p.Over {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the switch to %s is not complete", place)
			}
		}
		for i, now := range left() {
			if was := before[i] - time.Since(begun); before[i] != 0 && (was-now).Abs() > time.Second {
				t.Errorf("in %s session %d has %v left, want %v", place, i, now, was)
			}
		}
	}
}
