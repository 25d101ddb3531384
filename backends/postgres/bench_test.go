//go:build unix

package postgres

import (
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"aspstate/backends/postgres/pgtest"
)

// BenchmarkTwoStatements is what the store is measured against: the page cycle as two autocommitted statements on 32
// connections, without tokens, renewals and marks.
func BenchmarkTwoStatements(b *testing.B) {
	server := pgtest.New(b)
	for _, size := range []int{1 << 10, 7 << 10} {
		b.Run(fmt.Sprintf("page/%dKiB", size>>10), func(b *testing.B) {
			url := migrated(b, server.Database(b))
			var next atomic.Int64
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := pgx.Connect(b.Context(), url)
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close(b.Context())
				id := []byte(fmt.Sprintf("session%017d", next.Add(1)))
				random := make([]byte, size+4096)
				rand.Read(random)
				_, err = conn.Exec(b.Context(), `INSERT INTO sessions VALUES (1, $1, now(), now() + interval '20 minutes', now(), 1, 1200000, false, 0, now() + interval '20 minutes', '', $2)`, id, random[:size])
				if err != nil {
					b.Error(err)
					return
				}
				for i := 0; pb.Next(); i++ {
					var cookie int32
					var item []byte
					err := conn.QueryRow(b.Context(), `UPDATE sessions SET locked = true, lock_cookie = lock_cookie + 1, lock_date = clock_timestamp()
						WHERE app_id = 1 AND session_id = $1 AND NOT locked AND expires >= clock_timestamp() RETURNING lock_cookie, item`, id).Scan(&cookie, &item)
					if err == nil {
						_, err = conn.Exec(b.Context(), `UPDATE sessions SET locked = false, item = $3, expires = clock_timestamp() + interval '20 minutes'
							WHERE app_id = 1 AND session_id = $1 AND lock_cookie = $2`, id, cookie, random[i%4096:][:size])
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "cycles/s")
		})
	}
}
