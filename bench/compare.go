package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"aspstate/backends/postgres/pgtest"
)

// Run is everything that one run of the comparisons has measured.
type Run struct {
	Date     string   `json:"date"`
	Machine  Machine  `json:"machine"`
	Versions []string `json:"versions"`
	Rounds   int      `json:"rounds"`
	Seconds  float64  `json:"seconds"` // of each round
	Figures  []Figure `json:"figures"`

	// Stolen is, by group, the part of the processors' time that a virtual machine's host gave to others.
	Stolen map[string]float64 `json:"stolen,omitempty"`
}

// Machine is where it ran.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	System string `json:"system"`
	Disk   string `json:"disk"`
}

// Figure is what one contestant did with one load, or a single number (Value) that was found otherwise.
type Figure struct {
	Group  string   `json:"group"` // the contestants of a group were measured alternately
	Name   string   `json:"name"`
	Load   Load     `json:"load"`
	Median Result   `json:"median"`
	Rounds []Result `json:"rounds,omitempty"`
	Disk   int64    `json:"disk,omitempty"` // bytes that the store's files grew by until the rounds began, without the log of writes
	Value  float64  `json:"value,omitempty"`
	Unit   string   `json:"unit,omitempty"`
}

// contestant is one of those that are compared.
type contestant struct {
	name string
	send func(l Load) (Result, error)
	fill func(l Load) error
	disk func() int64 // nil where nothing is on disk
}

// bench is a run under way.
type bench struct {
	Run
	program string // aspstate
	dir     string
	round   time.Duration
	only    string // groups that are run; "" is all
	of      string // stores that tail and scale are run for; "" is all
	full    bool
	out     string

	host      host
	database  *pgtest.Server
	databases int
}

