package main

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// prediction is a point that was measured, and what the simulation makes of it.
type prediction struct {
	figure    Figure
	simulated Result
	fitted    bool // the costs were taken from this point
}

// off is by how much the simulation is off, as a share of what was measured.
func off(simulated, measured float64) float64 {
	if measured == 0 {
		return 0
	}
	return simulated/measured - 1
}

func (p prediction) throughputOff() float64 {
	return off(p.simulated.PerSecond, p.figure.Median.PerSecond)
}
func (p prediction) p50Off() float64 {
	return off(float64(p.simulated.P50), float64(p.figure.Median.P50))
}
func (p prediction) p99Off() float64 {
	return off(float64(p.simulated.P99), float64(p.figure.Median.P99))
}

// byConnections are the figures of scale with 1 KB and 10,000 sessions, one for each number of connections.
func (r *Run) byConnections(store string) (list []Figure) {
	seen := map[int]bool{}
	for _, f := range r.Figures {
		if l := f.Load; f.Group == "scale" && f.Name == store && l.Size == 1<<10 && l.Sessions == 10_000 && !seen[l.Conns] {
			seen[l.Conns] = true
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b Figure) int { return cmp.Compare(a.Load.Conns, b.Load.Conns) })
	return list
}

// alonePeak are the figures with one connection and with the most pages per second.
func (r *Run) alonePeak(store string) (alone, peak Figure) {
	for _, f := range r.byConnections(store) {
		if f.Load.Conns == 1 {
			alone = f
		}
		if f.Median.PerSecond > peak.Median.PerSecond {
			peak = f
		}
	}
	return alone, peak
}

// machineOf takes the simulation's costs from two points: one connection, where every core has to be woken and every batch has one request, and the peak,
// where neither is so. What is left of the time at one connection is waiting, for the disk above all. What SQLite costs is what the server needs beyond that
// with the memory store.
func machineOf(r *Run, store string, random *rand.Rand) (m machine, ok bool) {
	alone, peak := r.alonePeak(store)
	if alone.Median.PerSecond == 0 || peak.Load.Conns == 1 {
		return m, false
	}
	between := func(one, many float64) work {
		return work{busy: many / requests, extra: max(0, one-many) / requests}
	}
	a, p := alone.Median, peak.Median
	m = machine{cores: r.Machine.Cores, client: between(a.ClientCPU.Seconds(), p.ClientCPU.Seconds())}
	m.server = between((a.ServerCPU - a.DatabaseCPU).Seconds(), (p.ServerCPU - p.DatabaseCPU).Seconds())
	switch store {
	case sqliteStore:
		memory, ok := machineOf(r, memoryStore, random)
		if !ok {
			return m, false
		}
		m.lanes = 1
		m.store = work{busy: max(0, m.server.busy-memory.server.busy), extra: max(0, m.server.extra-memory.server.extra)}
		m.server = memory.server
	case postgresStore:
		m.lanes = lanesOfServer
		m.store = between(a.DatabaseCPU.Seconds(), p.DatabaseCPU.Seconds())
	}
	m.wait = max(0, a.P50.Seconds()-(a.ServerCPU+a.ClientCPU).Seconds()) / requests
	sigma := 0.0
	if a.P50 > 0 && a.P99 > a.P50 {
		const p99 = 2.326 // of the normal distribution
		sigma = min(1, math.Log(float64(a.P99)/float64(a.P50))/p99)
	}
	m.draw = spread(sigma, random)
	return m, true
}

// predict simulates the measured points of a store: by connections, and at half the peak load with few sessions.
func predict(r *Run, store string) (list []prediction) {
	random := rand.New(rand.NewPCG(1, 2)) // the same for everybody who makes the page again
	m, ok := machineOf(r, store, random)
	if !ok {
		return nil
	}
	alone, peak := r.alonePeak(store)
	figures := r.byConnections(store)
	var half Figure
	for _, f := range r.Figures {
		if f.Group == "tail" && f.Name == store && f.Load.Rate > 0 && (half.Load.Sessions == 0 || f.Load.Sessions < half.Load.Sessions) {
			half = f
		}
	}
	if half.Load.Sessions > 0 {
		figures = append(figures, half)
	}
	for _, f := range figures {
		list = append(list, prediction{figure: f, simulated: m.simulate(f.Load, 20_000+20*f.Load.Conns, random), fitted: f.Load == alone.Load || f.Load == peak.Load})
	}
	return list
}
