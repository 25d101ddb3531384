package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Load is what is sent to a server.
type Load struct {
	Op       string        `json:"op"` // of operations
	Conns    int           `json:"conns"`
	Size     int           `json:"size"`     // of items, in bytes
	Sessions int           `json:"sessions"` // connection i uses i, i+Conns, i+2*Conns, …, so that none uses another's
	Rate     float64       `json:"rate"`     // units per second, at random times; 0 asks again as soon as the answer is there
	Warm     time.Duration `json:"-"`        // not measured
	For      time.Duration `json:"-"`        // measured
	first    uint64        // number of the first session
}

func (l Load) String() string {
	s := fmt.Sprintf("%s, %s, %d connections, %s sessions", l.Op, bytesText(l.Size), l.Conns, countText(l.Sessions))
	if l.Rate > 0 {
		s += fmt.Sprintf(", %.0f/s", l.Rate)
	}
	return s
}

// Result is what a load found. A unit is a page cycle, or a single request.
type Result struct {
	Units     uint64        `json:"units"`
	PerSecond float64       `json:"per_second"`
	P50       time.Duration `json:"p50_ns"`
	P99       time.Duration `json:"p99_ns"`
	P999      time.Duration `json:"p999_ns"`
	Max       time.Duration `json:"max_ns"`
	ServerCPU time.Duration `json:"server_cpu_ns"` // per unit, with its database
	ClientCPU time.Duration `json:"client_cpu_ns"` // per unit
	ServerRSS int64         `json:"server_rss"`    // bytes, at the end, with its database

	// Of a store with a database, that part of the above. Of all, per unit: bytes given to the file system, flushes of the disk, and bytes
	// over the network, between client and server and between server and database.
	DatabaseCPU time.Duration `json:"database_cpu_ns,omitempty"`
	DatabaseRSS int64         `json:"database_rss,omitempty"`
	Written     float64       `json:"written,omitempty"`
	Flushes     float64       `json:"flushes,omitempty"`
	Network     float64       `json:"network,omitempty"`

	histogram Histogram
}

// threads is how many the load generator runs on: as many as there are cores, so that with the server's the cores are never idle
// for want of load.
const threads = 2

// send sends the load to the server at the address, and meters the server. open, where it
// is not nil, is called when all is done and the connections are still there.
func (l Load) send(address string, d dialect, server meter, open func()) (r Result, err error) {
	steps, ok := operations[l.Op]
	if !ok {
		return r, fmt.Errorf("there is no operation %q", l.Op)
	}
	once := l.Op == "fill" || l.Op == "lock"
	pool := make([]byte, l.Size+1<<20)
	rand.Read(pool)
	workers := make([]*worker, min(threads, l.Conns))
	for i := range workers {
		w, err := newWorker(&l, d, steps, pool)
		if err != nil {
			return r, err
		}
		defer w.close()
		workers[i] = w
		w.once = once
		w.rate = l.Rate / float64(len(workers))
	}
	for i := range l.Conns {
		if err := workers[i%len(workers)].connect(address, i); err != nil {
			return r, fmt.Errorf("connection %d: %w", i, err)
		}
	}
	start := time.Now()
	from, to := start.Add(l.Warm), start.Add(l.Warm+l.For)
	if once {
		from, to = start, start.Add(24*time.Hour)
	}
	var running sync.WaitGroup
	var failed atomic.Bool
	errs := make([]error, len(workers))
	for i, w := range workers {
		w.failed = &failed
		running.Go(func() {
			if errs[i] = w.run(start, from, to); errs[i] != nil {
				failed.Store(true)
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	sleepUntil(from, ended)
	cost, client, begun := server(), ownCPU(), time.Now()
	sleepUntil(to, ended)
	used, clientCPU, took := cost(), ownCPU()-client, time.Since(begun)
	<-ended
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	for _, w := range workers {
		r.histogram.Merge(&w.histogram)
	}
	r.finish(took, used, clientCPU)
	if open != nil {
		open()
	}
	return r, nil
}

// prepare creates the sessions, and locks them where the load needs it.
func (l *Load) prepare(address string, d dialect) error {
	before := *l
	if l.Op == "poll" {
		l.first = 1 << 40 // sessions of its own, which stay locked
		before.first = l.first
	}
	before.Rate = 0
	before.Op = "fill"
	if _, err := before.send(address, d, nobody, nil); err != nil {
		return err
	}
	if l.Op != "poll" {
		return nil
	}
	before.Op = "lock"
	_, err := before.send(address, d, nobody, nil)
	time.Sleep(1100 * time.Millisecond) // aspstate lets requests wait for a lock that is younger than lockWait
	return err
}

// sleepUntil returns at that time, or when all has ended.
func sleepUntil(t time.Time, ended <-chan struct{}) {
	select {
	case <-ended:
	case <-time.After(time.Until(t)):
	}
}

// finish computes the figures from the histogram.
func (r *Result) finish(took time.Duration, used costs, client time.Duration) {
	h := &r.histogram
	r.Units = h.Count()
	r.PerSecond = float64(r.Units) / took.Seconds()
	r.P50, r.P99, r.P999, r.Max = h.Quantile(0.5), h.Quantile(0.99), h.Quantile(0.999), h.Quantile(1)
	r.Written, r.Flushes, r.Network = perUnit(used.written, r.Units), perUnit(used.flushes, r.Units), perUnit(used.network, r.Units)
	if r.Units > 0 {
		r.ServerCPU = used.server / time.Duration(r.Units)
		r.DatabaseCPU = used.database / time.Duration(r.Units)
		r.ClientCPU = client / time.Duration(r.Units)
	}
}

// median is the median of each figure.
func median(results []Result) (m Result) {
	if len(results) == 0 {
		return m
	}
	of := func(get func(r Result) float64) float64 {
		values := make([]float64, len(results))
		for i, r := range results {
			values[i] = get(r)
		}
		slices.Sort(values)
		n := len(values)
		return (values[(n-1)/2] + values[n/2]) / 2
	}
	duration := func(get func(r Result) time.Duration) time.Duration {
		return time.Duration(of(func(r Result) float64 { return float64(get(r)) }))
	}
	return Result{
		Units:     uint64(of(func(r Result) float64 { return float64(r.Units) })),
		PerSecond: of(func(r Result) float64 { return r.PerSecond }),
		P50:       duration(func(r Result) time.Duration { return r.P50 }),
		P99:       duration(func(r Result) time.Duration { return r.P99 }),
		P999:      duration(func(r Result) time.Duration { return r.P999 }),
		Max:       duration(func(r Result) time.Duration { return r.Max }),
		ServerCPU: duration(func(r Result) time.Duration { return r.ServerCPU }),
		ClientCPU: duration(func(r Result) time.Duration { return r.ClientCPU }),
		ServerRSS: int64(of(func(r Result) float64 { return float64(r.ServerRSS) })),

		DatabaseCPU: duration(func(r Result) time.Duration { return r.DatabaseCPU }),
		DatabaseRSS: int64(of(func(r Result) float64 { return float64(r.DatabaseRSS) })),
		Written:     of(func(r Result) float64 { return r.Written }),
		Flushes:     of(func(r Result) float64 { return r.Flushes }),
		Network:     of(func(r Result) float64 { return r.Network }),
	}
}

// ownCPU is the processor time of this process up to now.
func ownCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
