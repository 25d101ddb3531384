//go:build unix

package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

// visitors use sessions as pages do, each its own, and note what was acknowledged. They try again as
// server.Sessions does: the same token, until the budget is spent.
type visitors struct {
	t      *testing.T
	stores []*Store
	app    backends.AppID
	budget time.Duration
	stop   chan struct{}
	wg     sync.WaitGroup

	pages, retries, givenUp atomic.Int64
	longest                 atomic.Int64
	all                     []*visitor
}

type visitor struct {
	key    backends.Key
	count  uint64          // acknowledged
	tried  uint64          // at most this may be there
	cookie backends.Cookie // the last that was given out
}

func visit(t *testing.T, stores []*Store, n int, budget time.Duration) *visitors {
	t.Helper()
	v := &visitors{t: t, stores: stores, budget: budget, stop: make(chan struct{})}
	var err error
	if v.app, err = stores[0].Application(t.Context(), "app", true); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		one := &visitor{key: backends.Key{App: v.app, ID: fmt.Sprintf("visitor%d", i)}}
		v.all = append(v.all, one)
		w := backends.Write{Data: make([]byte, 500), Timeout: time.Hour, LockCookie: backends.NoCookie}
		if err := stores[0].Set(t.Context(), one.key, newToken(), w); err != nil {
			t.Fatal(err)
		}
		one.cookie = 1
		v.wg.Go(func() { v.run(one, stores[i%len(stores)]) })
	}
	return v
}

// try runs one request.
func (v *visitors) try(op func(ctx context.Context) error) error {
	begun := time.Now()
	defer func() {
		for took := int64(time.Since(begun)); ; {
			longest := v.longest.Load()
			if took <= longest || v.longest.CompareAndSwap(longest, took) {
				return
			}
		}
	}()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		end := time.Now().Add(v.budget / 3)
		if last := begun.Add(v.budget); last.Before(end) {
			end = last
		}
		ctx, cancel := context.WithDeadline(context.Background(), end)
		err := op(ctx)
		cancel()
		if backends.IsAnswer(err) || errors.Is(err, backends.ErrPermanent) {
			return err
		}
		if time.Since(begun)+pause >= v.budget {
			v.givenUp.Add(1)
			return err
		}
		v.retries.Add(1)
		time.Sleep(pause)
	}
}

func (v *visitors) run(one *visitor, store *Store) {
	for {
		select {
		case <-v.stop:
			return
		default:
		}
		tok := newToken()
		var got backends.Item
		err := v.try(func(ctx context.Context) (err error) {
			got, err = store.GetExclusive(ctx, one.key, tok)
			return err
		})
		if locked, ok := errors.AsType[*backends.LockedError](err); ok { // by a page that was given up
			if locked.Cookie < one.cookie { // equal: its own Set was given up
				v.t.Errorf("%s is locked again with cookie %d", one.key.ID, locked.Cookie)
			}
			one.cookie = locked.Cookie
			v.try(func(ctx context.Context) error {
				_, err := store.Release(ctx, one.key, newToken(), locked.Cookie, backends.IfUnlocked)
				return err
			})
			continue
		}
		if err != nil {
			if backends.IsAnswer(err) || errors.Is(err, backends.ErrPermanent) {
				v.t.Errorf("GetExclusive: %v", err)
				return
			}
			continue
		}
		if got.LockCookie <= one.cookie {
			v.t.Errorf("%s: cookie %d is given out after %d", one.key.ID, got.LockCookie, one.cookie)
		}
		one.cookie = got.LockCookie
		if n := binary.BigEndian.Uint64(got.Data); n < one.count || n > one.tried {
			v.t.Errorf("%s counts %d, but %d is acknowledged and %d was tried", one.key.ID, n, one.count, one.tried)
		}
		data := item(500)
		one.tried = binary.BigEndian.Uint64(got.Data) + 1
		binary.BigEndian.PutUint64(data, one.tried)
		tok = newToken()
		err = v.try(func(ctx context.Context) error {
			return store.Set(ctx, one.key, tok, backends.Write{Data: data, Timeout: time.Hour, LockCookie: got.LockCookie})
		})
		switch {
		case err == nil:
			one.count = one.tried
			v.pages.Add(1)
		case backends.IsAnswer(err) || errors.Is(err, backends.ErrPermanent):
			v.t.Errorf("Set: %v", err)
			return
		}
	}
}

