package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
)

// moveRig is Sessions that can be switched between stores in memory, by their names.
type moveRig struct {
	*Sessions
	t      *testing.T
	stores map[string]*memory.Store
}

func newMoveRig(t *testing.T) *moveRig {
	t.Helper()
	r := &moveRig{t: t, stores: map[string]*memory.Store{"a": memory.New(0), "b": memory.New(0), "c": memory.New(0)}}
	r.Sessions = NewSessions(r.stores["a"], budget, slog.New(slog.DiscardHandler))
	r.Opens("a", func(_ context.Context, where string) (backends.Store, error) {
		if s, ok := r.stores[where]; ok {
			return s, nil
		}
		return nil, errors.New("no such store")
	}, func(where string) string { return where })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done; r.Close() })
	return r
}

func (r *moveRig) session(id string) Session { return Session{App: r.Application("shop"), ID: id} }

func (r *moveRig) set(id, data string, cookie backends.Cookie) {
	r.t.Helper()
	w := backends.Write{Data: []byte(data), Timeout: 20 * time.Minute, LockCookie: cookie}
	if err := r.Set(r.t.Context(), now(), r.session(id), w); err != nil {
		r.t.Fatalf("set %s: %v", id, err)
	}
}

func (r *moveRig) switchTo(where string) {
	r.t.Helper()
	if err := r.Switch(r.t.Context(), where); err != nil {
		r.t.Fatalf("switch to %s: %v", where, err)
	}
}

// moved waits until the switch under way is complete.
func (r *moveRig) moved() {
	r.t.Helper()
	for begun := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if p, ok := r.Progress(); ok && p.Over {
			return
		}
		if time.Since(begun) > 20*time.Second {
			r.t.Fatal("the switch is not complete after 20 s")
		}
	}
}

func TestSwitchMovesEverySession(t *testing.T) {
	r := newMoveRig(t)
	ctx := t.Context()
	const many = 2000
	for i := range many {
		r.set(fmt.Sprint("s", i), fmt.Sprint("data ", i), backends.NoCookie)
	}
	locked, err := r.GetExclusive(ctx, now(), r.session("s1"))
	if err != nil {
		t.Fatal(err)
	}
	w := backends.Write{Data: []byte("new"), Timeout: time.Hour, Condition: backends.IfMissing, Uninitialized: true}
	if err := r.Set(ctx, now(), r.session("fresh"), w); err != nil {
		t.Fatal(err)
	}

	r.switchTo("b")
	// On first touch, before the copier comes by.
	if _, err := r.Get(ctx, now(), r.session("s1")); !isLocked(err) {
		t.Errorf("a session that was locked before the switch is %v, want locked", err)
	}
	r.set("s1", "changed", locked.LockCookie)
	if item, err := r.Get(ctx, now(), r.session("fresh")); err != nil || !item.Uninitialized || item.Timeout != time.Hour {
		t.Errorf("the uninitialized session is %+v, %v", item, err)
	}
	if err := r.Remove(ctx, now(), r.session("s2"), 1, backends.IfUnlocked); err != nil {
		t.Errorf("remove after the switch: %v", err)
	}
	r.moved()

	if p, _ := r.Progress(); p.Total != many+1 || p.Done != many+1 {
		t.Errorf("the copier looked at %d of %d sessions, want %d", p.Done, p.Total, many+1)
	}
	if _, err := r.Get(ctx, now(), r.session("s2")); !errors.Is(err, backends.ErrNotFound) {
		t.Errorf("a session that was removed after the switch is back: %v", err)
	}
	if item, err := r.Get(ctx, now(), r.session("s1")); err != nil || string(item.Data) != "changed" {
		t.Errorf("s1 is %q, %v, want what was written after the switch", item.Data, err)
	}
	again, err := r.GetExclusive(ctx, now(), r.session("s1"))
	if err != nil || again.LockCookie != locked.LockCookie+1 {
		t.Errorf("the next lock is %d, %v, want %d", again.LockCookie, err, locked.LockCookie+1)
	}
	for i := 3; i < many; i++ {
		if item, err := r.Get(ctx, now(), r.session(fmt.Sprint("s", i))); err != nil || string(item.Data) != fmt.Sprint("data ", i) {
			t.Fatalf("s%d is %q, %v", i, item.Data, err)
		}
	}
	if r.Store() != backends.Store(r.stores["b"]) {
		t.Error("the new store does not serve")
	}
}

// slowlyCompleted is a store that takes longer to complete a move than a look whether it is complete.
type slowlyCompleted struct{ *memory.Store }

