package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
)

// The capacity model: what a page cycle costs by the size of the item, as measured, times how many there are, at half of what the machines could do.

const (
	memoryStore   = "aspstate, memory"
	sqliteStore   = "aspstate, SQLite"
	postgresStore = "aspstate, PostgreSQL"
)

// What is assumed, and said on the page.
const (
	planned         = 0.5       // share of a processor's time, and of the disk's writing
	secondsPerPage  = 150       // between two pages of a session: ten pages in five minutes, then twenty until it has timed out
	inUse           = 0.25      // share of the sessions that get pages at a time, and that a database should have in memory
	connectionsAt   = 0.5       // seconds: connections for each page per second
	serverCores     = 8         // of a server
	databaseCores   = 32        // of the largest database
	databaseWritten = 500 << 20 // bytes per second that its disk takes
	databaseDisk    = 2 << 40   // bytes
	vacuumEvery     = 60        // seconds, in which replaced items stay on the disk
	outOfLine       = 2000      // bytes: larger items leave a dead one behind with every write
	logOnDisk       = 4 << 30   // bytes: max_wal_size as measured
	lanesOfServer   = 2         // connections, and so processes of the database, that work for a server
	largestForFit   = 64 << 10  // bytes
)

// line is a cost by size: base + perByte*size.
type line struct {
	base, perByte float64
	off           float64 // by how much it is off at most at the sizes that were measured, as a share
}

func (l line) at(size float64) float64 { return l.base + l.perByte*size }

// fit finds the line with the least squares of relative errors through points of size and cost. Neither part of it is negative.
func fit(points [][2]float64) (l line) {
	var n, x, xx, y, xy float64 // weighted by 1/cost²
	points = slices.DeleteFunc(slices.Clone(points), func(p [2]float64) bool { return p[1] <= 0 })
	for _, p := range points {
		w := 1 / (p[1] * p[1])
		n, x, xx, y, xy = n+w, x+w*p[0], xx+w*p[0]*p[0], y+w*p[1], xy+w*p[0]*p[1]
	}
	if len(points) == 0 {
		return l
	}
	if d := n*xx - x*x; d > 0 {
		l.base, l.perByte = (y*xx-x*xy)/d, (n*xy-x*y)/d
	} else {
		l.base = y / n
	}
	if l.perByte < 0 {
		l.base, l.perByte = y/n, 0
	}
	if l.base < 0 {
		l.base, l.perByte = 0, xy/xx
	}
	for _, p := range points {
		l.off = max(l.off, math.Abs(l.at(p[0])-p[1])/p[1])
	}
	return l
}

// prices are what a page cycle costs a store. Times are in seconds.
type prices struct {
	server, database        line // processor time
	network, written        line // bytes; the network's to the database included, the written ones as with the most sessions
	disk                    line // bytes of a session
	page                    line // seconds of a page at the peak, with the load generator on the same cores
	flushes                 float64
	halfLoad                float64 // processor time of a page at half the peak load with the most sessions, by that at the peak with few
	resident                float64 // bytes of the server, without database
	perSession, perConnects float64 // bytes of memory: a session of mode StateServer beyond its item; an idle connection
}

// sized are the figures with one load but for the size of the items.
func (r *Run) sized(store string) (list []Figure) {
	for _, f := range r.Figures {
		if l := f.Load; f.Group == "scale" && f.Name == store && l.Conns == 32 && l.Size <= largestForFit && l.Sessions == min(10_000, 256<<20/l.Size) {
			list = append(list, f)
		}
	}
	return list
}

// pricesOf finds a store's prices in a run.
func pricesOf(r *Run, store string) (p prices, ok bool) {
	figures := r.sized(store)
	of := func(get func(f Figure) float64) line {
		var points [][2]float64
		for _, f := range figures {
			points = append(points, [2]float64{float64(f.Load.Size), get(f)})
		}
		return fit(points)
	}
	p.server = of(func(f Figure) float64 { return (f.Median.ServerCPU - f.Median.DatabaseCPU).Seconds() })
	p.database = of(func(f Figure) float64 { return f.Median.DatabaseCPU.Seconds() })
	p.network = of(func(f Figure) float64 { return f.Median.Network })
	p.written = of(func(f Figure) float64 { return f.Median.Written })
	p.page = of(func(f Figure) float64 { return 1 / f.Median.PerSecond })
	p.disk = of(func(f Figure) float64 { return float64(f.Disk) / float64(f.Load.Sessions) })
	for _, f := range figures {
		if f.Load.Size == 1<<10 {
			p.flushes, p.resident = f.Median.Flushes, float64(f.Median.ServerRSS-f.Median.DatabaseRSS)
			p.written.base += max(0, r.most(store, false).Median.Written-f.Median.Written)
			p.halfLoad = max(1, float64(r.most(store, true).Median.ServerCPU)/float64(f.Median.ServerCPU))
		}
	}
	for _, f := range r.Figures {
		switch {
		case f.Group == "footprint" && f.Name == memoryStore:
			p.perSession = f.Value
		case f.Group == "footprint" && f.Name == "idle connection":
			p.perConnects = f.Value
		}
	}
	return p, len(figures) > 1
}

