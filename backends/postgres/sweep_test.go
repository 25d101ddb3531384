//go:build unix

package postgres

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"fmt"

	"aspstate/backends"
	"aspstate/backends/postgres/pgtest"
)

// latencies runs pages (GetExclusive and Set) in 8 goroutines until stop is closed and returns how long their requests took.
func latencies(t *testing.T, store *Store, app backends.AppID, stop <-chan struct{}) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			key := backends.Key{App: app, ID: fmt.Sprintf("visitor%d", i)}
			w := backends.Write{Data: item(1024), Timeout: time.Hour, LockCookie: backends.NoCookie}
			err := store.Set(t.Context(), key, newToken(), w)
			var took []time.Duration
			for err == nil {
				select {
				case <-stop:
					mu.Lock()
					all = append(all, took...)
					mu.Unlock()
					return
				default:
				}
				begun := time.Now()
				var got backends.Item
				got, err = store.GetExclusive(context.Background(), key, newToken())
				took = append(took, time.Since(begun))
				if err == nil {
					begun = time.Now()
					w.LockCookie = got.LockCookie
					err = store.Set(context.Background(), key, newToken(), w)
					took = append(took, time.Since(begun))
				}
			}
			t.Error(err)
		})
	}
	wg.Wait()
	slices.Sort(all)
	return all
}

func TestSweepWhileRequestsRun(t *testing.T) {
	expired := 10_000
	if long(t) {
		expired = 100_000
	}
	server := pgtest.New(t)
	url := migrated(t, server.Database(t))
	store, sweeper, db := open(t, url), open(t, url), connectTo(t, url)
	app, err := store.Application(t.Context(), "app", true)
	if err != nil {
		t.Fatal(err)
	}
	measure := func(what string, while func()) (median, p99 time.Duration) {
		stop, result := make(chan struct{}), make(chan []time.Duration)
		go func() { result <- latencies(t, store, app, stop) }()
		begun := time.Now()
		while()
		took := time.Since(begun)
		close(stop)
		all := <-result
		if len(all) < 100 {
			t.Fatalf("%s: only %d requests", what, len(all))
		}
		median, p99 = all[len(all)/2], all[len(all)*99/100]
		t.Logf("%s: %d requests in %v, median %v, p99 %v, longest %v", what, len(all), took.Round(time.Millisecond), median.Round(10*time.Microsecond), p99.Round(10*time.Microsecond), all[len(all)-1].Round(time.Millisecond))
		return median, p99
	}
	if _, err := db.Exec(t.Context(), `INSERT INTO sessions SELECT $1, convert_to('expired' || n, 'UTF8'), now() - interval '2 hours', now() - interval '1 hour', now() - interval '2 hours', 1, 3600000, false, 0,
		now() - interval '1 hour', '', decode(repeat(md5(n::text), 64), 'hex') FROM generate_series(1, $2::int) AS n`, int32(app), expired); err != nil {
		t.Fatal(err)
	}
	measure("without a sweep", func() { time.Sleep(2 * time.Second) })
	_, p99 := measure("with a sweep", func() {
		begun, swept := time.Now(), 0
		for swept < expired {
			n, err := sweeper.DeleteExpired(t.Context(), 1000)
			if err != nil || n == 0 {
				t.Errorf("DeleteExpired: %d, %v", n, err)
				return
			}
			swept += n
		}
		t.Logf("swept %d sessions in %v", swept, time.Since(begun).Round(time.Millisecond))
	})
	if p99 > time.Second {
		t.Errorf("with a sweep, one request in a hundred takes %v", p99)
	}
	var left int
	if err := db.QueryRow(t.Context(), "SELECT count(*) FROM sessions").Scan(&left); err != nil || left != 8 {
		t.Errorf("%d sessions are left, %v", left, err)
	}
}
