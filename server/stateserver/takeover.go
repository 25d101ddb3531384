package stateserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"aspstate/backends"
	"aspstate/server"
	"aspstate/server/stateserver/client"
)

// Other is another state server, aspnet_state.exe perhaps, whose sessions are taken over: a server.Lender. It is asked for a session by the
// target that the web server used here.
type Other struct {
	Address string // host:port
}

// GetExclusive locks the session there and returns its item (MS-ASP 3.1.5.2).
func (o Other) GetExclusive(ctx context.Context, session server.Session) (item backends.Item, err error) {
	err = o.ask(ctx, func(c *client.Conn) (client.Answer, error) {
		a, err := c.GetExclusive(session.Target)
		item = backends.Item{Data: a.Body, Timeout: a.Timeout, LockCookie: backends.Cookie(a.LockCookie), Uninitialized: a.ActionFlags&1 != 0}
		if err == nil && a.Status == 200 && (len(a.Body) == 0 || a.LockCookie < 1 || a.LockCookie > math.MaxInt32) {
			err = errors.New("its answer has no session or no lock cookie")
		}
		return a, err
	})
	return item, err
}

// Release ends a lock there (MS-ASP 3.1.5.4).
func (o Other) Release(ctx context.Context, session server.Session, cookie backends.Cookie) error {
	return o.ask(ctx, func(c *client.Conn) (client.Answer, error) { return c.Release(session.Target, int64(cookie)) })
}

// Remove deletes the session there (MS-ASP 3.1.5.5).
func (o Other) Remove(ctx context.Context, session server.Session, cookie backends.Cookie) error {
	return o.ask(ctx, func(c *client.Conn) (client.Answer, error) { return c.Remove(session.Target, int64(cookie)) })
}

// ask asks over a connection of its own: a session is taken over once.
func (o Other) ask(ctx context.Context, question func(c *client.Conn) (client.Answer, error)) error {
	dialer := net.Dialer{Timeout: 3 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return fmt.Errorf("ask the state server %s: %w: %w", o.Address, err, backends.ErrNotApplied)
	}
	c := client.New(conn)
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		c.Timeout = max(time.Millisecond, time.Until(deadline))
	}
	a, err := question(c)
	if err != nil {
		return fmt.Errorf("ask the state server %s: %w", o.Address, err)
	}
	switch a.Status {
	case 200:
		return nil
	case 404:
		return backends.ErrNotFound
	case 423:
		return &backends.LockedError{Cookie: backends.Cookie(a.LockCookie), Age: a.LockAge, Since: time.Now().Add(-a.LockAge), Uninitialized: a.ActionFlags&1 != 0}
	default:
		return fmt.Errorf("ask the state server %s: it answers %q", o.Address, a.StatusLine)
	}
}