// more returns when the visitors have seen n more pages.
func (v *visitors) more(n int64) {
	v.t.Helper()
	until := v.pages.Load() + n
	for end := time.Now().Add(time.Minute); v.pages.Load() < until; time.Sleep(time.Millisecond) {
		if time.Now().After(end) || v.t.Failed() {
			v.t.Fatal("the visitors see no more pages")
		}
	}
}

func (v *visitors) leave() {
	v.t.Helper()
	close(v.stop)
	v.wg.Wait()
	v.t.Logf("%d pages, %d retries, %d requests given up, the longest request took %v",
		v.pages.Load(), v.retries.Load(), v.givenUp.Load(), time.Duration(v.longest.Load()).Round(time.Millisecond))
}

func TestStoppedImmediatelyUnderLoad(t *testing.T) {
	server := pgtest.New(t)
	url := migrated(t, server.Database(t))
	v := visit(t, []*Store{open(t, url), open(t, url)}, 20, 8*time.Second)
	for range 3 {
		v.more(200)
		server.StopImmediately()
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	v.more(200)
	v.leave()
	if v.givenUp.Load() > 0 {
		t.Error("requests were given up although the database was back at once")
	}
	if v.retries.Load() == 0 {
		t.Error("nothing failed: the test has tested nothing")
	}
}

func TestStandbyIsPromotedUnderLoad(t *testing.T) {
	if !long(t) {
		return
	}
	primary := pgtest.New(t, "wal_level=replica", "max_wal_senders=5", "hot_standby=on")
	url := migrated(t, primary.Database(t))
	standby := primary.Standby(t, "wal_level=replica")
	primary.Exec(t, url, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
	primary.Exec(t, url, "SELECT pg_reload_conf()")
	for synced := false; !synced; {
		primary.Query(t, url, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')", &synced)
	}
	url = strings.Replace(url, fmt.Sprintf(":%d/", primary.Port), fmt.Sprintf(":%d,127.0.0.1:%d/", primary.Port, standby.Port), 1)
	v := visit(t, []*Store{open(t, url), open(t, url)}, 20, 8*time.Second)
	v.more(500)
	primary.StopImmediately()
	standby.Promote(t)
	v.more(500)
	v.leave()
	if v.givenUp.Load() > 0 {
		t.Error("requests were given up")
	}
}

func TestDatabaseHangs(t *testing.T) {
	hang, budget := 4*time.Second, 1500*time.Millisecond
	if long(t) {
		hang, budget = 30*time.Second, 8*time.Second
	}
	server := pgtest.New(t)
	url := migrated(t, server.Database(t))
	stores := []*Store{open(t, url), open(t, url)}
	v := visit(t, stores, 200, budget)
	v.more(1000)
	runtime.GC()
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	server.Freeze(t)
	thaw := sync.OnceFunc(func() { server.Thaw(t) })
	defer thaw()
	most := 0
	for begun := time.Now(); time.Since(begun) < hang; time.Sleep(100 * time.Millisecond) {
		most = max(most, runtime.NumGoroutine())
	}
	runtime.GC()
	runtime.ReadMemStats(&during)
	for i, store := range stores {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		begun := time.Now()
		if err := store.Ping(ctx); backends.IsAnswer(err) {
			t.Errorf("Ping of store %d: %v", i, err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("Ping of store %d ended after %v", i, took)
		}
		cancel()
	}
	thaw()
	v.more(1000)
	v.leave()
	t.Logf("goroutines at most %d, heap %d KiB before and %d KiB while it hung", most, before.HeapAlloc>>10, during.HeapAlloc>>10)
	if took := time.Duration(v.longest.Load()); took > budget+time.Second {
		t.Errorf("a request took %v, with a budget of %v", took, budget)
	}
	if most > 200*4+100 {
		t.Errorf("%d goroutines", most)
	}
	var connections int
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		server.Query(t, url, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aspstate'", &connections)
		if connections <= 2*minConns || time.Now().After(end) {
			break
		}
	}
	if connections > 2*minConns {
		t.Errorf("%d connections, want %d at most", connections, 2*minConns)
	}
}

func TestOpenWaitsForStartingDatabase(t *testing.T) {
	server := pgtest.New(t)
	url := migrated(t, server.Database(t))
	server.Stop()
	opened := make(chan error, 1)
	var log strings.Builder
	go func() {
		s, err := Open(t.Context(), url, logTo(&log))
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("Open returned while the database was down: %v", err)
	case <-time.After(600 * time.Millisecond):
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "waiting for the database") {
		t.Errorf("the log says %q", log.String())
	}
	server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, url, logTo(&log)); err == nil || errors.Is(err, backends.ErrPermanent) {
		t.Fatalf("%v, want a failure", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
}
