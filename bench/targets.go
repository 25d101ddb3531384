package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// target is a row of what aspstate wants to reach.
type target struct {
	store, against string
	want           float64
	atMost         bool // or at least
	measured
}

type measured struct {
	got       float64 // 0 where it was not measured
	low, high float64 // of single rounds, where a round has a figure of its own
}

func (m measured) text() string {
	switch {
	case m.got == 0:
		return "-"
	case m.high == 0:
		return figureText(m.got)
	default:
		return fmt.Sprintf("%s (%s to %s)", figureText(m.got), figureText(m.low), figureText(m.high))
	}
}

func (t target) reached() bool { return t.got > 0 && (t.got >= t.want) != t.atMost || t.got == t.want }

func (t target) verdict() string {
	switch {
	case t.got == 0:
		return "not measured"
	case t.reached():
		return "reached"
	default:
		return "missed"
	}
}

func (t target) wanted() string {
	if t.atMost {
		return fmt.Sprintf("at most %s", figureText(t.want))
	}
	return fmt.Sprintf("at least %s", figureText(t.want))
}

// figureText is a ratio, or a number of bytes.
func figureText(v float64) string {
	if v >= 100 {
		return countText(int(v + 0.5))
	}
	return fmt.Sprintf("%.2f", v)
}

// find is the last figure of a contestant with a load like this, or one without anything.
func (r *Run) find(group, name, op string, size, conns int) (found Figure) {
	for _, f := range r.Figures {
		if f.Group == group && f.Name == name && f.Load.Op == op && f.Load.Size == size && f.Load.Conns == conns && f.Load.Rate == 0 {
			found = f
		}
	}
	return found
}

const kb = 1 << 10

// targets compares the run with what is wanted: ratios of medians, of contestants that were measured alternately.
func targets(r *Run) []target {
	ratio := func(group, op string, size, conns int, own, other string, otherOp string) (m measured) {
		a, b := r.find(group, own, op, size, conns), r.find(group, other, otherOp, size, conns)
		if b.Median.PerSecond == 0 {
			return m
		}
		m.got = a.Median.PerSecond / b.Median.PerSecond
		for i := range min(len(a.Rounds), len(b.Rounds)) {
			each := a.Rounds[i].PerSecond / b.Rounds[i].PerSecond
			if m.high = max(m.high, each); m.low == 0 || each < m.low {
				m.low = each
			}
		}
		return m
	}
	cycle := func(group string, size, conns int, own, other string) measured {
		return ratio(group, "cycle", size, conns, own, other, "cycle")
	}
	value := func(group, name string) (m measured) {
		for _, f := range r.Figures {
			if f.Group == group && f.Name == name && f.Unit != "" {
				m.got = f.Value
			}
		}
		return m
	}
	const (
		memory, sqlite, postgres = "aspstate, memory", "aspstate, SQLite", "aspstate, PostgreSQL"
		redis, always, naive     = "Redis, in memory", "Redis, appendfsync always", "naive PostgreSQL"
	)
	list := []target{
		{"memory", "floor, 1 KB", 0.90, false, cycle("memory", kb, 32, memory, "floor")},
		{"memory", "floor, 7 KB", 0.90, false, cycle("memory", 7*kb, 32, memory, "floor")},
		{"memory", "Redis in memory, 1 KB", 1.2, false, cycle("memory", kb, 32, memory, redis)},
		{"memory", "Redis in memory, 7 KB", 1.5, false, cycle("memory", 7*kb, 32, memory, redis)},
		{"SQLite, fsynced", "Redis appendfsync always, 1 KB", 2.0, false, cycle("durable", kb, 32, sqlite, always)},
		{"PostgreSQL, synchronous, 32 connections", "naive PostgreSQL, 1 KB", 2.0, false, cycle("durable", kb, 32, postgres, naive)},
		{"PostgreSQL, synchronous, 256 connections", "naive PostgreSQL, 1 KB", 3.5, false, cycle("durable", kb, 256, postgres, naive)},
		{"PostgreSQL, synchronous, 32 connections", "Redis appendfsync always, 1 KB", 1.2, false, cycle("durable", kb, 32, postgres, always)},
		{"PostgreSQL, read-only page", "naive single SELECT", 0.9, false, ratio("reading", "get", kb, 32, postgres, naive, "get")},
		{"PostgreSQL, HEAD", "naive single SELECT", 0.9, false, ratio("reading", "head", kb, 32, postgres, naive, "get")},
		{"memory, sessions of 1 KB", "bytes beyond ID and item, per session", 250, true, value("footprint", memory)},
		{"idle connection", "bytes of memory", 12 * kb, true, value("footprint", "idle connection")},
	}
	for _, store := range []string{memory, sqlite, postgres} {
		list = append(list, target{store, "p99 at half the peak load, many sessions against 1,000", 1.5, true, measured{got: r.tailRatio(store)}})
	}
	for _, setup := range []string{memory, sqlite, postgres, "aspstate, two on PostgreSQL"} {
		list = append(list, target{setup, "lock hand-over, times the ideal (eight pages of 40 ms)", 1.15, true, value("handover", setup)})
	}
	return list
}

// tailRatio is the p99 with the most sessions by that with the fewest, at the same rate.
func (r *Run) tailRatio(store string) float64 {
	var few, many Figure
	for _, f := range r.Figures {
		if f.Group == "tail" && f.Name == store && f.Load.Rate > 0 {
			if few.Load.Sessions == 0 || f.Load.Sessions < few.Load.Sessions {
				few = f
			}
			if f.Load.Sessions > many.Load.Sessions {
				many = f
			}
		}
	}
	if few.Median.P99 == 0 {
		return 0
	}
	return float64(many.Median.P99) / float64(few.Median.P99)
}

func printTargets(out io.Writer, list []target) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "STORE\tAGAINST\tWANTED\tMEASURED\t")
	for _, t := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.store, t.against, t.wanted(), t.text(), t.verdict())
	}
}