func (s slowlyCompleted) Complete(ctx context.Context, m backends.Move) error {
	select {
	case <-time.After(2 * attendEvery):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Store.Complete(ctx, m)
}

// The old store knows that the move is over, however long it takes to note that: the next switch may lead back there.
func TestSwitchIsOverInTheOldStoreToo(t *testing.T) {
	old, next := memory.New(0), memory.New(0)
	s := NewSessions(slowlyCompleted{old}, budget, slog.New(slog.DiscardHandler))
	s.Opens("a", func(context.Context, string) (backends.Store, error) { return next, nil }, func(where string) string { return where })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	r := &moveRig{Sessions: s, t: t}
	r.set("s", "data", backends.NoCookie)
	r.switchTo("b")
	r.moved()
	if away, _, err := old.Moves(t.Context()); err != nil || away.Stage != backends.Moved {
		t.Errorf("the old store has the move at %v, %v; want it to be over", away.Stage, err)
	}
}

// A server that was killed when all sessions had been moved, before the old store knew, does not keep them from moving back.
func TestSwitchBackWhereTheOldStoreWasNotTold(t *testing.T) {
	old, next := memory.New(0), memory.New(0)
	first := backends.Move{ID: "first", From: "b", To: "a"}
	if err := errors.Join(next.Enter(t.Context(), first), old.Leave(t.Context(), first), next.Complete(t.Context(), first)); err != nil {
		t.Fatal(err)
	}
	s := NewSessions(next, budget, slog.New(slog.DiscardHandler))
	s.Opens("a", func(context.Context, string) (backends.Store, error) { return old, nil }, func(where string) string { return where })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	r := &moveRig{Sessions: s, t: t}
	r.set("s", "data", backends.NoCookie)
	r.switchTo("b")
	r.moved()
	if item, err := r.Get(t.Context(), now(), r.session("s")); err != nil || string(item.Data) != "data" {
		t.Errorf("the session is %q, %v", item.Data, err)
	}
}

// Pages go on counting while the sessions move, and no count is lost.
func TestSwitchUnderLoad(t *testing.T) {
	r := newMoveRig(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r.SetLockWait(time.Second)
	const sessions, workers = 20, 8
	for i := range sessions {
		r.set(fmt.Sprint("s", i), "0", backends.NoCookie)
	}
	var counted [sessions]atomic.Int64
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for i := worker; ctx.Err() == nil; i++ {
				n := i % sessions
				session := r.session(fmt.Sprint("s", n))
				item, err := r.GetExclusive(context.Background(), now(), session)
				if isLocked(err) {
					continue
				}
				if err != nil {
					t.Errorf("get exclusive: %v", err)
					return
				}
				count, _ := strconv.Atoi(string(item.Data))
				w := backends.Write{Data: []byte(strconv.Itoa(count + 1)), Timeout: time.Hour, LockCookie: item.LockCookie}
				if err := r.Set(context.Background(), now(), session, w); err != nil {
					t.Errorf("set: %v", err)
					return
				}
				counted[n].Add(1)
			}
		})
	}
	pages := func(least int64) {
		for sum := int64(0); sum < least && !t.Failed(); time.Sleep(time.Millisecond) {
			sum = 0
			for n := range counted {
				sum += counted[n].Load()
			}
		}
	}
	for i, to := range []string{"b", "c"} {
		pages(int64(200 * (i + 1)))
		r.switchTo(to)
		r.moved()
	}
	pages(600)
	stop()
	wg.Wait()
	for n := range sessions {
		item, err := r.Get(t.Context(), now(), r.session(fmt.Sprint("s", n)))
		if want := counted[n].Load(); err != nil || string(item.Data) != fmt.Sprint(want) {
			t.Errorf("session %d counts %s, %v, want %d", n, item.Data, err, want)
		}
	}
}

func TestSwitchRefused(t *testing.T) {
	r := newMoveRig(t)
	r.set("s", "data", backends.NoCookie)
	if err := r.Switch(t.Context(), "nowhere"); err == nil {
		t.Error("a switch to a store that cannot be opened succeeds")
	}
	if err := r.Switch(t.Context(), "a"); err != nil {
		t.Errorf("a switch to where the sessions are: %v", err)
	}
	if item, err := r.Get(t.Context(), now(), r.session("s")); err != nil || string(item.Data) != "data" {
		t.Errorf("the session is %q, %v after refused switches", item.Data, err)
	}
}

