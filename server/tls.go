package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"time"
)

// handshakeBy is how long a client may take for a TLS handshake.
const handshakeBy = 10 * time.Second

// secure makes the TLS handshake. Until it is over the connection counts as idle.
func (s *Server) secure(ctx context.Context, c *Conn, config *tls.Config) bool {
	if !c.Idle(time.Now()) {
		return false
	}
	c.SetDeadline(time.Now().Add(handshakeBy))
	secured := tls.Server(wire{c}, config)
	err := secured.HandshakeContext(ctx)
	if !c.Busy() {
		return false // to make room, or for a shutdown
	}
	if errors.Is(err, io.EOF) {
		return false // it only looked whether the port is open
	}
	if err != nil {
		s.traffic.Insecure.Add(1)
		s.insecure.add(1, func(n int64) {
			s.Log.Warn("connections are closed: the TLS handshake failed", "connections", n, "client", c.RemoteAddr(), "reason", err)
		})
		return false
	}
	c.SetDeadline(time.Time{})
	c.tls = secured
	return true
}

// wire is a connection as TLS sees it.
type wire struct{ *Conn }

func (w wire) Read(p []byte) (int, error)  { return w.read(p) }
func (w wire) Write(p []byte) (int, error) { return w.write(p) }
