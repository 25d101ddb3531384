package stateserver

import (
	"strconv"
	"time"

	"aspstate/backends"
	"aspstate/server"
)

// response is an answer in the making. Fields stand in the order in which the
// original sends them (MS-ASP 2.2.4).
type response struct {
	status      status
	actionFlags bool
	locked      *backends.LockedError // for 423
	lockCookie  backends.Cookie       // of the lock taken, 0 for none
	timeout     time.Duration         // of the item in data
	data        []byte                // nil for an answer without a body
	closeAfter  bool
	noAnswer    bool // close the connection instead
}

type status uint8

const (
	statusOK status = iota
	statusBadRequest
	statusNotFound
	statusLocked
	statuses int = iota
)

// counted is the answer as it is counted.
func (r *response) counted() server.Answer {
	if r.noAnswer {
		return server.AnswerNone
	}
	return [statuses]server.Answer{server.AnswerOK, server.AnswerBad, server.AnswerNotFound, server.AnswerLocked}[r.status]
}

// heads are the first lines of every answer, by status.
type heads [statuses][]byte

func newHeads(prefix, aspNetVersion string) (h heads) {
	for s, line := range [statuses]string{"200 OK", "400 Bad Request", "404 Not Found", "423 Locked"} {
		h[s] = []byte(prefix + line + "\r\nX-AspNet-Version: " + aspNetVersion + "\r\n")
	}
	return h
}

// appendTo appends the answer's head to dst. The order and the spelling are the
// original's; every answer has a Content-Length.
func (r *response) appendTo(dst []byte, h *heads) []byte {
	dst = append(dst, h[r.status]...)
	if r.actionFlags {
		dst = append(dst, "ActionFlags: 1\r\n"...)
	}
	if r.status == statusLocked {
		dst = appendField(dst, "LockDate: ", ticks(r.locked.Since))
		dst = appendField(dst, "LockAge: ", int64(r.locked.Age/time.Second))
		dst = appendField(dst, "LockCookie: ", int64(r.locked.Cookie))
	}
	if r.lockCookie > 0 {
		dst = appendField(dst, "LockCookie: ", int64(r.lockCookie))
	}
	if r.data != nil {
		dst = appendField(dst, "Timeout: ", int64(r.timeout/time.Minute))
	}
	dst = append(dst, "Cache-Control: private\r\n"...)
	dst = appendField(dst, "Content-Length: ", int64(len(r.data)))
	return append(dst, "\r\n"...)
}

func appendField(dst []byte, name string, n int64) []byte {
	dst = append(dst, name...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, "\r\n"...)
}

// ticks is a date as .NET counts it, in the server's local time (MS-ASP 2.2.3.8):
// 100 ns since the year 1.
func ticks(t time.Time) int64 {
	const unixEpoch = 62135596800 // seconds from the year 1 to 1970
	_, offset := t.Local().Zone()
	return (t.Unix()+int64(offset)+unixEpoch)*1e7 + int64(t.Nanosecond()/100)
}
