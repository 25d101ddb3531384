package stateserver

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"aspstate/backends/memory"
	"aspstate/server/stateserver/client"
)

// BenchmarkPageCycle is what a page does with its session: GetExclusive, then Set, here
// over loopback and on sessions of its own.
func BenchmarkPageCycle(b *testing.B) {
	for _, size := range []int{1 << 10, 7 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			r := start(b, memory.New(0), 8*time.Second)
			b.SetParallelism(16)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				c, err := client.Dial(r.address)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				item := make([]byte, size)
				rand.Read(item)
				target := newTarget()
				cookie := int64(0)
				for pb.Next() {
					a, err := c.Set(target, item, 20*time.Minute, cookie)
					if err == nil {
						a, err = c.GetExclusive(target)
					}
					if err != nil || a.Status != 200 {
						b.Errorf("%s, %v", a.StatusLine, err)
						return
					}
					cookie = a.LockCookie
				}
			})
		})
	}
}
