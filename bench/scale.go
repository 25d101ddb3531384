package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// scaleChart is a chart of how something grows, and what it says in words.
type scaleChart struct {
	file, svg string
	title     string
	bends     []string // a sentence for each store
}

// scaleCharts draws throughput, memory and p99 over sizes, connections and sessions.
func scaleCharts(figures []Figure) (charts []scaleChart) {
	base := Load{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: 10_000}
	count := func(v float64) string { return countText(int(v)) }
	for _, axis := range []struct {
		name, one string
		rises     bool    // before it falls
		enough    float64 // of the best throughput: below that it has bent down
		of        func(l Load) int
		on        func(l Load) bool
		text      func(v float64) string
	}{
		{"size", "byte", false, 0.5, func(l Load) int { return l.Size }, func(l Load) bool { return l.Conns == base.Conns && (l.Sessions == base.Sessions || l.Size > 1<<10) },
			func(v float64) string { return bytesText(int(v)) }},
		{"connections", "connection", true, 0.9, func(l Load) int { return l.Conns }, func(l Load) bool { return l.Size == base.Size && l.Sessions == base.Sessions }, count},
		{"sessions", "session", false, 0.9, func(l Load) int { return l.Sessions }, func(l Load) bool { return l.Size == base.Size && l.Conns == base.Conns }, count},
	} {
		at := func(v float64) string { return axis.text(v) + strings.TrimPrefix(" "+axis.name, " size") }
		for _, measure := range []struct {
			name, unit string
			of         func(r Result) float64
			bend       func(line series) string // nil where nothing is said
		}{
			{"throughput", "page cycles per second", func(r Result) float64 { return r.PerSecond },
				func(line series) string { return throughputBend(line, axis.rises, axis.enough, at) }},
			{"memory", "MB of memory, without the database", func(r Result) float64 { return float64(r.ServerRSS-r.DatabaseRSS) / (1 << 20) },
				func(line series) string { return memoryBend(line, axis.one, at) }},
			{"p99", "p99 in µs", func(r Result) float64 { return float64(r.P99) / float64(time.Microsecond) }, nil},
		} {
			chart := scaleChart{file: "performance-" + axis.name + "-" + measure.name + ".svg", title: fmt.Sprintf("%s by %s", measure.unit, axis.name)}
			var on []Figure
			for _, f := range figures {
				if axis.on(f.Load) {
					on = append(on, f)
				}
			}
			lines := linesOf(on, func(f Figure) [2]float64 { return [2]float64{float64(axis.of(f.Load)), measure.of(f.Median)} })
			for _, line := range lines {
				if measure.bend != nil && len(line.points) > 1 && (axis.name != "size" || measure.name != "memory") {
					chart.bends = append(chart.bends, line.name+": "+measure.bend(line))
				}
			}
			chart.svg = lineChart(chart.title, axis.name, measure.unit, lines, axis.text)
			charts = append(charts, chart)
		}
	}
	return charts
}

// linesOf makes a line for each name, sorted by x. Where an x comes more than once, the last counts.
func linesOf(figures []Figure, point func(f Figure) [2]float64) (lines []series) {
	byName := map[string]map[float64]float64{}
	for _, f := range figures {
		if byName[f.Name] == nil {
			byName[f.Name] = map[float64]float64{}
		}
		p := point(f)
		byName[f.Name][p[0]] = p[1]
	}
	for name, points := range byName {
		line := series{name: name}
		for x, y := range points {
			line.points = append(line.points, [2]float64{x, y})
		}
		slices.SortFunc(line.points, func(a, b [2]float64) int { return cmp.Compare(a[0], b[0]) })
		lines = append(lines, line)
	}
	slices.SortFunc(lines, func(a, b series) int { return strings.Compare(a.name, b.name) })
	return lines
}

// throughputBend says from where on a line has nine tenths of its best, where it rises, and up to where it has the share enough of it.
func throughputBend(line series, rises bool, enough float64, at func(float64) string) string {
	points := line.points
	best := slices.MaxFunc(points, func(a, b [2]float64) int { return cmp.Compare(a[1], b[1]) })
	text := fmt.Sprintf("the best, %s/s, is at %s.", countText(int(best[1]+0.5)), at(best[0]))
	if rises {
		first := slices.IndexFunc(points, func(p [2]float64) bool { return p[1] >= 0.9*best[1] })
		text += fmt.Sprintf(" It rises to nine tenths of that at %s, and bends there.", at(points[first][0]))
	}
	end := len(points) - 1
	last := end
	for points[last][1] < enough*best[1] {
		last--
	}
	if last == end {
		return text + fmt.Sprintf(" It has %.0f %% of it at %s, and does not bend down.", 100*points[end][1]/best[1], at(points[end][0]))
	}
	text += fmt.Sprintf(" After %s it falls below %.0f %%: it has %.0f %% at %s", at(points[last][0]), 100*enough, 100*points[last+1][1]/best[1], at(points[last+1][0]))
	if last+1 < end {
		text += fmt.Sprintf(", and %.0f %% at %s", 100*points[end][1]/best[1], at(points[end][0]))
	}
	return text + "."
}

// memoryBend says what one more costs, and from where on it costs half as much again as before. Steps of less than 8 MB say nothing: the
// garbage collector's rhythm is larger. y is in MB.
func memoryBend(line series, one string, at func(float64) string) string {
	const tells, bends = 8, 1.5
	from := line.points[0]
	var before float64 // MB for one more
	for i, p := range line.points[1:] {
		if p[1]-from[1] < tells {
			continue
		}
		step := (p[1] - from[1]) / (p[0] - from[0])
		if before > 0 && step > bends*before {
			return fmt.Sprintf("it bends at %s: one more %s takes %s before, and %s after.", at(from[0]), one, mbText(before), mbText(step))
		}
		before, from = step, line.points[i+1]
	}
	if before == 0 {
		return fmt.Sprintf("it is flat, within %d MB.", tells)
	}
	return fmt.Sprintf("it does not bend: one more %s takes %s at the end, and no step takes half as much again as the one before.", one, mbText(before))
}

func mbText(mb float64) string { return bytesText(int(mb * (1 << 20))) }
