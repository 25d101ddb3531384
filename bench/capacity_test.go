package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The costs of the run that is made up: on known lines by size, and by connections those that the simulation finds for these machines.
var known = map[string]machine{
	memoryStore:   {client: work{10e-6, 3e-6}, server: work{14e-6, 6e-6}, wait: 8e-6},
	sqliteStore:   {client: work{10e-6, 3e-6}, server: work{14e-6, 6e-6}, store: work{20e-6, 30e-6}, wait: 150e-6, lanes: 1},
	postgresStore: {client: work{10e-6, 3e-6}, server: work{20e-6, 8e-6}, store: work{30e-6, 60e-6}, wait: 200e-6, lanes: 2},
}

func microseconds(n float64) time.Duration { return time.Duration(n * 1000) }

func ofSeconds(s float64) time.Duration { return time.Duration(s * 1e9) }

// measuredFarm is a run in which a page with n KB costs 10 + n µs of the server, 20 + 2n µs of PostgreSQL, 1,000 + 4,096n bytes written, 500 + 2,048n on the
// network (twice that with a database) and 200 + 1,024n bytes of disk for a session; four fifths more processor time at half the load, and
// 700 more bytes written with many sessions.
func measuredFarm() *Run {
	r := &Run{Date: "2026-01-02", Machine: Machine{CPU: "one", Cores: 2}, Rounds: 1, Seconds: 1}
	random := rand.New(rand.NewPCG(7, 7))
	for _, store := range []string{memoryStore, sqliteStore, postgresStore} {
		m := known[store]
		m.cores, m.draw = 2, spread(0.2, random)
		sized := func(size int) Figure {
			n := float64(size) / 1024
			f := Figure{Group: "scale", Name: store, Load: Load{Op: "cycle", Conns: 32, Size: size, Sessions: min(10_000, 256<<20/size)}}
			f.Median = Result{PerSecond: 1e6 / (40 + 10*n), ServerCPU: microseconds(10 + n), Network: 500 + 2048*n, ServerRSS: 30 << 20}
			if store == postgresStore {
				f.Median.DatabaseCPU = microseconds(20 + 2*n)
				f.Median.ServerCPU += f.Median.DatabaseCPU
				f.Median.Network *= 2
				f.Median.ServerRSS, f.Median.DatabaseRSS = 430<<20, 400<<20
			}
			if store != memoryStore {
				f.Median.Written = 1000 + 4096*n
				f.Disk = int64((200 + 1024*n) * float64(f.Load.Sessions))
			}
			return f
		}
		for _, size := range []int{100, 1 << 10, 7 << 10, 64 << 10} {
			r.Figures = append(r.Figures, sized(size))
		}
		for _, half := range []bool{false, true} {
			f := sized(1 << 10)
			f.Group, f.Load.Sessions = "tail", 1_000_000
			f.Median.Written += 700
			if half {
				f.Load.Rate = 5000
				f.Median.ServerCPU = f.Median.ServerCPU * 9 / 5
			}
			r.Figures = append(r.Figures, f)
		}
		for _, conns := range []int{1, 4, 16, 64, 256} {
			f := Figure{Group: "scale", Name: store, Load: Load{Op: "cycle", Conns: conns, Size: 1 << 10, Sessions: 10_000}}
			f.Median = m.simulate(f.Load, 20_000, random)
			extra := 0.0
			if conns == 1 {
				extra = requests
			}
			f.Median.ClientCPU = ofSeconds(requests*m.client.busy + extra*m.client.extra)
			f.Median.ServerCPU = ofSeconds(requests*(m.server.busy+m.store.busy) + extra*(m.server.extra+m.store.extra))
			if store == postgresStore {
				f.Median.DatabaseCPU = ofSeconds(requests*m.store.busy + extra*m.store.extra)
			}
			r.Figures = append(r.Figures, f)
		}
		few := Figure{Group: "tail", Name: store, Load: Load{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: 1000, Rate: 4000}}
		few.Median = m.simulate(few.Load, 20_000, random)
		r.Figures = append(r.Figures, few)
	}
	r.Figures = append(r.Figures,
		Figure{Group: "footprint", Name: memoryStore, Value: 250, Unit: "bytes a session beyond ID and item"},
		Figure{Group: "footprint", Name: "idle connection", Value: 12_000, Unit: "bytes a connection"})
	return r
}

