package main

import (
	"math"
	"math/rand/v2"
	"testing"
)

func exponential(random *rand.Rand) func(float64) float64 {
	return func(mean float64) float64 { return mean * random.ExpFloat64() }
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.Abs(got-want) > within*math.Abs(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func mean(h *Histogram) (sum float64) {
	const parts = 2000
	for i := range parts {
		sum += h.Quantile((float64(i)+0.5)/parts).Seconds() / parts
	}
	return sum
}

// Closed: N customers who think, then are served by one of c servers (machine repair). Throughput by the balance equations.
func TestSimulationOfAClosedQueue(t *testing.T) {
	const think, service = 0.010, 0.004
	for _, test := range []struct{ customers, cores int }{{1, 1}, {3, 1}, {5, 2}, {12, 3}, {40, 4}} {
		random := rand.New(rand.NewPCG(1, uint64(test.customers)))
		m := machine{cores: test.cores, server: work{busy: service}, wait: think, draw: exponential(random)}
		got := m.simulate(Load{Conns: test.customers}, 60_000, random)

		p, sum, busy := 1.0, 0.0, 0.0
		for n := range test.customers + 1 { // at the servers
			serving := float64(min(n, test.cores))
			sum += p
			busy += p * serving
			p *= float64(test.customers-n) / think * service / float64(min(n+1, test.cores))
		}
		near(t, "pages per second", got.PerSecond, busy/sum/service/requests, 0.02)
	}
}

// Open: M/M/c with feedback. The visits of a page are independent (Jackson), so that its mean number in the system is that of an M/M/c with twice
// the rate; with Little's law this gives the mean time.
func TestSimulationOfAnOpenQueue(t *testing.T) {
	const service = 0.001
	for _, test := range []struct {
		cores int
		used  float64
	}{{1, 0.5}, {2, 0.5}, {2, 0.8}, {8, 0.9}} {
		random := rand.New(rand.NewPCG(2, uint64(test.cores)))
		m := machine{cores: test.cores, server: work{busy: service}, draw: exponential(random)}
		l := Load{Conns: 100_000, Rate: test.used * float64(test.cores) / service / requests}
		s := m.simulate(l, 200_000, random)
		visit := service + erlangC(test.cores, test.used*float64(test.cores))*service/(float64(test.cores)*(1-test.used))
		near(t, "pages per second", s.PerSecond, l.Rate, 0.02)
		if test.cores == 1 && test.used == 0.5 {
			near(t, "Erlang C of one core is its load", erlangC(1, 0.5), 0.5, 1e-12)
		}
		near(t, "mean time of a page", mean(&s.histogram), requests*visit, 0.06)
	}
}

// With the store's time alone, a lane that writes everything that queued up: a request waits for the batch that is under way, then for its own, unless
// it is alone.
func TestSimulationOfGroupCommit(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	exactly := func(mean float64) float64 { return mean }
	for conns, batches := range map[int]float64{1: 1, 8: 2, 500: 2} {
		m := machine{cores: 2, wait: 0.002, lanes: 1, draw: exactly}
		r := m.simulate(Load{Conns: conns}, 200*conns, random)
		near(t, "pages per second", r.PerSecond, float64(conns)/(requests*batches*m.wait), 0.02)
		near(t, "p50", r.P50.Seconds(), requests*batches*m.wait, 0.01)
	}
	m := machine{cores: 2, store: work{busy: 0.001, extra: 0.003}, lanes: 1, draw: exactly} // batches of one and of three take turns
	r := m.simulate(Load{Conns: 4}, 4000, random)
	near(t, "pages per second where a batch costs 3 ms and a request 1 ms", r.PerSecond, 4/(requests*(0.004+0.006)), 0.02)
}

// Who finds a core asleep wakes it; who has to queue does not.
func TestSimulationWakes(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 4))
	m := machine{cores: 1, server: work{busy: 0.001, extra: 0.002}, draw: func(mean float64) float64 { return mean }}
	near(t, "alone", m.simulate(Load{Conns: 1}, 1000, random).P50.Seconds(), requests*0.003, 0.01)
	near(t, "in a crowd", m.simulate(Load{Conns: 50}, 1000, random).PerSecond, 1/(requests*0.001), 0.01)
}

func TestSpreadKeepsTheMean(t *testing.T) {
	draw := spread(0.5, rand.New(rand.NewPCG(5, 5)))
	sum, logs := 0.0, 0.0
	const n = 200_000
	for range n {
		v := draw(3)
		sum += v
		logs += math.Pow(math.Log(v/3)+0.125, 2)
	}
	near(t, "mean", sum/n, 3, 0.01)
	near(t, "deviation of the logarithm", math.Sqrt(logs/n), 0.5, 0.02)
}
