package main

import (
	"fmt"
	"math"
	"sync"
	"time"

	"aspstate/server/stateserver/client"
)

// groups are the comparisons.
var groups = []struct {
	name, about string
	run         func(b *bench) error
}{
	{"memory", "page cycles in memory, against the floor and Redis", (*bench).memory},
	{"durable", "page cycles on disk, against Redis with appendfsync always and naive PostgreSQL", (*bench).durable},
	{"reading", "read-only pages, HEAD and polling", (*bench).reading},
	{"handover", "eight pages of one session at once", (*bench).handover},
	{"footprint", "memory for a session and for an idle connection", (*bench).footprint},
	{"tail", "p99 at half the peak load with many sessions and with few", (*bench).tail},
	{"scale", "sizes, connections and sessions", (*bench).scale},
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// many is how many sessions are many: a million, unless it has to be quick.
func (b *bench) many() int {
	if b.full {
		return 1_000_000
	}
	return 100_000
}

func (b *bench) memory() error {
	for _, size := range []int{1 << 10, 7 << 10} {
		floor, err := startFloor(size)
		if err != nil {
			return err
		}
		defer floor.stop()
		own, err := b.store("memory")
		if err != nil {
			return err
		}
		defer own.stop()
		other, err := startRedis(b.dir, false)
		if err != nil {
			return err
		}
		defer other.stop()
		l := Load{Op: "cycle", Conns: 32, Size: size, Sessions: 10_000}
		if err := b.alternate("memory", l, asp(floor), asp(own), redis(other)); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) durable() error {
	lite, err := b.store("sqlite")
	if err != nil {
		return err
	}
	defer lite.stop()
	post, err := b.store("postgres")
	if err != nil {
		return err
	}
	defer post.stop()
	other, err := startRedis(b.dir, true)
	if err != nil {
		return err
	}
	defer other.stop()
	naive := b.naive()
	for _, l := range []Load{
		{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: 10_000},
		{Op: "cycle", Conns: 32, Size: 7 << 10, Sessions: 10_000},
		{Op: "cycle", Conns: 256, Size: 1 << 10, Sessions: 10_000},
	} {
		if err := b.alternate("durable", l, asp(lite), asp(post), redis(other), naive); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) reading() error {
	var own []contestant
	for _, store := range []string{"memory", "sqlite", "postgres"} {
		s, err := b.store(store)
		if err != nil {
			return err
		}
		defer s.stop()
		own = append(own, asp(s))
	}
	other, err := startRedis(b.dir, false)
	if err != nil {
		return err
	}
	defer other.stop()
	floor, err := startFloor(1 << 10)
	if err != nil {
		return err
	}
	defer floor.stop()
	naive := b.naive()
	l := Load{Op: "get", Conns: 32, Size: 1 << 10, Sessions: 10_000}
	if err := b.alternate("reading", l, append(own, naive, redis(other), asp(floor))...); err != nil {
		return err
	}
	l.Op = "head"
	if err := b.alternate("reading", l, append(own, redis(other), asp(floor))...); err != nil {
		return err
	}
	l.Op = "poll"
	return b.alternate("reading", l, append(own, redis(other))...)
}

const (
	pages    = 8
	pageTime = 40 * time.Millisecond // with the lock
)

// handover sends eight page requests of one session at once, which hold its lock for 40 ms each, and tells how many times as long as
// 8 * 40 ms they take.
func (b *bench) handover() error {
	one := func(store string, more ...string) func() ([]*server, error) {
		return func() ([]*server, error) {
			s, err := b.store(store, more...)
			return []*server{s}, err
		}
	}
	for _, setup := range []struct {
		name  string
		start func() ([]*server, error)
	}{
		{"aspstate, memory", one("memory")},
		{"aspstate, SQLite", one("sqlite")},
		{"aspstate, PostgreSQL", one("postgres")},
		{"aspstate, two on PostgreSQL", func() ([]*server, error) {
			url := b.newDatabase()
			first, err := startAspstate(b.program, "first", url)
			if err != nil {
				return nil, err
			}
			second, err := startAspstate(b.program, "second", url)
			if err != nil {
				first.stop()
			}
			return []*server{first, second}, err
		}},
		{"as Microsoft's (lockWait 0)", one("memory", "--lock-wait", "0s")},
	} {
		servers, err := setup.start()
		if err != nil {
			return err
		}
		var values []Result
		for range max(b.Rounds, 3) {
			took, err := eightPages(servers)
			if err != nil {
				return fmt.Errorf("%s: %w", setup.name, err)
			}
			values = append(values, Result{P50: took})
		}
		for _, s := range servers {
			s.stop()
		}
		ideal := pages * pageTime
		b.note("handover", setup.name, Load{Op: "cycle", Conns: pages, Size: 1 << 10, Sessions: 1}, float64(median(values).P50)/float64(ideal), "times the ideal")
	}
	return nil
}

func eightPages(servers []*server) (time.Duration, error) {
	id := sessionID(uint64(time.Now().UnixNano()))
	target := client.Target("/LM/W3SVC/1/ROOT", string(id[:]))
	var conns [pages]*client.Conn
	for i := range conns {
		c, err := client.Dial(servers[i%len(servers)].address)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		conns[i] = c
	}
	if _, err := conns[0].Set(target, make([]byte, 1<<10), 20*time.Minute, 0); err != nil {
		return 0, err
	}
	var running sync.WaitGroup
	var errs [pages]error
	begun := time.Now()
	for i, c := range conns {
		running.Go(func() { errs[i] = page(c, target) })
	}
	running.Wait()
	took := time.Since(begun)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}

// page asks for the session as ASP.NET does: every 500 ms, but not within 250 ms of the last answer.
func page(c *client.Conn, target string) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		a, err := c.GetExclusive(target)
		if err != nil {
			return err
		}
		switch a.Status {
		case 200:
			time.Sleep(pageTime)
			if a, err = c.Set(target, a.Body, 20*time.Minute, a.LockCookie); err == nil && a.Status != 200 {
				err = fmt.Errorf("the write is answered %s", a.StatusLine)
			}
			return err
		case 423:
		default:
			return fmt.Errorf("the page is answered %s", a.StatusLine)
		}
		answered := time.Now()
		for <-tick.C; time.Since(answered) < 250*time.Millisecond; <-tick.C {
		}
	}
}

// footprint tells the memory for a session of 1 KB beyond its key and item, and for an idle connection that has served a page.
func (b *bench) footprint() error {
	l := Load{Op: "fill", Conns: 32, Size: 1 << 10, Sessions: b.many()}
	own, err := b.store("memory")
	if err != nil {
		return err
	}
	defer own.stop()
	err = own.collect()
	before := own.rss()
	if err == nil {
		_, err = l.send(own.address, newASPDialect(l.Size), nobody, nil)
	}
	if err == nil {
		err = own.collect()
	}
	if err != nil {
		return err
	}
	beyond := func(s *server) float64 {
		return float64(s.rss()-before)/float64(l.Sessions) - float64(l.Size+idLength)
	}
	b.note("footprint", own.name, l, beyond(own), "bytes a session beyond ID and item")
	own.stop()

	other, err := startRedis(b.dir, false)
	if err != nil {
		return err
	}
	defer other.stop()
	before = other.rss()
	if err := redis(other).fill(Load{Op: "cycle", Conns: l.Conns, Size: l.Size, Sessions: l.Sessions}); err != nil {
		return err
	}
	b.note("footprint", other.name, l, beyond(other), "bytes a session beyond ID and item")

	const conns = 9000
	fresh, err := b.store("memory")
	if err != nil {
		return err
	}
	defer fresh.stop()
	few := Load{Op: "cycle", Conns: conns, Size: 1 << 10, Sessions: conns, Warm: 0, For: 3 * time.Second}
	if err := asp(fresh).fill(few); err != nil {
		return err
	}
	if err := fresh.collect(); err != nil {
		return err
	}
	before = fresh.rss()
	_, err = few.send(fresh.address, newASPDialect(few.Size), nobody, func() {
		if err := fresh.collect(); err != nil {
			fmt.Println(err)
		}
		b.note("footprint", "idle connection", few, float64(fresh.rss()-before)/conns, "bytes a connection")
	})
	return err
}

// tail compares the p99 with many sessions and with few, at half of what the store can do with few.
func (b *bench) tail() error {
	for _, store := range b.stores() {
		var both []contestant
		var sessions []int
		for _, n := range []int{1000, b.many()} {
			s, err := b.store(store)
			if err != nil {
				return err
			}
			defer s.stop()
			c := asp(s)
			if err := c.fill(Load{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: n}); err != nil {
				return err
			}
			c.fill = nil
			both = append(both, c)
			sessions = append(sessions, n)
		}
		if store == "postgres" { // what the filling left behind is no part of the load
			b.postgres().Exec(&b.host, b.postgres().URL("postgres"), "CHECKPOINT")
		}
		of := func(i int) Load {
			return Load{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: sessions[i]}
		}
		if err := b.alternateLoads("tail", both, of); err != nil {
			return err
		}
		peak := b.Figures[len(b.Figures)-2].Median.PerSecond
		half := func(i int) Load {
			l := of(i)
			l.Rate = math.Round(peak / 2)
			return l
		}
		if err := b.alternateLoads("tail", both, half); err != nil {
			return err
		}
	}
	return nil
}

// scale shows how the cost grows.
func (b *bench) scale() error {
	base := Load{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: 10_000}
	sizes, conns, sessions := []int{100, 1 << 10, 7 << 10, 64 << 10, 1 << 20}, []int{1, 4, 16, 64, 256, 1000}, []int{1000, 10_000, 100_000}
	if b.full {
		sessions = append(sessions, 1_000_000)
	}
	for _, store := range b.stores() {
		run := func(l Load) error {
			s, err := b.store(store)
			if err != nil {
				return err
			}
			defer s.stop()
			return b.alternate("scale", l, asp(s))
		}
		for _, size := range sizes {
			l := base
			l.Size = size
			l.Sessions = min(l.Sessions, max(l.Conns, 256<<20/size))
			if err := run(l); err != nil {
				return err
			}
		}
		for _, n := range conns {
			l := base
			l.Conns = n
			if err := run(l); err != nil {
				return err
			}
		}
		for _, n := range sessions {
			l := base
			l.Sessions = n
			if err := run(l); err != nil {
				return err
			}
		}
	}
	return nil
}
