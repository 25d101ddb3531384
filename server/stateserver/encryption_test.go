package stateserver

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/seal"
)

// Encryption makes a copy of an item, on its way in and on its way out, which counts as the item does.
func TestEncryptedItemsCountTwice(t *testing.T) {
	secret := make([]byte, seal.KeySize)
	rand.Read(secret)
	key, err := seal.NewKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	const size, sealed int64 = 300 << 10, 300<<10 + int64(seal.Overhead)
	for name, test := range map[string]struct {
		e        server.Encryption
		in, read int64
	}{
		"off": {server.Encryption{}, size, size},
		"on":  {server.Encryption{Keys: []*seal.Key{key}, Seal: true}, 2 * size, 2 * sealed},
	} {
		t.Run(name, func(t *testing.T) {
			store := &backendtest.Failing{Store: memory.New(0)}
			r := start(t, store, 5*time.Second)
			r.tcp.LimitBodies(64 << 20)
			r.sessions.SetEncryption(test.e)
			var asked atomic.Int64
			store.Fail(func(_ context.Context, op string, apply func() error) error {
				if op == "get" || op == "get exclusive" {
					asked.Store(r.tcp.Held())
				}
				return apply()
			})
			target := newTarget()
			conn, err := net.Dial("tcp", r.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, "PUT "+target+" HTTP/1.1\r\nContent-Length: "+strconv.FormatInt(size, 10)+"\r\n\r\n")
			conn.Write(make([]byte, size-1))
			waitFor(t, "the item to hold memory", func() bool { return r.tcp.Held() == test.in })
			conn.Write([]byte{1})
			waitFor(t, "it to be stored", func() bool { return r.tcp.Held() == 0 })

			// How large it is, is known now, before the store is asked for it.
			c := r.dial(t)
			a, err := c.Get(target)
			if want(t, 200, a, err); int64(len(a.Body)) != size || asked.Load() != test.read {
				t.Errorf("Get gives %d bytes, and held %d before it had them, want %d", len(a.Body), asked.Load(), test.read)
			}
			asked.Store(0)
			a, err = c.GetExclusive(target)
			if want(t, 200, a, err); int64(len(a.Body)) != size || asked.Load() != test.read {
				t.Errorf("GetExclusive gives %d bytes, and held %d before it had them, want %d", len(a.Body), asked.Load(), test.read)
			}
			waitFor(t, "all bytes to be given back", func() bool { return r.tcp.Held() == 0 })
		})
	}
}
