package server

import (
	"errors"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Protocol is what a web server speaks.
type Protocol uint8

const (
	StateServer Protocol = iota // MS-ASP, of mode="StateServer"
	TDS                         // of mode="SQLServer"
	Protocols   int      = iota
)

var protocolNames = [Protocols]string{"stateserver", "tds"}

func (p Protocol) String() string { return protocolNames[p] }

// Operation is what a request asks for.
type Operation uint8

const (
	OpUnreadable Operation = iota // no telling
	OpGet
	OpGetExclusive
	OpRelease
	OpSet
	OpSetUninitialized
	OpRemove
	OpResetTimeout
	Operations int = iota
)

var operationNames = [Operations]string{"unreadable", "get", "get_exclusive", "release", "set", "set_uninitialized", "remove", "reset_timeout"}

func (o Operation) String() string { return operationNames[o] }

// Answer is what a request is answered with.
type Answer uint8

const (
	AnswerOK Answer = iota
	AnswerBad
	AnswerNotFound
	AnswerLocked
	AnswerNone     // the connection was closed instead
	Answers    int = iota
)

var answerNames = [Answers]string{"ok", "bad_request", "not_found", "locked", "none"}

func (a Answer) String() string { return answerNames[a] }

// Statement is what a store is asked to do.
type Statement uint8

const (
	stmtGet Statement = iota
	stmtGetExclusive
	stmtRelease
	stmtSet
	stmtRemove
	stmtResetTimeout
	stmtUnread
	stmtDeleteExpired
	stmtPing
	stmtInspect
	stmtList
	stmtApplications
	Statements int = iota

	// RequestStatements are the first ones: those that requests cause.
	RequestStatements = int(stmtUnread) + 1
)

var statementNames = [Statements]string{"get", "get exclusive", "release", "set", "remove", "reset timeout",
	"unread", "delete expired", "ping", "inspect", "list", "applications"}

func (s Statement) String() string { return statementNames[s] }

// LockWait is how a wait for a lock ended.
type LockWait uint8

const (
	WaitHandedOver LockWait = iota // with the lock, or the item for a plain Get
	WaitLocked                     // it is locked still
	WaitGone                       // the client has gone
	WaitFailed                     // the store fails, or the server stops
	LockWaits      int      = iota
)

var lockWaitNames = [LockWaits]string{"handed_over", "locked", "gone", "failed"}

func (w LockWait) String() string { return lockWaitNames[w] }

// Metrics count what a server has done since its start. To count is one or two atomic additions
// and allocates nothing. Durations are in nanoseconds.
type Metrics struct {
	Requests [Protocols][Operations][Answers]atomic.Uint64
	Latency  [Protocols][Operations]Histogram // from a request's first byte until its answer was ready
	Received Histogram                        // sizes of items that came, in bytes
	Sent     Histogram                        // and of those that left

	LockWait    [LockWaits]Histogram
	LockRefused atomic.Uint64 // requests that found the queue of waiters full

	Statements      [Statements]Histogram // each try of its own
	StatementErrors [Statements]atomic.Uint64
	Retries         [Statements]atomic.Uint64
	GivenUp         atomic.Uint64 // requests

	Created   atomic.Uint64 // sessions, as far as a write says that it is a session's first
	Abandoned atomic.Uint64 // sessions that were removed

	LoginsRefused atomic.Uint64 // over TDS

	Unreadable [Unreadables]atomic.Uint64 // items that were not given out
}

func newMetrics() *Metrics {
	m := new(Metrics)
	for _, hs := range [][]Histogram{m.Latency[StateServer][:], m.Latency[TDS][:], m.LockWait[:], m.Statements[:]} {
		for i := range hs {
			hs[i].bounds = durationBounds
		}
	}
	m.Received.bounds = sizeBounds
	m.Sent.bounds = sizeBounds
	return m
}

// ItemsUnreadable is how many items were not given out.
func (m *Metrics) ItemsUnreadable() (n uint64) {
	for i := range m.Unreadable {
		n += m.Unreadable[i].Load()
	}
	return n
}

// Request counts a request whose answer is ready.
func (m *Metrics) Request(p Protocol, op Operation, answer Answer, took time.Duration) {
	m.Requests[p][op][answer].Add(1)
	m.Latency[p][op].Observe(int64(took))
}

// statement counts a try of a statement.
func (m *Metrics) statement(s Statement, took time.Duration, err error) {
	m.Statements[s].Observe(int64(took))
	if !backends.IsAnswer(err) {
		m.StatementErrors[s].Add(1)
	}
}

// waited counts a wait for a lock by the error that it ended with.
func (m *Metrics) waited(took time.Duration, err error) {
	end := WaitFailed
	_, locked := errors.AsType[*backends.LockedError](err)
	switch {
	case err == nil, errors.Is(err, backends.ErrNotFound): // removed by its holder
		end = WaitHandedOver
	case locked:
		end = WaitLocked
	case errors.Is(err, errGone):
		end = WaitGone
	}
	m.LockWait[end].Observe(int64(took))
}

// Histogram counts values by size.
type Histogram struct {
	bounds []int64 // the largest value of each bucket but the last
	counts [maxBuckets]atomic.Uint64
	sum    atomic.Int64
}

const maxBuckets = 18

var (
	durationBounds = []int64{
		50e3, 100e3, 250e3, 500e3, // ns
		1e6, 2.5e6, 5e6, 10e6, 25e6, 50e6, 100e6, 250e6, 500e6,
		1e9, 2.5e9, 5e9, 10e9,
	}
	sizeBounds = []int64{256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20}
)

// DurationBounds are the bounds of all histograms of durations.
func DurationBounds() []int64 { return durationBounds }

// Observe counts a value.
func (h *Histogram) Observe(v int64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(v)
}

// Bounds are the largest values of the buckets; one more bucket has what is larger.
func (h *Histogram) Bounds() []int64 { return h.bounds }

// Counts are how many values fell into each bucket, and Sum is the sum of all.
func (h *Histogram) Counts() []uint64 {
	counts := make([]uint64, len(h.bounds)+1)
	for i := range counts {
		counts[i] = h.counts[i].Load()
	}
	return counts
}

func (h *Histogram) Sum() int64 { return h.sum.Load() }

// asked is how many tries requests have made.
func (m *Metrics) asked() (n uint64) {
	for i := range m.Statements[:RequestStatements] {
		for _, c := range m.Statements[i].Counts() {
			n += c
		}
	}
	return n
}
