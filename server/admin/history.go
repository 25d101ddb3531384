package admin

import (
	"context"
	"net/http"
	"sync"
	"time"

	"aspstate/server"
)

// Point is what happened in one interval. Rates are per second.
type Point struct {
	Time       time.Time          `json:"time"`
	Requests   float64            `json:"requests"`
	Locked     float64            `json:"locked"`
	NotFound   float64            `json:"not_found"`
	Bad        float64            `json:"bad"`
	Unanswered float64            `json:"unanswered"`
	Operations map[string]float64 `json:"operations"`

	P50 *float64 `json:"p50_seconds"`
	P95 *float64 `json:"p95_seconds"`
	P99 *float64 `json:"p99_seconds"`

	StoreP95    *float64 `json:"store_p95_seconds"`
	StoreErrors float64  `json:"store_errors"`

	LockWaits     float64  `json:"lock_waits"`
	LockHandovers float64  `json:"lock_handovers"`
	LockWaitP95   *float64 `json:"lock_wait_p95_seconds"`
	Waiters       int      `json:"waiters"`

	Connections    int     `json:"connections"`
	Sessions       *int    `json:"sessions"`
	LockedSessions *int    `json:"locked_sessions"`
	Bytes          *int64  `json:"bytes"`
	ReceivedBytes  float64 `json:"received_bytes"`
	SentBytes      float64 `json:"sent_bytes"`
}

const (
	historyEvery  = 5 * time.Second
	historyPoints = 180 // 15 minutes
)

// history keeps the last points.
type history struct {
	mu     sync.Mutex
	points []Point
}

// run adds a point at intervals until ctx ends.
func (h *history) run(ctx context.Context, p parts) {
	tick := time.NewTicker(historyEvery)
	defer tick.Stop()
	before := p.count()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := p.count()
		h.add(now.since(before))
		before = now
	}
}

func (h *history) add(p Point) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.points) == historyPoints {
		h.points = append(h.points[:0], h.points[1:]...)
	}
	h.points = append(h.points, p)
}

// since returns the points later than after.
func (h *history) since(after time.Time) []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	points := []Point{}
	for _, p := range h.points {
		if p.Time.After(after) {
			points = append(points, p)
		}
	}
	return points
}

// last is the last point, nil if there is none yet.
func (h *history) last() *Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.points) == 0 {
		return nil
	}
	p := h.points[len(h.points)-1]
	return &p
}

// History is the answer of GET /api/history.
type History struct {
	Interval float64 `json:"interval_seconds"`
	Points   []Point `json:"points"`
}

func (s *Server) showHistory(_ context.Context, r *http.Request) (any, error) {
	var after time.Time
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return nil, badRequest("after is not a time such as 2026-11-22T16:00:00Z: %q", text)
		}
	}
	return History{historyEvery.Seconds(), s.history.since(after)}, nil
}

// counts are the counters at one moment, and the gauges.
type counts struct {
	at                time.Time
	requests          [server.Operations][server.Answers]uint64
	latency           []uint64 // by bucket
	waits, statements []uint64
	handovers         uint64
	storeErrors       uint64
	received, sent    uint64
	gauges            Point
}

func (p *parts) count() (c counts) {
	m := p.sessions.Metrics
	c.at = time.Now()
	for p := range m.Requests {
		for op := range m.Requests[p] {
			for a := range m.Requests[p][op] {
				c.requests[op][a] += m.Requests[p][op][a].Load()
			}
		}
	}
	c.latency, c.waits, c.statements = sum(m.Latency[server.StateServer][:], m.Latency[server.TDS][:]), sum(m.LockWait[:]), sum(m.Statements[:server.RequestStatements])
	for _, n := range m.LockWait[server.WaitHandedOver].Counts() {
		c.handovers += n
	}
	for i := range m.StatementErrors {
		c.storeErrors += m.StatementErrors[i].Load()
	}
	c.received, c.sent = p.front.Traffic().Received.Load(), p.front.Traffic().Sent.Load()
	c.gauges = Point{Waiters: p.sessions.Waiting(), Connections: p.front.Connections()}
	if sample := p.sampler.Latest(); !sample.At.IsZero() {
		total := sample.Total()
		c.gauges.Sessions, c.gauges.LockedSessions, c.gauges.Bytes = &total.Sessions, &total.Locked, &total.Bytes
	}
	return c
}

// sum adds histograms of the same buckets up. They are read where they are: they are counting.
func sum(groups ...[]server.Histogram) []uint64 {
	total := make([]uint64, len(groups[0][0].Bounds())+1)
	for _, group := range groups {
		for i := range group {
			for b, n := range group[i].Counts() {
				total[b] += n
			}
		}
	}
	return total
}

// since is what happened since the earlier counts.
func (c *counts) since(before counts) Point {
	p := c.gauges
	p.Time = c.at.UTC()
	seconds := c.at.Sub(before.at).Seconds()
	rate := func(now, then uint64) float64 { return float64(now-then) / seconds }
	p.Operations = map[string]float64{}
	var answers [server.Answers]float64
	for op := range c.requests {
		name := server.Operation(op).String()
		for a := range c.requests[op] {
			r := rate(c.requests[op][a], before.requests[op][a])
			answers[a] += r
			p.Requests += r
			p.Operations[name] += r
		}
	}
	p.Locked, p.NotFound, p.Bad, p.Unanswered = answers[server.AnswerLocked], answers[server.AnswerNotFound], answers[server.AnswerBad], answers[server.AnswerNone]
	latency, waits, statements := less(c.latency, before.latency), less(c.waits, before.waits), less(c.statements, before.statements)
	p.P50, p.P95, p.P99 = quantile(latency, 0.5), quantile(latency, 0.95), quantile(latency, 0.99)
	p.StoreP95, p.LockWaitP95 = quantile(statements, 0.95), quantile(waits, 0.95)
	p.StoreErrors = rate(c.storeErrors, before.storeErrors)
	for _, n := range waits {
		p.LockWaits += float64(n) / seconds
	}
	p.LockHandovers = rate(c.handovers, before.handovers)
	p.ReceivedBytes, p.SentBytes = rate(c.received, before.received), rate(c.sent, before.sent)
	return p
}

func less(now, then []uint64) []uint64 {
	d := make([]uint64, len(now))
	for i := range now {
		d[i] = now[i] - then[i]
	}
	return d
}

// quantile estimates a quantile of durations, in seconds, as Prometheus does: values are taken to be spread evenly over their bucket, and what
// is beyond the last bound is taken for it. It is nil where there are no values.
func quantile(buckets []uint64, q float64) *float64 {
	var all uint64
	for _, n := range buckets {
		all += n
	}
	if all == 0 {
		return nil
	}
	bounds := server.DurationBounds()
	rank, below := q*float64(all), 0.0
	for i, n := range buckets {
		if i == len(bounds) {
			break
		}
		if below+float64(n) >= rank && n > 0 {
			low := 0.0
			if i > 0 {
				low = float64(bounds[i-1])
			}
			v := (low + (float64(bounds[i])-low)*(rank-below)/float64(n)) / 1e9
			return &v
		}
		below += float64(n)
	}
	most := float64(bounds[len(bounds)-1]) / 1e9
	return &most
}