func TestFit(t *testing.T) {
	l := fit([][2]float64{{100, 1200}, {1000, 3000}, {50_000, 101_000}, {7, 0}})
	near(t, "base", l.base, 1000, 1e-9)
	near(t, "for each byte", l.perByte, 2, 1e-9)
	if l.off > 1e-9 {
		t.Errorf("a line is off by %v from points that are on it", l.off)
	}
	if l := fit([][2]float64{{1, 10}, {2, 8}, {3, 6}}); l.perByte != 0 || l.base < 6 || l.base > 10 || l.off < 0.1 {
		t.Errorf("what falls with the size is %+v", l)
	}
	if l := fit([][2]float64{{10, 1}, {100, 400}}); l.base != 0 || l.perByte <= 0 {
		t.Errorf("the cost of nothing is below zero: %+v", l)
	}
	if l := fit([][2]float64{{1, 10}, {1, 30}}); math.Abs(l.base-12) > 1e-9 { // as far from 10 as from 30 would be 20; relative to them it is 12
		t.Errorf("the middle of 10 and 30 is %v", l.base)
	}
	if l := fit(nil); l != (line{}) {
		t.Errorf("nothing costs %+v", l)
	}
}

func TestPlan(t *testing.T) {
	r := measuredFarm()
	web, ok := pricesOf(r, memoryStore)
	post, too := pricesOf(r, postgresStore)
	if !ok || !too {
		t.Fatal("there are no prices")
	}
	n := plan(farm{sessions: 150_000, pages: 10_000, size: 10 << 10}, post, web)
	for what, of := range map[string][2]float64{
		"cores":            {n.cores, 10_000 * 20e-6 * 1.8 / 0.5},
		"connections":      {n.connections, 5000},
		"web network":      {n.webNetwork, 10_000 * (500 + 20_480)},
		"database network": {n.databaseNetwork, 10_000 * (500 + 20_480)},
		"written":          {n.written, 10_000 * (1700 + 40_960)},
		"disk":             {n.disk, 150_000*(200+10_240) + 10_000*60*10_240 + 2*(4<<30)},
		"database memory":  {n.databaseMemory, 150_000 * (200 + 10_240) / 4},
		"memory":           {n.memory, 30<<20 + 5000.0/4*12_000},
	} {
		near(t, what, of[0], of[1], 0.001)
	}
	// 10,000 pages take 1.44 cores of PostgreSQL, and 427 MB/s of the 250 that are planned.
	if n.databaseCores != 4 || n.servers != 4 || n.groups != 2 || n.because != "writing" {
		t.Errorf("%d cores of the database, %d servers, %d groups because of %q; want 4, 4, 2, writing", n.databaseCores, n.servers, n.groups, n.because)
	}
	// Two of a database's cores for each server: 1.2 M pages of 1 KB with 22 µs * 1.8 take 95 cores.
	dry := post
	dry.written = line{}
	if n := plan(farm{sessions: 1e6, pages: 1.2e6, size: 1 << 10}, dry, web); n.servers != 48 || n.databaseCores != 96 {
		t.Errorf("%d servers for %d cores of the database, want 48 for 96", n.servers, n.databaseCores)
	}
	sessions, because := firstGroup(10<<10, post, web)
	if of := func(n float64) int { return plan(farm{n, n / secondsPerPage, 10 << 10}, post, web).groups }; of(sessions) != 1 || of(sessions*1.11) < 2 || because != "writing" {
		t.Errorf("one group is enough up to %v, because of %q; the groups are %d, then %d", sessions, because, of(sessions), of(sessions*1.11))
	}
}

// The costs that are taken from two points give the points between them, and the one at half the load.
func TestPredictionsOfAKnownMachine(t *testing.T) {
	r := measuredFarm()
	r.Figures = slices.DeleteFunc(r.Figures, func(f Figure) bool { return f.Group == "scale" && f.Load.Conns == 32 }) // they are on lines
	for _, store := range []string{memoryStore, sqliteStore, postgresStore} {
		list := predict(r, store)
		fitted, others := 0, 0
		for _, p := range list {
			if p.fitted {
				fitted++
			} else {
				others++
			}
			if math.Abs(p.throughputOff()) > 0.15 || math.Abs(p.p50Off()) > 0.2 || math.Abs(p.p99Off()) > 0.5 {
				t.Errorf("%s, %v: simulated %.0f/s %v %v, measured %.0f/s %v %v", store, p.figure.Load, p.simulated.PerSecond, p.simulated.P50, p.simulated.P99,
					p.figure.Median.PerSecond, p.figure.Median.P50, p.figure.Median.P99)
			}
		}
		if fitted != 2 || others < 4 {
			t.Errorf("%s: %d points were fitted and %d not", store, fitted, others)
		}
	}
}