// An application lends to its alias.
func TestAliasJoinsSessions(t *testing.T) {
	r := newMoveRig(t)
	ctx := t.Context()
	const one, seven, keyed = "/lm/w3svc/1/root", "/lm/w3svc/7/root", "/LM/W3SVC/7/ROOT(c2VjcmV0)/"
	at := func(app, id string) Session { return Session{App: r.Application(app), ID: id} }
	write := func(app, id string) {
		t.Helper()
		if err := r.Set(ctx, now(), at(app, id), backends.Write{Data: []byte(app), Timeout: time.Hour, LockCookie: backends.NoCookie}); err != nil {
			t.Fatal(err)
		}
	}
	finds := func(app, id, want string) {
		t.Helper()
		if item, err := r.Get(ctx, now(), at(app, id)); err != nil || string(item.Data) != want {
			t.Errorf("session %s of %s is %q, %v, want that of %s", id, app, item.Data, err, want)
		}
	}
	write(one, "s1")
	write(seven, "s7")
	write(keyed, "k7")
	write(one, "locked")
	lock, err := r.GetExclusive(ctx, now(), at(one, "locked"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetAliases(ctx, []Alias{{Name: "shop", IDs: []string{"/LM/W3SVC/1/ROOT", seven}}}); err != nil {
		t.Fatal(err)
	}
	finds(seven, "s1", one)
	finds(one, "s1", one)
	finds(one, "s7", seven)
	finds(one, "k7", keyed)
	finds(keyed, "s7", seven)
	if _, err := r.Get(ctx, now(), at(seven, "locked")); !isLocked(err) {
		t.Errorf("a session that a page has locked since before the change is %v, want locked", err)
	}
	if err := r.Set(ctx, now(), at(one, "locked"), backends.Write{Data: []byte("done"), Timeout: time.Hour, LockCookie: lock.LockCookie}); err != nil {
		t.Errorf("the page that holds the lock cannot write: %v", err)
	}
	finds(seven, "locked", "done")
	if err := r.Remove(ctx, now(), at(one, "s7"), backends.NoCookie, backends.IfUnlocked); err != nil {
		t.Error(err)
	}
	if _, err := r.Get(ctx, now(), at(seven, "s7")); !errors.Is(err, backends.ErrNotFound) {
		t.Errorf("a removed session is back under its former application: %v", err)
	}
	// Split again: who comes first has it.
	if err := r.SetAliases(ctx, nil); err != nil {
		t.Fatal(err)
	}
	finds(seven, "s1", one)
	finds(one, "locked", "done")
	if _, err := r.Get(ctx, now(), at(one, "s1")); !errors.Is(err, backends.ErrNotFound) {
		t.Errorf("a session is in two applications: %v", err)
	}
}

func TestStateFileKeepsSessions(t *testing.T) {
	ctx := t.Context()
	store := memory.New(0)
	r := NewSessions(store, budget, slog.New(slog.DiscardHandler))
	session := func(id string) Session { return Session{App: r.Application("shop"), ID: id} }
	for i := range 1200 {
		w := backends.Write{Data: fmt.Append(nil, "data ", i), Timeout: time.Duration(i+1) * time.Minute}
		if err := r.Set(ctx, now(), session(fmt.Sprint(i)), w); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.GetExclusive(ctx, now(), session("7")); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/sessions"
	if n, err := SaveState(ctx, store, path); n != 1200 || err != nil {
		t.Fatalf("saved %d, %v", n, err)
	}
	next := memory.New(0)
	if n, err := LoadState(ctx, next, path); n != 1200 || err != nil {
		t.Fatalf("loaded %d, %v", n, err)
	}
	r = NewSessions(next, budget, slog.New(slog.DiscardHandler))
	if item, err := r.Get(ctx, now(), session("1199")); err != nil || string(item.Data) != "data 1199" || item.Timeout != 1200*time.Minute {
		t.Errorf("got %+v, %v", item, err)
	}
	if _, err := r.Get(ctx, now(), session("7")); !isLocked(err) {
		t.Errorf("the lock was lost: %v", err)
	}
	if n, err := LoadState(ctx, memory.New(0), path); n != 0 || err != nil {
		t.Errorf("loaded %d again, %v", n, err)
	}
}

// A request that waits for a lock goes on waiting in the new store.
func TestWaiterIsCarriedOver(t *testing.T) {
	r := newMoveRig(t)
	r.SetLockWait(5 * time.Second)
	r.set("s", "before", backends.NoCookie)
	lock, err := r.GetExclusive(t.Context(), now(), r.session("s"))
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		item backends.Item
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		item, err := r.GetExclusive(t.Context(), now(), r.session("s"))
		answered <- answer{item, err}
	}()
	for r.Waiting() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.switchTo("b")
	r.set("s", "after", lock.LockCookie)
	begun := time.Now()
	if a := <-answered; a.err != nil || string(a.item.Data) != "after" || a.item.LockCookie != lock.LockCookie+1 {
		t.Errorf("the waiter got %q with cookie %d, %v", a.item.Data, a.item.LockCookie, a.err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the waiter got the lock %v after its release", took)
	}
}
