// Package stateserver answers the ASP.NET State Server Protocol (MS-ASP) as
// aspnet_state.exe does: what web applications with mode="StateServer" speak.
//
// The protocol looks like HTTP and is not: a request's target has no leading "/"
// (GET %2fLM%2fW3SVC…), an answer's status line has no version (200 OK). Where the
// specification and the original differ, this is the original.
package stateserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"aspstate/backends"
	"aspstate/server"
)

// Settings are what may change while the server runs. A request keeps the settings
// with which it began.
type Settings struct {
	RequestLine int           // longest request line, in bytes
	Headers     int           // longest header block, in bytes
	Body        int64         // largest item, in bytes
	Idle        time.Duration // between requests
	ReadHead    time.Duration // from a request's first byte to its blank line
	ReadBody    time.Duration // from the blank line to the last byte
	Write       time.Duration // for an answer to be taken
}

// DefaultSettings are the settings of a server without any configuration.
func DefaultSettings() Settings {
	return Settings{
		RequestLine: 8 << 10, Headers: 16 << 10,
		Body: 64 << 20,
		Idle: 5 * time.Minute, ReadHead: 10 * time.Second, ReadBody: 30 * time.Second, Write: 30 * time.Second,
	}
}

// Server answers the protocol from Sessions.
type Server struct {
	sessions *server.Sessions
	log      *slog.Logger
	heads    heads
	targets  targets
	settings atomic.Pointer[Settings]
}

// New returns a server with the default settings. statusPrefix stands before the status
// code: nothing, as in the original, or "HTTP/1.1 " for tools that
// insist on it. aspNetVersion is what X-AspNet-Version says; web servers refuse a
// major version below 2.
func New(sessions *server.Sessions, statusPrefix, aspNetVersion string, log *slog.Logger) *Server {
	s := &Server{
		sessions: sessions,
		log:      log,
		heads:    newHeads(statusPrefix, aspNetVersion),
		targets:  targets{sessions: sessions, prefixes: make(map[string]*server.Application)},
	}
	s.Configure(DefaultSettings())
	return s
}

// Configure replaces the settings.
func (s *Server) Configure(settings Settings) { s.settings.Store(&settings) }

// Handle serves one connection until it ends; it is a server.Server's Handle.
func (s *Server) Handle(ctx context.Context, nc *server.Conn) {
	c := &conn{Conn: nc, srv: s}
	c.watcher = c.watch
	if tcp, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		c.client = tcp.AddrPort().Addr()
	}
	c.serve(ctx)
	c.returnInput()
}

// readRequest reads one request and carries it out. An error means that the
// connection is of no more use.
func (c *conn) readRequest(ctx context.Context, ask server.Request, req *request) (resp response, session server.Session, err error) {
	switch err := c.readHead(ask.Arrived, req); {
	case errors.Is(err, errGone):
		return resp, session, err
	case err != nil:
		c.srv.log.Debug("request refused", "client", c.RemoteAddr(), "reason", err)
		return response{status: statusBadRequest, closeAfter: true}, session, nil
	}
	session, err = c.srv.targets.find(req.target, &c.ids)
	if err != nil {
		req.malformed = err.Error()
	}
	return c.carryOut(ctx, ask, req, session)
}

// carryOut reads the body, if there is one, and answers the request.
func (c *conn) carryOut(ctx context.Context, ask server.Request, req *request, session server.Session) (response, server.Session, error) {
	tooLarge := req.contentLength > c.settings.Body
	if tooLarge && req.malformed == "" {
		req.malformed = "body is larger than limits.body"
		if req.verb == verbPut {
			c.srv.refuseItem(c, req, session)
		}
	}
	if req.malformed != "" {
		c.srv.log.Debug("request refused", "client", c.RemoteAddr(), "reason", req.malformed)
		if req.contentLength > maxDiscard*c.settings.Body {
			return response{status: statusBadRequest, closeAfter: true}, session, nil
		}
	}
	if req.malformed != "" || req.verb != verbPut {
		if err := c.discard(req.contentLength); err != nil {
			return response{}, session, err
		}
	}
	if req.malformed != "" {
		return response{status: statusBadRequest}, session, nil
	}
	switch req.verb {
	case verbGet:
		return c.srv.get(ctx, ask, req, session), session, nil
	case verbPut:
		defer c.Free()
		data, err := c.body(ctx, req.contentLength)
		if err != nil {
			return response{}, session, err
		}
		c.srv.sessions.Metrics.Received.Observe(int64(len(data)))
		resp := c.srv.put(ctx, ask, req, session, data)
		c.returnBuffers(!resp.noAnswer && !c.Retried())
		return resp, session, nil
	case verbDelete:
		return c.srv.remove(ctx, ask, req, session), session, nil
	default:
		return answer(c.srv.sessions.ResetTimeout(ctx, ask, session)), session, nil
	}
}

