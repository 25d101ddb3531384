package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// The scripts do per call what those of Microsoft's RedisSessionStateProvider do: a session is three keys, the item, its
// timeout, and the lock while there is one. They are our own.
//
// KEYS: lock, item, timeout.
const (
	// redisLock takes the lock ARGV[1] for ARGV[2] seconds if there is none, reads item and timeout, and slides the expiry.
	redisLock = `
local lock, taken = ARGV[1], redis.call('SETNX', KEYS[1], ARGV[1])
if taken == 1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) else lock = redis.call('GET', KEYS[1]) end
local item = ''
if lock == ARGV[1] then item = redis.call('GET', KEYS[2]) end
local timeout = redis.call('GET', KEYS[3])
if timeout then
  redis.call('EXPIRE', KEYS[2], timeout)
  redis.call('EXPIRE', KEYS[3], timeout)
else
  timeout = '-1'
end
return {lock, item, timeout, taken}`

	// redisWrite writes an item ARGV[3] with the timeout of ARGV[2] seconds if the lock is ARGV[1], and unlocks. An empty ARGV[1] needs no lock.
	redisWrite = `
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('SET', KEYS[3], ARGV[2])
redis.call('EXPIRE', KEYS[3], ARGV[2])
redis.call('DEL', KEYS[1])
return 1`

	// redisRead reads item and timeout if there is no lock, and slides the expiry.
	redisRead = `
local lock, item = redis.call('GET', KEYS[1]), ''
if not lock then lock, item = '', redis.call('GET', KEYS[2]) end
local timeout = redis.call('GET', KEYS[3])
if timeout then
  redis.call('EXPIRE', KEYS[2], timeout)
  redis.call('EXPIRE', KEYS[3], timeout)
else
  timeout = '-1'
end
return {lock, item, timeout}`

	// redisRenew slides the expiry.
	redisRenew = `
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local timeout = redis.call('GET', KEYS[3])
if timeout then
  redis.call('EXPIRE', KEYS[2], timeout)
  redis.call('EXPIRE', KEYS[3], timeout)
end
return 1`
)

// redisDialect asks Redis as its ASP.NET session provider does.
type redisDialect struct {
	size                     int
	lock, write, read, renew string // the beginnings of the requests: EVALSHA, the script's hash, 3 keys
}

// newRedisDialect loads the scripts.
func newRedisDialect(address string, size int) (d redisDialect, err error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return d, err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	d.size = size
	for _, s := range []struct {
		script    string
		arguments int
		to        *string
	}{{redisLock, 2, &d.lock}, {redisWrite, 3, &d.write}, {redisRead, 0, &d.read}, {redisRenew, 0, &d.renew}} {
		if _, err := fmt.Fprintf(conn, "*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n$%d\r\n%s\r\n", len(s.script), s.script); err != nil {
			return d, err
		}
		head, err := in.ReadString('\n')
		if err != nil {
			return d, err
		}
		if head != "$40\r\n" {
			return d, fmt.Errorf("redis: load a script: %s", strings.TrimSpace(head))
		}
		hash, err := in.ReadString('\n')
		if err != nil {
			return d, err
		}
		*s.to = fmt.Sprintf("*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%s\r\n$1\r\n3\r\n", 6+s.arguments, strings.TrimSpace(hash))
	}
	return d, nil
}

// redisTimeout is 20 minutes.
const redisTimeout = "$4\r\n1200\r\n"

func (d redisDialect) ask(out []byte, s step, l *link, body []byte) []byte {
	switch s {
	case stepCreate, stepWrite:
		out = append(out, d.write...)
	case stepRead:
		out = append(out, d.read...)
	case stepRenew:
		out = append(out, d.renew...)
	default:
		out = append(out, d.lock...)
	}
	out = appendKey(out, l, "$39\r\n", "}_Write_Lock")
	out = appendKey(out, l, "$33\r\n", "}_Data")
	out = appendKey(out, l, "$37\r\n", "}_Internal")
	switch s {
	case stepLock, stepRefuse:
		l.cookie++
		out = appendCookie(out, l)
		return append(out, "$3\r\n110\r\n"...)
	case stepCreate:
		out = append(out, "$0\r\n\r\n"...)
	case stepWrite:
		out = appendCookie(out, l)
	default:
		return out
	}
	out = append(out, redisTimeout...)
	out = append(out, '$')
	out = strconv.AppendInt(out, int64(len(body)), 10)
	out = append(out, "\r\n"...)
	out = append(out, body...)
	return append(out, "\r\n"...)
}

func appendKey(out []byte, l *link, length, suffix string) []byte {
	out = append(out, length...)
	out = append(out, "{/_"...)
	out = append(out, l.id[:]...)
	out = append(out, suffix...)
	return append(out, "\r\n"...)
}

// redisCookie makes 18 digits of a cookie, as the provider's ticks have.
const redisCookie = 638_000_000_000_000_000

// appendCookie appends the lock's value, which no other link uses.
func appendCookie(out []byte, l *link) []byte {
	out = append(out, "$18\r\n"...)
	out = strconv.AppendInt(out, redisCookie+int64(l.number)<<32+l.cookie, 10)
	return append(out, "\r\n"...)
}

func (d redisDialect) answer(in []byte, s step, l *link) (length int, err error) {
	r, ok, err := parseRESP(in)
	if !ok || err != nil {
		return max(r.length, len(in)+1), err
	}
	switch s {
	case stepCreate, stepWrite, stepRenew:
		if r.integer != 1 {
			return 0, errors.New("redis: the session is missing, or not locked by this request")
		}
	case stepRefuse:
		if r.elements != 4 || r.integer != 0 {
			return 0, errors.New("redis: the session is not locked")
		}
	default:
		if r.item != d.size || s == stepLock && r.integer != 1 {
			return 0, fmt.Errorf("redis: the session is locked, or its item has %d bytes and not %d", r.item, d.size)
		}
	}
	return r.length, nil
}

// respAnswer is an answer to a script.
type respAnswer struct {
	length   int
	elements int   // of an array
	item     int   // length of the array's second element
	integer  int64 // the answer, or the last element that is an integer
}

// parseRESP reads an integer, or an array of bulk strings and integers; ok is whether all of it is there. Where it is not, length
// says how much is known to come.
func parseRESP(in []byte) (r respAnswer, ok bool, err error) {
	line, at, ok := nextLine(in, 0)
	if !ok {
		return r, false, nil
	}
	if len(line) == 0 {
		return r, false, errors.New("redis: an empty answer")
	}
	switch line[0] {
	case ':':
		r.integer = number(line[1:])
		r.length = at
		return r, true, nil
	case '*':
		r.elements = int(number(line[1:]))
	default:
		return r, false, fmt.Errorf("redis: %s", line)
	}
	for i := range r.elements {
		if line, at, ok = nextLine(in, at); !ok {
			return r, false, nil
		}
		switch {
		case len(line) > 1 && line[0] == ':':
			r.integer = number(line[1:])
		case len(line) > 1 && line[0] == '$' && line[1] != '-':
			n := int(number(line[1:]))
			if i == 1 {
				r.item = n
			}
			if at += n + 2; at > len(in) {
				r.length = at
				return r, false, nil
			}
		case len(line) > 1 && line[0] == '$': // nothing
		default:
			return r, false, fmt.Errorf("redis: %q in an array", line)
		}
	}
	r.length = at
	return r, true, nil
}
