// Package client speaks the web server's side of the ASP.NET State Server Protocol
// (MS-ASP), one request at a time over one connection, in the bytes that a .NET 4 web
// server sends.
package client

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Conn is a connection to a state server. It is not safe for concurrent use.
type Conn struct {
	net.Conn
	// Timeout bounds one exchange, as stateNetworkTimeout does; 0 means no bound.
	Timeout time.Duration

	in  *bufio.Reader
	out []byte
}

// New returns a Conn over an open connection.
func New(conn net.Conn) *Conn {
	return &Conn{Conn: conn, Timeout: 10 * time.Second, in: bufio.NewReader(conn)}
}

// Dial connects to the state server at a TCP address.
func Dial(address string) (*Conn, error) {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return New(conn), nil
}

// Answer is a state server's answer.
type Answer struct {
	Status      int // 200, 400, 404 or 423
	StatusLine  string
	Version     string // X-AspNet-Version
	ActionFlags int64
	LockCookie  int64 // of the lock taken (200) or met (423); 0 when not given
	LockAge     time.Duration
	LockDate    int64 // .NET ticks
	Timeout     time.Duration
	Body        []byte
}

// Target is the target of a session as .NET 4 sends it: "/", app id, "(", hash, ")/" and
// session ID, URL-encoded as a whole.
func Target(appID, id string) string {
	sum := sha256.Sum256([]byte(appID))
	path := appID + "(" + base64.StdEncoding.EncodeToString(sum[:]) + ")/" + id
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return urlEncode(path)
}

// urlEncode is .NET's HttpUtility.UrlEncode.
func urlEncode(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == ' ':
			b.WriteByte('+')
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.!*()", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

// Get reads a session without a lock.
func (c *Conn) Get(target string) (Answer, error) {
	return c.do("GET", target, nil, "Host: localhost\r\n")
}

// GetExclusive reads a session and locks it.
func (c *Conn) GetExclusive(target string) (Answer, error) {
	return c.do("GET", target, nil, "Host: localhost\r\nExclusive: acquire\r\n")
}

// Release unlocks a session that is locked with this cookie.
func (c *Conn) Release(target string, cookie int64) (Answer, error) {
	return c.do("GET", target, nil, fmt.Sprintf("Host: localhost\r\nExclusive: release\r\nLockCookie:%d\r\n", cookie))
}

// Set writes a session and unlocks it. The cookie is 0 where no lock was taken.
func (c *Conn) Set(target string, body []byte, timeout time.Duration, cookie int64) (Answer, error) {
	return c.put(target, body, timeout, 0, cookie)
}

// SetUninitialized creates a session that is marked as uninitialized.
func (c *Conn) SetUninitialized(target string, body []byte, timeout time.Duration) (Answer, error) {
	return c.put(target, body, timeout, 1, 0)
}

func (c *Conn) put(target string, body []byte, timeout time.Duration, extraFlags, cookie int64) (Answer, error) {
	return c.do("PUT", target, body, fmt.Sprintf("Host: localhost\r\nTimeout:%d\r\nContent-Length:%d\r\nExtraFlags:%d\r\nLockCookie:%d\r\n",
		int64(timeout/time.Minute), len(body), extraFlags, cookie))
}

// Remove deletes a session.
func (c *Conn) Remove(target string, cookie int64) (Answer, error) {
	return c.do("DELETE", target, nil, fmt.Sprintf("Host: localhost\r\nLockCookie:%d\r\n", cookie))
}

// ResetTimeout renews a session.
func (c *Conn) ResetTimeout(target string) (Answer, error) {
	return c.do("HEAD", target, nil, "Host: localhost\r\n")
}

// do sends one request and reads its answer. After an error the connection is of no
// more use.
func (c *Conn) do(verb, target string, body []byte, headers string) (Answer, error) {
	if c.Timeout > 0 {
		c.SetDeadline(time.Now().Add(c.Timeout))
	}
	c.out = fmt.Appendf(c.out[:0], "%s %s HTTP/1.1\r\n%s\r\n", verb, target, headers)
	c.out = append(c.out, body...)
	if _, err := c.Write(c.out); err != nil {
		return Answer{}, fmt.Errorf("send %s: %w", verb, err)
	}
	a, err := c.readAnswer()
	if err != nil {
		return Answer{}, fmt.Errorf("read the answer to %s: %w", verb, err)
	}
	return a, nil
}

// readAnswer reads an answer whose status line is bare or begins with HTTP/1.1.
func (c *Conn) readAnswer() (a Answer, err error) {
	line, err := c.line()
	if err != nil {
		return a, err
	}
	a.StatusLine = line
	code, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(line, "HTTP/1.1 "), "HTTP/1.0 "), " ")
	if a.Status, err = strconv.Atoi(code); err != nil {
		return a, fmt.Errorf("%q is not the status line of a state server", line)
	}
	length := int64(0)
	for {
		if line, err = c.line(); err != nil {
			return a, err
		}
		if line == "" {
			break
		}
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		n, _ := strconv.ParseInt(value, 10, 64)
		switch strings.ToLower(name) {
		case "x-aspnet-version":
			a.Version = value
		case "actionflags":
			a.ActionFlags = n
		case "lockcookie":
			a.LockCookie = n
		case "lockage":
			a.LockAge = time.Duration(n) * time.Second
		case "lockdate":
			a.LockDate = n
		case "timeout":
			a.Timeout = time.Duration(n) * time.Minute
		case "content-length":
			length = n
		}
	}
	if length < 0 || length > 1<<30 {
		return a, fmt.Errorf("the answer's Content-Length is %d", length)
	}
	a.Body = make([]byte, length)
	_, err = io.ReadFull(c.in, a.Body)
	return a, err
}

func (c *Conn) line() (string, error) {
	line, err := c.in.ReadSlice('\n')
	return strings.TrimRight(string(line), "\r\n"), err
}