// maxDiscard is how many times the largest body is read to find the next request.
const maxDiscard = 4

// refuseItem notes that an item is too large. The web server takes the page for failed
// and will not release the lock it wrote with.
func (s *Server) refuseItem(c *conn, req *request, session server.Session) {
	s.log.Warn("item refused: it is larger than limits.body", "client", c.RemoteAddr(),
		"application", session.App.Name, "session", backends.ShortID(session.ID), "bytes", req.contentLength, "limit", c.settings.Body)
	if req.lockCookie.cookie > 0 {
		s.sessions.ReleaseLater(session, req.lockCookie.cookie)
	}
}

// get answers GET: Get, GetExclusive and ReleaseExclusive (MS-ASP 3.1.5.1, 3.1.5.2, 3.1.5.4).
func (s *Server) get(ctx context.Context, ask server.Request, req *request, session server.Session) response {
	var item backends.Item
	var err error
	switch req.exclusive {
	case exclusiveAcquire:
		item, err = s.sessions.GetExclusive(ctx, ask, session)
	case exclusiveRelease:
		return s.release(ctx, ask, req, session)
	default:
		item, err = s.sessions.Get(ctx, ask, session)
		item.LockCookie = 0 // a plain Get does not tell it
	}
	resp := answer(err)
	if err == nil {
		resp.actionFlags = item.Uninitialized
		resp.lockCookie = item.LockCookie
		resp.timeout = item.Timeout
		resp.data = item.Data
	}
	return resp
}

func (s *Server) release(ctx context.Context, ask server.Request, req *request, session server.Session) response {
	if req.lockCookie.cookie == backends.NoCookie {
		// The original looks the session up, which renews it and clears its mark,
		// before it looks at the cookie.
		item, err := s.sessions.Lookup(ctx, ask, session)
		resp := answer(err)
		if resp.status != statusNotFound && !resp.noAnswer {
			resp = response{status: statusBadRequest, actionFlags: resp.actionFlags || item.Uninitialized}
		}
		return resp
	}
	uninitialized, err := s.sessions.Release(ctx, ask, session, req.lockCookie.cookie, backends.IfUnlocked)
	resp := answer(err)
	resp.actionFlags = resp.actionFlags || uninitialized
	return resp
}

// put answers PUT: Set and SetUninitialized (MS-ASP 3.1.5.3).
func (s *Server) put(ctx context.Context, ask server.Request, req *request, session server.Session, data []byte) response {
	if len(data) == 0 {
		// Never stored: a web server takes an empty item for a missing session, and
		// leaves the lock it got with it.
		return response{status: statusBadRequest}
	}
	w := backends.Write{
		Data:       data,
		Timeout:    time.Duration(req.timeout) * time.Minute, // 0 is NeverExpires
		LockCookie: req.lockCookie.cookie,
	}
	uninitialized := req.extraFlags&1 != 0
	if uninitialized {
		w.Condition, w.Uninitialized = backends.IfMissing, true
	} else if req.lockCookie.invalid {
		// Only over an existing session does the original mind.
		w.Condition = backends.IfMissing
	}
	err := s.sessions.Set(ctx, ask, session, w)
	if errors.Is(err, backends.ErrExists) {
		if uninitialized {
			return response{status: statusOK}
		}
		return response{status: statusBadRequest}
	}
	return answer(err)
}

// remove answers DELETE (MS-ASP 3.1.5.5).
func (s *Server) remove(ctx context.Context, ask server.Request, req *request, session server.Session) response {
	if req.lockCookie.invalid {
		resp := answer(s.sessions.ResetTimeout(ctx, ask, session))
		if resp.status != statusNotFound {
			resp.status = statusBadRequest
		}
		return resp
	}
	return answer(s.sessions.Remove(ctx, ask, session, req.lockCookie.cookie, backends.IfUnlocked))
}

// answer is the one place that turns a store's error into an answer. Everything that is not
// an answer of the store closes the connection: the page fails and
// the session survives, where a 404 or a 5xx would start an empty one.
func answer(err error) response {
	if err == nil {
		return response{status: statusOK}
	}
	if locked, ok := errors.AsType[*backends.LockedError](err); ok {
		return response{status: statusLocked, locked: locked, actionFlags: locked.Uninitialized}
	}
	if errors.Is(err, backends.ErrNotFound) {
		return response{status: statusNotFound}
	}
	return response{noAnswer: true}
}
