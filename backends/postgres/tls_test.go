//go:build unix

package postgres

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
)

// A server that cannot prove who it is gets no session, and the error says what to write.
func TestUnverifiedServerIsRefused(t *testing.T) {
	web := httptest.NewTLSServer(nil)
	defer web.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.ReadFull(conn, make([]byte, 8)) // SSLRequest
				conn.Write([]byte("S"))
				tls.Server(conn, web.TLS).Handshake()
			}()
		}
	}()
	plain := pgtest.Shared(t).URL("postgres")
	for name, url := range map[string]string{
		"foreign certificate": "postgres://x@" + ln.Addr().String() + "/x?sslmode=verify-full",
		"no TLS":              strings.Replace(plain, "sslmode=disable", "sslmode=verify-full", 1),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		store, err := Open(ctx, url, logTo(io.Discard))
		cancel()
		if err == nil {
			store.Close()
			t.Errorf("%s: it is served", name)
		} else if !strings.Contains(err.Error(), "sslrootcert=FILE") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
