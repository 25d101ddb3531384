package server

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// outage keeps track of a store that fails, and says so in the log: when it
// begins, at intervals how many requests were given up, and when it is over.
type outage struct {
	log     *slog.Logger
	since   atomic.Int64 // Unix nanoseconds; 0 while the store works
	last    atomic.Pointer[error]
	givenUp seldom       // requests, for the log
	total   atomic.Int64 // requests given up in this outage
}

// worked notes that the store answered.
func (o *outage) worked() {
	since := o.since.Load()
	if since == 0 || !o.since.CompareAndSwap(since, 0) {
		return
	}
	o.log.Info("the store answers again", "after", time.Since(time.Unix(0, since)).Round(time.Millisecond), "requests_given_up", o.total.Swap(0))
}

// failed notes that a try failed.
func (o *outage) failed(op string, err error) {
	o.last.Store(&err)
	if o.since.CompareAndSwap(0, time.Now().UnixNano()) {
		o.log.Warn("the store is failing, requests are retried", "operation", op, "error", err)
	}
}

// gaveUp notes that a request was given up.
func (o *outage) gaveUp(op string, err error) {
	o.total.Add(1)
	o.givenUp.add(1, func(n int64) {
		o.log.Error("requests were closed without an answer because the store is failing",
			"requests", n, "operation", op, "error", err)
	})
}

// olderThan reports whether the store has been failing for longer than d.
func (o *outage) olderThan(d time.Duration) bool {
	since := o.since.Load()
	return since != 0 && time.Now().UnixNano()-since > int64(d)
}

// seldom counts what may happen to every request and lets it be logged once in a while.
type seldom struct {
	count  atomic.Int64 // not logged yet
	logged atomic.Int64 // when, in Unix nanoseconds
}

// add counts n, and calls log with the count if logEvery has gone by since it last did.
func (s *seldom) add(n int64, log func(count int64)) {
	s.count.Add(n)
	now, logged := time.Now().UnixNano(), s.logged.Load()
	if now-logged >= int64(logEvery) && s.logged.CompareAndSwap(logged, now) {
		log(s.count.Swap(0))
	}
}