func runCompare(args []string) error {
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	b := &bench{}
	flags.StringVar(&b.program, "aspstate", "../aspstate", "the built `program`")
	flags.StringVar(&b.out, "out", "results.json", "the `file` for the results; groups that are not run stay in it, if they were measured on the same day with the same versions, machine and rounds")
	flags.IntVar(&b.Rounds, "rounds", 3, "rounds; the figures are their medians")
	flags.DurationVar(&b.round, "round", 3*time.Second, "how long a round takes, besides half a second before")
	flags.BoolVar(&b.full, "full", false, "a million sessions, and all sizes and numbers of connections")
	flags.StringVar(&b.only, "only", "", "the `groups` to run, with commas between them: "+strings.Join(groupNames(), ", "))
	flags.StringVar(&b.of, "stores", "", "the `stores` to run tail and scale for: "+strings.Join(storeNames, ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	for name := range strings.SplitSeq(b.of, ",") {
		if name != "" && !slices.Contains(storeNames, name) {
			return fmt.Errorf("there is no store %q, only %s", name, strings.Join(storeNames, ", "))
		}
	}
	for name := range strings.SplitSeq(b.only, ",") {
		if name != "" && !slices.Contains(groupNames(), name) {
			return fmt.Errorf("there is no group %q, only %s", name, strings.Join(groupNames(), ", "))
		}
	}
	program, err := filepath.Abs(b.program)
	if err != nil {
		return err
	}
	b.program = program
	for _, needed := range []string{b.program, "redis-server"} {
		if _, err := exec.LookPath(needed); err != nil {
			return fmt.Errorf("%w; \"make bench\" builds aspstate and installs the rest", err)
		}
	}
	if b.dir, err = os.MkdirTemp("", "aspstate-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.host.close()
	b.describe()
	if old, err := readRun(b.out); err == nil && old.alike(&b.Run) {
		b.Figures = slices.DeleteFunc(old.Figures, b.replaces)
		b.Stolen = old.Stolen
	}
	if b.Stolen == nil {
		b.Stolen = map[string]float64{}
	}
	for _, g := range groups {
		if !b.runs(g.name) {
			continue
		}
		fmt.Printf("\n== %s: %s\n", g.name, g.about)
		begun, stolen := time.Now(), stolenTime()
		if err := g.run(b); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		took := time.Since(begun)
		b.Stolen[g.name] = float64(stolenTime()-stolen) / float64(took) / float64(runtime.NumCPU())
		fmt.Printf("   (%v, %.0f %% of the processors stolen)\n", took.Round(time.Second), 100*b.Stolen[g.name])
		if err := writeRun(b.out, &b.Run); err != nil {
			return err
		}
	}
	fmt.Println()
	printTargets(os.Stdout, targets(&b.Run))
	return nil
}

// alike reports whether the figures of two runs may stand side by side.
func (r *Run) alike(other *Run) bool {
	return r.Date == other.Date && r.Machine == other.Machine && slices.Equal(r.Versions, other.Versions) &&
		r.Rounds == other.Rounds && r.Seconds == other.Seconds
}

func (b *bench) runs(group string) bool {
	return b.only == "" || slices.Contains(strings.Split(b.only, ","), group)
}

var storeNames = []string{"memory", "sqlite", "postgres"}

// stores are those that tail and scale are run for.
func (b *bench) stores() []string {
	if b.of == "" {
		return storeNames
	}
	return strings.Split(b.of, ",")
}

// replaces reports whether the run measures this figure again.
func (b *bench) replaces(f Figure) bool {
	if f.Group != "tail" && f.Group != "scale" {
		return b.runs(f.Group)
	}
	titles := map[string]string{"memory": "aspstate, memory", "sqlite": "aspstate, SQLite", "postgres": "aspstate, PostgreSQL"}
	return b.runs(f.Group) && slices.ContainsFunc(b.stores(), func(store string) bool { return titles[store] == f.Name })
}

// describe notes where and what this is.
func (b *bench) describe() {
	b.Date = time.Now().UTC().Format("2006-01-02")
	b.Seconds = b.round.Seconds()
	b.Machine = Machine{
		CPU:    strings.TrimSpace(afterColon(output("grep", "-m1", "model name", "/proc/cpuinfo"))),
		Cores:  runtime.NumCPU(),
		Memory: strings.TrimSpace(afterColon(output("grep", "MemTotal", "/proc/meminfo"))),
		System: strings.TrimSpace(output("uname", "-sr")) + ", " + strings.Trim(afterEquals(output("grep", "^PRETTY_NAME", "/etc/os-release")), `"`),
		Disk:   output("df", "--output=fstype", b.dir),
	}
	b.Machine.Disk = lastWord(output("sh", "-c", "df --output=fstype '"+b.dir+"' | tail -n 1"))
	bin, _ := pgtest.Programs()
	b.Versions = []string{
		output(b.program, "version"), runtime.Version(),
		"Redis " + afterEquals(strings.Fields(output("redis-server", "--version") + " v=none none")[2]),
		output(filepath.Join(bin, "postgres"), "--version"),
	}
}

func afterColon(s string) string  { _, rest, _ := strings.Cut(s, ":"); return rest }
func afterEquals(s string) string { _, rest, _ := strings.Cut(s, "="); return rest }

func lastWord(s string) string {
	if words := strings.Fields(s); len(words) > 0 {
		return words[len(words)-1]
	}
	return ""
}

// postgres is the cluster that all comparisons share.
func (b *bench) postgres() *pgtest.Server {
	if b.database == nil {
		b.database = pgtest.New(&b.host, postgresSettings...)
	}
	return b.database
}

// newDatabase makes an empty database and returns its connection string.
func (b *bench) newDatabase() string {
	b.databases++
	name := fmt.Sprintf("bench%d", b.databases)
	b.postgres().Exec(&b.host, b.postgres().URL("postgres"), "CREATE DATABASE "+name)
	return b.postgres().URL(name)
}

func (b *bench) databaseProcesses() []int { return postgresProcesses(b.postgres().Port) }

// store starts aspstate with an empty store: memory, sqlite or postgres.
func (b *bench) store(name string, more ...string) (*server, error) {
	switch name {
	case "memory":
		return startAspstate(b.program, "aspstate, memory", "memory", more...)
	case "sqlite":
		dir, err := os.MkdirTemp(b.dir, "sqlite")
		if err != nil {
			return nil, err
		}
		file := filepath.Join(dir, "aspstate.db")
		s, err := startAspstate(b.program, "aspstate, SQLite", "sqlite:"+file, more...)
		if err == nil {
			s.disk = func() int64 { return sqliteSize(file) }
		}
		return s, err
	case "postgres":
		url := b.newDatabase()
		s, err := startAspstate(b.program, "aspstate, PostgreSQL", url, more...)
		if err == nil {
			s.others = b.databaseProcesses
			s.disk = func() int64 { return postgresSize(url) }
		}
		return s, err
	}
	return nil, errors.New("there is no store " + name)
}

// asp makes a contestant of a state server.
func asp(s *server) contestant {
	disk := func() int64 { return 0 }
	if s.disk != nil {
		empty := s.disk()
		disk = func() int64 { return s.disk() - empty }
	}
	return contestant{
		name: s.name,
		send: func(l Load) (Result, error) { return s.measured(l, newASPDialect(l.Size)) },
		fill: func(l Load) error { return l.prepare(s.address, newASPDialect(l.Size)) },
		disk: disk,
	}
}

// redis makes a contestant of a Redis.
func redis(s *server) contestant {
	return contestant{
		name: s.name,
		send: func(l Load) (Result, error) {
			d, err := newRedisDialect(s.address, l.Size)
			if err != nil {
				return Result{}, err
			}
			return s.measured(l, d)
		},
		fill: func(l Load) error {
			d, err := newRedisDialect(s.address, l.Size)
			if err != nil {
				return err
			}
			return l.prepare(s.address, d)
		},
	}
}

// naive makes a contestant of PostgreSQL itself.
func (b *bench) naive() contestant {
	url := b.newDatabase()
	return contestant{
		name: "naive PostgreSQL",
		send: func(l Load) (Result, error) { return l.sendNaive(url, metered(noProcesses, b.databaseProcesses)) },
		fill: func(l Load) error {
			l.Op = "fill"
			l.Conns = min(l.Conns, 32)
			_, err := l.sendNaive(url, nobody)
			return err
		},
	}
}

// alternate measures contestants with the same load: A B C A B C …, so that what slows the machine down for a while slows down
// all of them.
func (b *bench) alternate(group string, l Load, contestants ...contestant) error {
	return b.alternateLoads(group, contestants, func(int) Load { return l })
}

// alternateLoads is alternate with a load for each contestant.
func (b *bench) alternateLoads(group string, contestants []contestant, load func(i int) Load) error {
	rounds := make([][]Result, len(contestants))
	loads, disks := make([]Load, len(contestants)), make([]int64, len(contestants))
	for i, c := range contestants {
		loads[i] = load(i)
		loads[i].Warm, loads[i].For = 500*time.Millisecond, b.round
		if c.fill != nil {
			if err := c.fill(loads[i]); err != nil {
				return fmt.Errorf("%s: %v: create the sessions: %w", c.name, loads[i], err)
			}
		}
		if loads[i].Op == "poll" {
			loads[i].first = 1 << 40
		}
		if c.disk != nil {
			disks[i] = c.disk()
		}
	}
	for range b.Rounds {
		for i, c := range contestants {
			b.calm()
			r, err := c.send(loads[i])
			if err != nil {
				return fmt.Errorf("%s: %v: %w", c.name, loads[i], err)
			}
			rounds[i] = append(rounds[i], r)
		}
	}
	for i, c := range contestants {
		f := Figure{Group: group, Name: c.name, Load: loads[i], Median: median(rounds[i]), Rounds: rounds[i], Disk: disks[i]}
		b.Figures = append(b.Figures, f)
		fmt.Printf("%-28s %-50v %9.0f/s  p50 %-9v p99 %-9v p99.9 %-9v CPU %v + %v\n", f.Name, f.Load, f.Median.PerSecond,
			short(f.Median.P50), short(f.Median.P99), short(f.Median.P999), short(f.Median.ServerCPU), short(f.Median.ClientCPU))
	}
	return nil
}

// calm has the disk write what the last contestant has left, so that the next one does not pay for it, and waits until its flushes
// are quick again: ten seconds at most.
func (b *bench) calm() {
	syscall.Sync()
	f, err := os.OpenFile(filepath.Join(b.dir, "calm"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	block := make([]byte, 4096)
	for begun, quick := time.Now(), 0; quick < 10 && time.Since(begun) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		flushed := time.Now()
		f.WriteAt(block, 0)
		f.Sync()
		if quick++; time.Since(flushed) > 2*time.Millisecond {
			quick = 0
		}
	}
}

// note keeps a number.
func (b *bench) note(group, name string, l Load, value float64, unit string) {
	b.Figures = append(b.Figures, Figure{Group: group, Name: name, Load: l, Value: value, Unit: unit})
	fmt.Printf("%-28s %-50v %9.2f %s\n", name, l, value, unit)
}

// short is a duration with three digits.
func short(d time.Duration) time.Duration {
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
}
