package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
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
