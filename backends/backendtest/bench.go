package backendtest

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"aspstate/backends"
)

// Bench measures what pages cost, over 32 goroutines with a session each: the page cycle
// (GetExclusive and Set) with content that is random and changes, and Get.
func Bench(b *testing.B, open func(tb testing.TB) Fixture) {
	for _, size := range []int{1 << 10, 7 << 10} {
		b.Run(fmt.Sprintf("page/%dKiB", size>>10), func(b *testing.B) {
			bench(b, open(b).Store, size, func(store backends.Store, key backends.Key, w backends.Write) error {
				item, err := store.GetExclusive(b.Context(), key, newToken())
				if err != nil {
					return err
				}
				w.LockCookie = item.LockCookie
				return store.Set(b.Context(), key, newToken(), w)
			})
		})
	}
	b.Run("Get/1KiB", func(b *testing.B) {
		bench(b, open(b).Store, 1<<10, func(store backends.Store, key backends.Key, _ backends.Write) error {
			_, err := store.Get(b.Context(), key, newToken())
			return err
		})
	})
}

func bench(b *testing.B, store backends.Store, size int, cycle func(backends.Store, backends.Key, backends.Write) error) {
	const goroutines = 32
	app, err := store.Application(b.Context(), "/lm/w3svc/1/root", true)
	if err != nil {
		b.Fatal(err)
	}
	keys := make([]backends.Key, goroutines+runtime.GOMAXPROCS(0))
	for i := range keys {
		keys[i] = backends.Key{App: app, ID: fmt.Sprintf("session%017d", i)}
		w := backends.Write{Data: randomData(size), Timeout: timeout, LockCookie: backends.NoCookie}
		if err := store.Set(b.Context(), keys[i], newToken(), w); err != nil {
			b.Fatal(err)
		}
	}
	var next atomic.Int64
	b.ReportAllocs()
	b.SetParallelism((goroutines + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		key := keys[next.Add(1)-1]
		random := randomData(size + 4096)
		w := backends.Write{Timeout: timeout}
		for i := 0; pb.Next(); i++ {
			w.Data = random[i%4096:][:size]
			if err := cycle(store, key, w); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "cycles/s")
}
