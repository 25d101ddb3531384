package tds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"
)

// handshake brings a connection to the point where its client has logged in.
func (c *conn) handshake(ctx context.Context) bool {
	c.settings = c.srv.settings.Load()
	by := time.Now().Add(c.settings.Login)
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		if !errors.Is(err, errGone) {
			c.srv.log.Debug("connection refused", "client", c.RemoteAddr(), "reason", err)
		}
		return false
	}
	return true
}

// connect reads PRELOGIN and LOGIN7 and answers them (MS-TDS 3.3.5).
func (c *conn) connect(ctx context.Context) error {
	if !c.Idle(time.Now()) {
		return errGone
	}
	deadline, _ := ctx.Deadline()
	if c.SetReadDeadline(deadline); !c.fill() || !c.Busy() {
		return errGone
	}
	m, err := c.readMessage(ctx, messageOverhead)
	if err != nil {
		return err
	}
	if m.kind != packetPrelogin {
		return errors.New("it does not begin with PRELOGIN")
	}
	p, err := parsePrelogin(m.body)
	c.Free()
	if err != nil {
		return err
	}
	encryption, login, all, ok := p.agree(c.settings.RequireTLS)
	c.t.b = p.appendReply(c.t.b[:0], encryption)
	if !c.write(ctx) {
		return errGone
	}
	if !ok {
		return errors.New("the client cannot encrypt, which tds.encryption requires")
	}
	if login {
		if c.r != c.w {
			return errNoTLS
		}
		w := &wrapped{Conn: c.Conn}
		secured := tls.Server(w, c.settings.tls)
		c.SetDeadline(deadline)
		if err := secured.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		w.over = true
		c.stream = secured
	}
	if m, err = c.readMessage(ctx, messageOverhead); err != nil {
		return err
	}
	defer c.Free()
	if m.kind != packetLogin {
		return errors.New("there is no LOGIN7 after PRELOGIN")
	}
	l, err := parseLogin(m.body)
	if err != nil {
		return err
	}
	if login && !all {
		if c.r != c.w {
			return errLogin
		}
		c.stream = c.Conn
	}
	return c.login(ctx, l)
}

// login answers LOGIN7.
func (c *conn) login(ctx context.Context, l login) error {
	c.t.b = c.t.b[:0]
	version := l.agreed()
	switch {
	case version == 0:
		return c.refuseLogin(ctx, l, "its version of TDS is too old", errorf(17828, 20, "%s: this server wants TDS 7.2 or later, which .NET 2.0 and SQL Server 2005 introduced", serverName))
	case l.integrated:
		return c.refuseLogin(ctx, l, "it wants Windows authentication", errorf(18452, 14,
			"Login failed. %s does not know Windows accounts: write User ID and Password into the connection string in place of Integrated Security.", serverName))
	case l.change:
		return c.refuseLogin(ctx, l, "it wants to change its password", errorf(18468, 14, "Login failed. %s keeps passwords in its settings, where they can be changed.", serverName))
	case !c.settings.logins.allowed(ctx, l.user, l.password):
		return c.refuseLogin(ctx, l, "wrong user or password", errorf(18456, 14, "Login failed for user '%s'.", l.user))
	}
	if c.database = c.settings.database(l.database); c.database == "" {
		return c.refuseLogin(ctx, l, "unknown database", errorf(4060, 11, "Cannot open database \"%s\" requested by the login. The login failed.", l.database),
			errorf(18456, 14, "Login failed for user '%s'.", l.user))
	}
	size := max(minPacket, min(l.packetSize, maxPacket))
	if l.packetSize == 0 {
		size = defaultPacket
	}
	c.t.envChange(envDatabase, c.database, "master")
	c.t.info(5701, "Changed database context to '"+c.database+"'.")
	c.t.envCollation()
	c.t.envChange(envLanguage, "us_english", "")
	c.t.info(5703, "Changed language setting to us_english.")
	c.t.envChange(envPacketSize, fmt.Sprint(size), fmt.Sprint(defaultPacket))
	c.t.loginAck(version)
	c.t.done(tokenDone, 0, didNothing, 0)
	c.t.end()
	if !c.write(ctx) {
		return errGone
	}
	c.packetSize = size
	c.SetDeadline(time.Time{})
	return nil
}

// refuseLogin answers a login with errors, late, so that passwords cannot be guessed quickly.
func (c *conn) refuseLogin(ctx context.Context, l login, why string, answers ...*sqlError) error {
	c.srv.sessions.Metrics.LoginsRefused.Add(1)
	c.srv.logRefusal(c, l, why)
	select {
	case <-time.After(loginFails):
	case <-ctx.Done():
	}
	c.t.b = c.t.b[:0]
	for _, e := range answers {
		c.t.fail(e, "")
	}
	c.t.done(tokenDone, doneError, didNothing, 0)
	c.t.end()
	c.write(ctx)
	return errors.New("login refused: " + why)
}

// logRefusal logs a refused login, at most one a second.
func (s *Server) logRefusal(c *conn, l login, why string) {
	s.refused.Add(1)
	now, last := time.Now().UnixNano(), s.logged.Load()
	if now-last >= int64(time.Second) && s.logged.CompareAndSwap(last, now) {
		s.log.Warn("login refused", "logins", s.refused.Swap(0), "reason", why, "client", c.RemoteAddr(),
			"user", cut(l.user, 128), "database", cut(l.database, 128), "program", cut(l.program, 128))
	}
}