func TestCapacityPage(t *testing.T) {
	r := measuredFarm()
	page := report(r)["capacity.md"]
	for _, text := range []string{"10.0 µs + 1.0 µs/KB", "20.0 µs + 2.0 µs/KB", "| 100,000,000 | 666,667 |", "IPartitionResolver", "hash % (uint)groups.Length",
		"1.80 (memory)", "1 (fitted)", "32, at 4,000/s", "One PostgreSQL is enough up to"} {
		if !strings.Contains(page, text) {
			t.Errorf("the page does not say %q", text)
		}
	}
	for _, text := range []string{"NaN", "Inf", "%!", "MISSING"} {
		if strings.Contains(page, text) {
			t.Errorf("the page says %q", text)
		}
	}
	if other := report(r)["capacity.md"]; other != page {
		t.Error("the page of the same results is another one the second time")
	}
	columns := 0
	for l := range strings.Lines(page) {
		n := strings.Count(l, "|")
		if columns > 0 && n > 0 && n != columns {
			t.Errorf("a row has %d columns, those above %d: %s", n-1, columns-1, l)
		}
		columns = n
	}
	if _, there := report(made())["capacity.md"]; there {
		t.Error("there is a page without figures by size")
	}
}

func TestBends(t *testing.T) {
	at := func(v float64) string { return fmt.Sprint(v) }
	up := series{points: [][2]float64{{1, 10}, {4, 50}, {16, 92}, {64, 100}, {256, 85}, {1000, 40}}}
	if got, want := throughputBend(up, true, 0.9, at), "the best, 100/s, is at 64. It rises to nine tenths of that at 16, and bends there. After 64 it falls below 90 %: it has 85 % at 256, and 40 % at 1000."; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	flat := series{points: [][2]float64{{1, 100}, {2, 96}, {3, 95}}}
	if got, want := throughputBend(flat, false, 0.9, at), "the best, 100/s, is at 1. It has 95 % of it at 3, and does not bend down."; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	for _, test := range []struct {
		mb   []float64
		want string
	}{
		{[]float64{20, 21, 30, 120}, "it does not bend"},
		{[]float64{20, 21, 120, 3000}, "it bends at 100000: one more session takes 1 KB before"},
		{[]float64{20, 21, 22, 23}, "it is flat"},
	} {
		var l series
		for i, mb := range test.mb {
			l.points = append(l.points, [2]float64{1000 * math.Pow(10, float64(i)), mb})
		}
		if got := memoryBend(l, "session", func(v float64) string { return fmt.Sprint(int(v)) }); !strings.HasPrefix(got, test.want) {
			t.Errorf("%v: %s, want %s", test.mb, got, test.want)
		}
	}
}

// A database whose log is not written back yet is as large as the log's last commits say.
func TestSizeOfSQLite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	if err := os.WriteFile(file, make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := sqliteSize(file); n != 8192 {
		t.Errorf("%d bytes without a log, want 8,192", n)
	}
	const page = 4096
	log := make([]byte, 32, 32+3*(24+page))
	binary.BigEndian.PutUint32(log[8:], page)
	for _, pages := range []uint32{0, 5, 0} {
		frame := make([]byte, 24+page)
		binary.BigEndian.PutUint32(frame[4:], pages)
		log = append(log, frame...)
	}
	if err := os.WriteFile(file+"-wal", log, 0o644); err != nil {
		t.Fatal(err)
	}
	if n := sqliteSize(file); n != 5*page {
		t.Errorf("%d bytes with a log, want %d", n, 5*page)
	}
}

// What a process writes is counted, and so is what goes over the loopback interface.
func TestMeter(t *testing.T) {
	self := func() []int { return []int{os.Getpid()} }
	begun := written(self)
	if _, there := begun[os.Getpid()]; !there {
		t.Skip("this system does not tell what a process writes")
	}
	cost := metered(noProcesses, self)()
	s := newCounter(t)
	l := Load{Op: "cycle", Conns: 2, Size: 20_000, Sessions: 20, For: 50 * time.Millisecond}
	if err := l.prepare(s.address, newASPDialect(l.Size)); err != nil {
		t.Fatal(err)
	}
	sent := int64(l.Sessions * l.Size)
	if c := cost(); c.network < sent || c.server != c.database {
		t.Errorf("%d bytes went over the network of at least %d; the server took %v, of which the database %v", c.network, sent, c.server, c.database)
	}
}
