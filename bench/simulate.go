package main

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"time"
)

// A simulation of page cycles, event by event. Connections send requests, which take processor time of the client and of the server and then pass
// through the store. All share the machine's cores, and who waits for one gets it in random order: the schedulers of Linux and Go keep no other. It is there to see whether the costs that were measured
// explain the throughput and the latencies that were measured.

// machine is what the simulation knows: times in seconds, each for one request, of which a page cycle has two.
type machine struct {
	cores          int
	client, server work
	store          work    // on a core, for each request of a batch
	wait           float64 // off the cores: for a batch until it is on disk; without lanes for each request
	lanes          int     // each runs what has queued up as one batch, then the next; the requests of a page take turns. 0 has no batches
	draw           func(mean float64) float64
}

// work is processor time.
type work struct {
	busy  float64
	extra float64 // for a request that finds a core asleep; in a store, for each batch
}

// spread draws times whose logarithm has this standard deviation.
func spread(sigma float64, random *rand.Rand) func(float64) float64 {
	return func(mean float64) float64 { return mean * math.Exp(sigma*random.NormFloat64()-sigma*sigma/2) }
}

const requests = 2 // of a page cycle: GetExclusive and Set

type event struct {
	at   float64
	then func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	*e = (*e)[:last]
	return x
}

// simulation is one under way.
type simulation struct {
	machine
	load   Load
	random *rand.Rand

	now    float64
	events events
	idle   int   // cores
	ready  []job // wait for a core
	queues []lane
	due    []float64 // pages that wait for a connection, where there is a rate
	free   int       // connections

	ended, skip, pages int
	from               float64
	histogram          Histogram
}

type job struct {
	takes float64
	then  func()
}

type lane struct {
	queue []*cycle
	busy  bool
}

// cycle is a page under way.
type cycle struct {
	begun float64
	step  int
}

// simulate sends pages over the load's connections, each anew when it has ended, or at the load's rate, and tells what the load generator would.
// The first tenth is not counted.
func (m machine) simulate(l Load, pages int, random *rand.Rand) Result {
	s := &simulation{machine: m, load: l, random: random, idle: m.cores, queues: make([]lane, m.lanes), pages: pages, skip: pages / 10}
	if l.Rate > 0 {
		s.free = l.Conns
		s.after(s.untilNext(), s.arrive)
	} else {
		for range l.Conns {
			s.begin(0)
		}
	}
	for s.ended < s.pages {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.then()
	}
	h := &s.histogram
	return Result{Units: h.Count(), PerSecond: float64(h.Count()) / (s.now - s.from), P50: h.Quantile(0.5), P99: h.Quantile(0.99), histogram: *h}
}

func (s *simulation) after(seconds float64, then func()) {
	heap.Push(&s.events, event{s.now + seconds, then})
}

func (s *simulation) untilNext() float64 { return s.random.ExpFloat64() / s.load.Rate }

// arrive is a page that is due. It waits where no connection is free.
func (s *simulation) arrive() {
	s.after(s.untilNext(), s.arrive)
	if s.free == 0 {
		s.due = append(s.due, s.now)
		return
	}
	s.free--
	s.begin(s.now)
}

func (s *simulation) begin(at float64) { s.ask(&cycle{begun: at}) }

func (s *simulation) ask(c *cycle) {
	s.request(s.client, func() {
		s.request(s.server, func() { s.keep(c) })
	})
}

// request is work that one request has; a core that sleeps has to be woken for it.
func (s *simulation) request(w work, then func()) {
	takes := w.busy
	if s.idle > 0 {
		takes += w.extra
	}
	s.compute(s.draw(takes), then)
}

// compute occupies a core.
func (s *simulation) compute(takes float64, then func()) {
	if s.idle == 0 {
		s.ready = append(s.ready, job{takes, then})
		return
	}
	s.idle--
	s.run(job{takes, then})
}

func (s *simulation) run(j job) {
	s.after(j.takes, func() {
		if len(s.ready) == 0 {
			s.idle++
		} else {
			i, last := s.random.IntN(len(s.ready)), len(s.ready)-1
			next := s.ready[i]
			s.ready[i] = s.ready[last]
			s.ready = s.ready[:last]
			s.run(next)
		}
		j.then()
	})
}

// keep takes a request to the store.
func (s *simulation) keep(c *cycle) {
	if s.lanes == 0 {
		s.after(s.draw(s.wait), func() { s.answer(c) })
		return
	}
	l := &s.queues[c.step%s.lanes]
	l.queue = append(l.queue, c)
	if !l.busy {
		s.batch(l)
	}
}

// batch runs what has queued up.
func (s *simulation) batch(l *lane) {
	l.busy = true
	all := l.queue
	l.queue = nil
	s.compute(s.draw(s.store.extra+s.store.busy*float64(len(all))), func() {
		s.after(s.draw(s.wait), func() {
			l.busy = false
			if len(l.queue) > 0 {
				s.batch(l)
			}
			for _, c := range all {
				s.answer(c)
			}
		})
	})
}

func (s *simulation) answer(c *cycle) {
	if c.step++; c.step < requests {
		s.ask(c)
		return
	}
	if s.ended++; s.ended == s.skip {
		s.from = s.now
	} else if s.ended > s.skip {
		s.histogram.Add(time.Duration((s.now - c.begun) * 1e9))
	}
	switch {
	case s.load.Rate == 0:
		s.begin(s.now)
	case len(s.due) > 0:
		s.begin(s.due[0])
		s.due = s.due[1:]
	default:
		s.free++
	}
}

// erlangC is the share of arrivals that find all cores busy, where load is arrivals times mean service time (M/M/c).
func erlangC(cores int, load float64) float64 {
	term, sum := 1.0, 0.0
	for k := range cores {
		sum += term
		term *= load / float64(k+1)
	}
	term /= 1 - load/float64(cores)
	return term / (sum + term)
}
