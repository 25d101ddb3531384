package main

import (
	"errors"
	"fmt"
	"strconv"

	"aspstate/server/stateserver/client"
)

// step is one request.
type step uint8

const (
	stepCreate step = iota // write a new session
	stepLock               // GetExclusive
	stepWrite              // Set with the cookie of the lock
	stepRead               // Get
	stepRenew              // HEAD
	stepRefuse             // GetExclusive of a session that is locked already
)

// operations are what a load consists of: its unit, which is timed, is all the steps on one session.
var operations = map[string][]step{
	"fill":  {stepCreate},
	"lock":  {stepLock},
	"cycle": {stepLock, stepWrite},
	"get":   {stepRead},
	"head":  {stepRenew},
	"poll":  {stepRefuse},
}

// dialect is how a kind of server is asked.
type dialect interface {
	// ask appends the request for the step on the link's session to out. The item that is written is body.
	ask(out []byte, s step, l *link, body []byte) []byte
	// answer reads the answer to the step at the beginning of in, and returns its length; more than in has where it is not all
	// there, as much as is known of it. It notes the cookie of a lock. An answer other than the expected one is an error.
	answer(in []byte, s step, l *link) (length int, err error)
}

// idLength is that of the session IDs of ASP.NET.
const idLength = 24

// sessionID is the ID of a session by its number: 24 letters and digits, which look random as ASP.NET's are.
func sessionID(number uint64) (id [idLength]byte) {
	const letters = "abcdefghijklmnopqrstuvwxyz012345"
	for half := range uint64(2) {
		bits := scramble(2*number + half)
		for i := range uint64(idLength / 2) {
			id[half*idLength/2+i] = letters[bits&31]
			bits >>= 5
		}
	}
	return id
}

// scramble maps numbers to others, each to one of its own (the mix of splitmix64).
func scramble(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// aspDialect is the ASP.NET State Server Protocol (MS-ASP), in the bytes that .NET 4 sends.
type aspDialect struct {
	prefix string // of all targets
	size   int    // of the items
}

func newASPDialect(size int) aspDialect {
	target := client.Target("/LM/W3SVC/1/ROOT", "x")
	return aspDialect{prefix: target[:len(target)-1], size: size}
}

func (d aspDialect) ask(out []byte, s step, l *link, body []byte) []byte {
	switch s {
	case stepCreate, stepWrite:
		out = append(out, "PUT "...)
	case stepRenew:
		out = append(out, "HEAD "...)
	default:
		out = append(out, "GET "...)
	}
	out = append(out, d.prefix...)
	out = append(out, l.id[:]...)
	out = append(out, " HTTP/1.1\r\nHost: localhost\r\n"...)
	switch s {
	case stepLock, stepRefuse:
		out = append(out, "Exclusive: acquire\r\n"...)
	case stepCreate, stepWrite:
		out = append(out, "Timeout:20\r\nContent-Length:"...)
		out = strconv.AppendInt(out, int64(len(body)), 10)
		out = append(out, "\r\nExtraFlags:0\r\nLockCookie:"...)
		if s == stepCreate {
			out = append(out, '0')
		} else {
			out = strconv.AppendInt(out, l.cookie, 10)
		}
		out = append(out, "\r\n\r\n"...)
		return append(out, body...)
	}
	return append(out, "\r\n"...)
}

func (d aspDialect) answer(in []byte, s step, l *link) (length int, err error) {
	a, ok, err := parseASP(in)
	if !ok || err != nil {
		return len(in) + 1, err
	}
	want, items := 200, 0
	switch s {
	case stepRefuse:
		want = 423
	case stepLock, stepRead:
		items = d.size
	}
	switch {
	case a.status != want:
		return 0, fmt.Errorf("the answer is %d, want %d", a.status, want)
	case a.body != items:
		return 0, fmt.Errorf("the item has %d bytes, want %d", a.body, items)
	case s == stepLock && a.cookie <= 0:
		return 0, errors.New("the answer has no lock cookie")
	}
	l.cookie = a.cookie
	return a.head + a.body, nil
}

// aspAnswer is the head of a state server's answer.
type aspAnswer struct {
	status     int
	cookie     int64
	head, body int // their lengths
}

// parseASP reads a head; ok is whether it is complete. The status line is bare or begins with HTTP/1.1.
func parseASP(in []byte) (a aspAnswer, ok bool, err error) {
	line, at, ok := nextLine(in, 0)
	if !ok {
		return a, false, nil
	}
	const version = "HTTP/1.1 "
	if len(line) > len(version) && string(line[:len(version)]) == version {
		line = line[len(version):]
	}
	if len(line) < 3 || line[0] < '1' || line[0] > '9' {
		return a, false, fmt.Errorf("%q is not the status line of a state server", line)
	}
	a.status = int(number(line[:3]))
	for {
		if line, at, ok = nextLine(in, at); !ok {
			return a, false, nil
		}
		if len(line) == 0 {
			a.head = at
			return a, true, nil
		}
		if value, ok := field(line, "LockCookie:"); ok {
			a.cookie = number(value)
		} else if value, ok := field(line, "Content-Length:"); ok {
			a.body = int(number(value))
		}
	}
}

// nextLine is the line from at on without its line end, and where the one behind it begins.
func nextLine(in []byte, at int) (line []byte, next int, ok bool) {
	for i := at; i < len(in); i++ {
		if in[i] == '\n' {
			end := i
			if end > at && in[end-1] == '\r' {
				end--
			}
			return in[at:end], i + 1, true
		}
	}
	return nil, at, false
}

// field is the value of a header line, if it is that of name.
func field(line []byte, name string) (value []byte, ok bool) {
	if len(line) < len(name) || string(line[:len(name)]) != name {
		return nil, false
	}
	value = line[len(name):]
	for len(value) > 0 && value[0] == ' ' {
		value = value[1:]
	}
	return value, true
}

// number reads the digits at the beginning of b.
func number(b []byte) (n int64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
