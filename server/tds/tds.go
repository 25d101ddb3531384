// Package tds answers web applications with mode="SQLServer", which expect an ASPState database in SQL Server: the part of
// TDS that they speak ([MS-TDS]), and the procedures of ASPState ([MS-ASPSS]) from any store.
//
// No SQL is interpreted. Procedures are called by name (RPC); sp_executesql and batches work as far as they
// consist of such calls. All else is an ordinary error that says what is served here.
//
// The rules of a session are ASPState's here, whatever they are on another port: the lock cookie of a write is always compared,
// and one that does not match is silently dropped. Where this server differs from ASPState:
//
//   - An expired session is missing at once. ASPState renews it if nobody has deleted it yet.
//   - A request for a locked session waits for its lock, as on the state server's port, before it is told that it is locked.
//   - The procedures of ASP.NET 1.x (TempGetStateItem, TempGetStateItem2 and their Exclusive forms) clear the uninitialized mark,
//     which they do not tell.
//   - An insert over a living session (error 2627) renews it.
//   - An empty item is error 515, as NULL is. A timeout of more than a hundred years is one of a hundred years.
//   - An item is one value: a short one replaces a long one, whichever of the procedures stores it.
//   - Session IDs compare byte by byte.
//
// The last eight letters of a session's ID are the AppID that TempGetAppID told its application
// (server.Sessions.ApplicationOf). An ID that does not end in eight hexadecimal digits belongs to the application "".
package tds

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"aspstate/server"
)

// Settings are what may change while the server runs. A request keeps the settings with which it began.
type Settings struct {
	Body  int64         // largest item, in bytes
	Login time.Duration // from the connection to the end of the login
	Read  time.Duration // from a request's first byte to its last
	Write time.Duration // for an answer to be taken

	Databases   []string // names that clients may give the database, in any letter case; the first is the default
	Users       []User
	Certificate tls.Certificate
	LeastTLS    uint16 // version
	RequireTLS  bool   // all that clients send and get, not only the login, if they can

	logins *logins
	tls    *tls.Config
}

// DefaultSettings are the settings without a configuration, but for users and certificate, without which nobody can log in.
func DefaultSettings() Settings {
	return Settings{
		Body:  64 << 20,
		Login: 15 * time.Second, Read: 30 * time.Second, Write: 30 * time.Second,
		Databases: []string{"ASPState"}, LeastTLS: tls.VersionTLS12,
	}
}

// Server answers the procedures of ASPState from Sessions.
type Server struct {
	sessions *server.Sessions
	log      *slog.Logger
	settings atomic.Pointer[Settings]
	refused  atomic.Int64 // logins that are not logged yet
	logged   atomic.Int64 // when one was, in Unix nanoseconds
}

// New returns a server with the default settings.
func New(sessions *server.Sessions, log *slog.Logger) *Server {
	s := &Server{sessions: sessions, log: log}
	s.Configure(DefaultSettings())
	return s
}

// Configure replaces the settings.
func (s *Server) Configure(settings Settings) {
	settings.logins = newLogins(settings.Users)
	settings.tls = tlsConfig(settings.Certificate, settings.LeastTLS)
	s.settings.Store(&settings)
}

// database returns the name of a database that is served as the settings spell it, or "".
func (s *Settings) database(name string) string {
	for _, served := range s.Databases {
		if name == "" || strings.EqualFold(name, served) {
			return served
		}
	}
	return ""
}

// Handle serves one connection until it ends; it is a handler for server.Server.
func (s *Server) Handle(ctx context.Context, nc *server.Conn) {
	c := &conn{Conn: nc, stream: nc, srv: s, in: make([]byte, readBuffer), packetSize: defaultPacket}
	if tcp, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.client = tcp.AddrPort().Addr()
	}
	if c.handshake(ctx) {
		c.serve(ctx)
	}
}