// most is the figure of the tail with the most sessions, at half the peak load or at the peak.
func (r *Run) most(store string, half bool) (found Figure) {
	for _, f := range r.Figures {
		if f.Group == "tail" && f.Name == store && f.Load.Rate > 0 == half && f.Load.Sessions >= found.Load.Sessions {
			found = f
		}
	}
	return found
}

// farm is what is asked for.
type farm struct {
	sessions, pages, size float64 // pages per second; bytes of an item
}

// needs are what it takes with PostgreSQL. Bytes per second, and bytes.
type needs struct {
	groups, servers, databaseCores             int // in all groups
	cores                                      float64
	connections                                float64
	memory, databaseMemory                     float64 // of each server, of all databases
	webNetwork, databaseNetwork, written, disk float64
	because                                    string // what made the number of groups
}

// plan computes what a farm needs. web are the prices of the memory store, whose network is that of the web servers alone.
func plan(f farm, p, web prices) (n needs) {
	n.cores = f.pages * p.server.at(f.size) * p.halfLoad / planned
	databases := f.pages * p.database.at(f.size) * p.halfLoad / planned
	n.connections = f.pages * connectionsAt
	n.written = f.pages * p.written.at(f.size)
	data := f.sessions * p.disk.at(f.size)
	n.disk = data
	if f.size > outOfLine {
		n.disk += f.pages * vacuumEvery * f.size
	}
	n.groups = 1
	for because, share := range map[string]float64{
		"processors": databases / databaseCores, "writing": n.written / (databaseWritten * planned), "disk": n.disk / databaseDisk,
	} {
		if g := int(math.Ceil(share)); g > n.groups || g == n.groups && g > 1 && because < n.because {
			n.groups, n.because = g, because
		}
	}
	n.disk += float64(n.groups) * logOnDisk
	n.databaseCores = max(2*n.groups, int(math.Ceil(databases)))
	// A server's two connections use two of the database's cores at most, and so half of that as planned.
	n.servers = max(2*n.groups, int(math.Ceil(n.cores/serverCores)), int(math.Ceil(databases/lanesOfServer)))
	n.memory = p.resident + n.connections/float64(n.servers)*p.perConnects
	n.databaseMemory = inUse * data
	n.webNetwork = f.pages * web.network.at(f.size)
	n.databaseNetwork = max(0, f.pages*p.network.at(f.size)-n.webNetwork)
	return n
}

// alone is how many pages per second one server does with a store that is its own: half of what was measured.
func alone(p prices, size float64) float64 { return planned / p.page.at(size) }

// runPlan prints what a farm needs.
func runPlan(args []string) error {
	flags := flag.NewFlagSet("plan", flag.ContinueOnError)
	var f farm
	flags.Float64Var(&f.sessions, "sessions", 100_000, "sessions that live at a time")
	flags.Float64Var(&f.pages, "pages", 0, fmt.Sprintf("pages per second; 0 is one in %d s for each session", secondsPerPage))
	flags.Float64Var(&f.size, "size", 7<<10, "`bytes` of an item")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || f.sessions < 1 || f.pages < 0 || f.size < 1 {
		return errors.New("plan: say how many sessions, of how many bytes, and name the file with the results")
	}
	r, err := readRun(flags.Arg(0))
	if err != nil {
		return err
	}
	p, measured := pricesOf(r, postgresStore)
	web, too := pricesOf(r, memoryStore)
	if !measured || !too {
		return errors.New("plan: the results do not have the group scale")
	}
	if f.pages == 0 {
		f.pages = f.sessions / secondsPerPage
	}
	for i, text := range farmRow(f, plan(f, p, web)) {
		fmt.Printf("%-18s%s\n", farmHead[i], text)
	}
	return nil
}
