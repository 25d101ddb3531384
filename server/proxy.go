package server

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/pires/go-proxyproto"
)

// Behind a proxy every connection comes from the proxy's address. The PROXY protocol, version 1 or 2
// (https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt), has the proxy say in a header, before all else, whose it is.

const (
	// introduceBy is how long a proxy may take for its header, which it sends as soon as it is connected.
	introduceBy = 5 * time.Second
	// headerBuffer holds a usual header, and the beginning of the first request.
	headerBuffer = 512
)

// TrustProxies sets whose connections have to begin with a header of the PROXY protocol. The address in it then is the
// client's, for the access list and for all else. Who is not in the list cannot name another address: from there a
// header is what any other garbage is. It applies to connections accepted from now on.
func (s *Server) TrustProxies(proxies []netip.Prefix) { s.proxies.set(proxies) }

// isProxy reports whether a connection from addr has to begin with a header.
func (s *Server) isProxy(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && s.proxies.contain(plain(tcp))
}

// introduce reads the header of a proxy's connection, and reports whether its client may connect.
func (s *Server) introduce(c *Conn) bool {
	peer := c.Conn.RemoteAddr().(*net.TCPAddr) // isProxy
	if !c.Idle(time.Now()) {
		return false
	}
	c.SetReadDeadline(time.Now().Add(introduceBy))
	in := bufio.NewReaderSize(c.Conn, headerBuffer)
	client, err := clientOf(in, peer)
	if !c.Busy() {
		return false // to make room, or for a shutdown
	}
	if errors.Is(err, errLook) {
		return false
	}
	if err != nil {
		s.traffic.BadHeaders.Add(1)
		s.badHeaders.add(1, func(n int64) {
			s.Log.Warn("connections of a proxy are closed: they do not begin with a header of the PROXY protocol",
				"connections", n, "proxy", peer, "reason", err, "setting", "proxyProtocol")
		})
		return false
	}
	c.SetReadDeadline(time.Time{})
	c.client = client
	c.early, _ = in.Peek(in.Buffered())
	return s.Access.Allowed(client)
}

// errLook is a connection that ends as soon as it is there: proxies look so whether the port is open.
var errLook = errors.New("the connection ended before its first byte")

// clientOf reads a header and returns the address of the client in it. That is peer's own for connections that the proxy makes itself
// (LOCAL), for those whose client it does not know (UNKNOWN), and for clients on the proxy's own machine: a loopback address is not this machine's
// if another says it, and must not pass for one. in is then right behind the header.
func clientOf(in *bufio.Reader, peer *net.TCPAddr) (client *net.TCPAddr, err error) {
	if _, err := in.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("nothing came within %v", introduceBy)
	} else if err != nil {
		return nil, errLook
	}
	header, err := proxyproto.Read(in)
	if err != nil {
		return nil, err
	}
	if header.Command == proxyproto.LOCAL {
		return peer, nil
	}
	switch from := header.SourceAddr.(type) {
	case *net.TCPAddr:
		if plain(from).IsLoopback() {
			return peer, nil
		}
		return from, nil
	case *net.UnixAddr:
		return peer, nil
	default:
		return nil, fmt.Errorf("its client came by %v, not by TCP", from.Network())
	}
}
