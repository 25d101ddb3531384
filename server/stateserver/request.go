package stateserver

import (
	"bytes"
	"errors"
	"math"

	"aspstate/backends"
	"aspstate/server"
)

// request is the head of one request (MS-ASP 2.2.5). target points into the
// connection's buffer.
type request struct {
	verb          verb
	target        []byte
	exclusive     exclusive
	lockCookie    lockCookie
	timeout       int64 // minutes
	extraFlags    int64
	contentLength int64
	// malformed says what is wrong with a request whose end is known all the same;
	// it is answered 400 once its body has been read. Empty when nothing is.
	malformed string
}

type verb uint8

const (
	verbGet verb = iota + 1
	verbPut
	verbDelete
	verbHead
)

// operation is what the request asks for, to be counted.
func (r *request) operation() server.Operation {
	switch {
	case r.verb == verbGet && r.exclusive == exclusiveAcquire:
		return server.OpGetExclusive
	case r.verb == verbGet && r.exclusive == exclusiveRelease:
		return server.OpRelease
	case r.verb == verbGet:
		return server.OpGet
	case r.verb == verbPut && r.extraFlags&1 != 0:
		return server.OpSetUninitialized
	case r.verb == verbPut:
		return server.OpSet
	case r.verb == verbDelete:
		return server.OpRemove
	case r.verb == verbHead:
		return server.OpResetTimeout
	default:
		return server.OpUnreadable
	}
}

type exclusive uint8

const (
	exclusiveNone exclusive = iota
	exclusiveAcquire
	exclusiveRelease
)

// lockCookie is the LockCookie header: absent, a cookie, or not one. What the last
// means depends on the operation and on whether the session exists.
type lockCookie struct {
	cookie  backends.Cookie // NoCookie when absent or invalid
	invalid bool            // present, and not 0 … 2^31-1
	strict  bool            // from LockCookie, which wins over Lock-Cookie
}

const (
	defaultTimeout = 20     // minutes, when the header is missing
	maxTimeout     = 525600 // minutes: a year
)

// errNotFramed are the faults after which nobody knows where the next request
// begins: 400, then the connection is closed.
var (
	errRequestLine   = errors.New("request line is not VERB TARGET HTTP/1.1")
	errVerb          = errors.New("unknown verb")
	errContentLength = errors.New("Content-Length is not a number, or given twice")
	errEncoding      = errors.New("Transfer-Encoding is not supported")
	errLineTooLong   = errors.New("request line is longer than limits.requestLine")
	errHeadTooLong   = errors.New("headers are longer than limits.headers")
)

// findHead returns the length of the head that buf begins with, its blank line
// included, or 0 if it is not complete. Lines end in CR LF; a lone LF will do.
func findHead(buf []byte, maxLine, maxHeaders int) (int, error) {
	line := bytes.IndexByte(buf, '\n')
	if line > maxLine || line < 0 && len(buf) > maxLine {
		return 0, errLineTooLong
	}
	if line < 0 {
		return 0, nil
	}
	end := line + 1
	for {
		n := bytes.IndexByte(buf[end:], '\n')
		if n < 0 {
			n = len(buf) - end
			if end-line+n > maxHeaders {
				return 0, errHeadTooLong
			}
			return 0, nil
		}
		if end-line+n > maxHeaders {
			return 0, errHeadTooLong
		}
		blank := n == 0 || n == 1 && buf[end] == '\r'
		end += n + 1
		if blank {
			return end, nil
		}
	}
}

// parseHead parses a head that findHead has found. An error means that the request
// cannot be framed.
func parseHead(head []byte, r *request) error {
	*r = request{timeout: defaultTimeout, contentLength: -1, lockCookie: lockCookie{cookie: backends.NoCookie}}
	line, rest := nextLine(head)
	name, line, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(line, []byte{' '})
	if !ok || !ok2 || len(target) == 0 || !bytes.HasPrefix(version, []byte("HTTP/")) {
		return errRequestLine
	}
	switch string(name) {
	case "GET":
		r.verb = verbGet
	case "PUT":
		r.verb = verbPut
	case "DELETE":
		r.verb = verbDelete
	case "HEAD":
		r.verb = verbHead
	default:
		return errVerb
	}
	r.target = target
	for {
		line, rest = nextLine(rest)
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if name = bytes.TrimSpace(name); !ok || len(name) == 0 {
			r.malformed = "header line without a name"
			continue
		}
		if err := r.header(name, bytes.TrimSpace(value)); err != nil {
			return err
		}
	}
	r.contentLength = max(0, r.contentLength)
	return nil
}

// nextLine cuts the first line off, without its line end.
func nextLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte{'\n'})
	return bytes.TrimSuffix(line, []byte{'\r'}), rest
}

// header takes one header (MS-ASP 2.2.3). Names match in any case; of a header
// given twice the last counts; unknown ones are ignored. Timeout and
// ExtraFlags belong to PUT.
func (r *request) header(name, value []byte) error {
	var buf [len("transfer-encoding")]byte
	switch string(lower(buf[:0], name)) {
	case "content-length":
		n, ok := parseInt(value, 0, math.MaxInt64)
		if !ok || r.contentLength >= 0 && r.contentLength != n {
			return errContentLength
		}
		r.contentLength = n
	case "transfer-encoding":
		return errEncoding
	case "exclusive":
		switch string(lower(buf[:0], value)) {
		case "acquire":
			r.exclusive = exclusiveAcquire
		case "release":
			r.exclusive = exclusiveRelease
		}
	case "lockcookie":
		r.lockCookie = parseLockCookie(value)
		r.lockCookie.strict = true
	case "lock-cookie": // only in the specification's examples
		if !r.lockCookie.strict {
			r.lockCookie = parseLockCookie(value)
		}
	case "timeout":
		n, ok := parseInt(value, 0, maxTimeout)
		if !ok && r.verb == verbPut {
			r.malformed = "Timeout is not a number of minutes from 0 to 525600"
		}
		r.timeout = n
	case "extraflags":
		n, ok := parseInt(value, math.MinInt32, math.MaxInt32)
		if !ok && r.verb == verbPut {
			r.malformed = "ExtraFlags is not a 32-bit number"
		}
		r.extraFlags = n
	}
	return nil
}

func parseLockCookie(value []byte) lockCookie {
	n, ok := parseInt(value, 0, math.MaxInt32)
	if !ok {
		return lockCookie{cookie: backends.NoCookie, invalid: true}
	}
	return lockCookie{cookie: backends.Cookie(n)}
}

// lower appends b in lower case to dst, or nothing if it does not fit.
func lower(dst, b []byte) []byte {
	if len(b) > cap(dst) {
		return dst
	}
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

// parseInt reads a decimal number from lo to hi, with an optional sign.
func parseInt(b []byte, lo, hi int64) (n int64, ok bool) {
	negative := false
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		negative = b[0] == '-'
		b = b[1:]
	}
	if len(b) == 0 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if negative {
		n = -n
	}
	return n, lo <= n && n <= hi
}
