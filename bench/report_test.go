package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// made is a run with the figures of one group, in which the memory store is at 95 % of the floor.
func made() *Run {
	l := Load{Op: "cycle", Conns: 32, Size: 1 << 10, Sessions: 10_000}
	figure := func(group, name string, l Load, perSecond float64) Figure {
		m := Result{Units: 1000, PerSecond: perSecond, P50: time.Millisecond, P99: 2 * time.Millisecond, P999: 3 * time.Millisecond, Max: 4 * time.Millisecond,
			ServerCPU: 12345, ClientCPU: 678, ServerRSS: 100 << 20}
		worse, better := m, m
		worse.PerSecond, better.PerSecond = perSecond*0.8, perSecond*1.1
		if name == "floor" {
			worse.PerSecond, better.PerSecond = perSecond, perSecond
		}
		return Figure{Group: group, Name: name, Load: l, Median: m, Rounds: []Result{worse, m, better}}
	}
	r := &Run{Date: "2026-01-02", Machine: Machine{CPU: "a <fast> one", Cores: 2}, Versions: []string{"aspstate x", "Redis y"}, Rounds: 3, Seconds: 2,
		Stolen: map[string]float64{"memory": 0.234, "footprint": 0.019},
		Figures: []Figure{
			figure("memory", "floor", l, 100_000), figure("memory", "aspstate, memory", l, 95_000), figure("memory", "Redis, in memory", l, 90_000),
			{Group: "footprint", Name: "aspstate, memory", Load: l, Value: 260, Unit: "bytes a session beyond ID and item"},
			{Group: "footprint", Name: "idle connection", Load: l, Value: 9000, Unit: "bytes a connection"},
		}}
	for _, sessions := range []int{1000, 10_000, 1_000_000} {
		l := l
		l.Sessions = sessions
		r.Figures = append(r.Figures, figure("scale", "aspstate, memory", l, 1e6/math.Log(float64(sessions))))
		l.Rate = 5000
		f := figure("tail", "aspstate, memory", l, 5000)
		f.Median.P99 = time.Duration(sessions/1000) * time.Microsecond
		r.Figures = append(r.Figures, f)
	}
	return r
}

func TestTargets(t *testing.T) {
	verdicts := map[string]string{}
	for _, target := range targets(made()) {
		verdicts[target.store+" / "+target.against] = target.verdict()
	}
	for what, want := range map[string]string{
		"memory / floor, 1 KB":           "reached",
		"memory / floor, 7 KB":           "not measured",
		"memory / Redis in memory, 1 KB": "missed",
		"memory, sessions of 1 KB / bytes beyond ID and item, per session":          "missed",
		"idle connection / bytes of memory":                                         "reached",
		"aspstate, memory / p99 at half the peak load, many sessions against 1,000": "missed",
	} {
		if verdicts[what] != want {
			t.Errorf("%s: %q, want %q", what, verdicts[what], want)
		}
	}
}

func TestReport(t *testing.T) {
	files := report(made())
	page := files["performance.md"]
	for _, text := range []string{"a <fast> one, 2 cores", "aspstate x; Redis y", "2026-01-02", "95,000", "| memory | floor, 1 KB | at least 0.90 | 0.95 (0.76 to 1.05) | reached |",
		"| 260 bytes a session", "12.3µs + 678ns", "100 MB",
		"took 23 % of the processors"} {
		if !strings.Contains(page, text) {
			t.Errorf("the page does not say %q", text)
		}
	}
	if n := strings.Count(page, "% of the processors"); n != 1 {
		t.Errorf("the page speaks of stolen time %d times, want once: of one group it is not worth mentioning", n)
	}
	for _, line := range strings.Split(page, "\n") {
		_, rest, ok := strings.Cut(line, "](")
		if name, _, _ := strings.Cut(rest, ")"); ok && files[name] == "" {
			t.Errorf("the page shows %s, which there is not", name)
		}
	}
	for name, text := range files {
		if !strings.HasSuffix(name, ".svg") {
			continue
		}
		shapes := 0
		decoder := xml.NewDecoder(strings.NewReader(text))
		for {
			token, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if e, ok := token.(xml.StartElement); ok && (e.Name.Local == "rect" || e.Name.Local == "polyline") {
				shapes++
			}
		}
		if shapes < 2 || strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("%s draws nothing, or what is not a number:\n%s", name, text)
		}
	}
}

func TestRunIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run.json")
	want := made()
	if err := writeRun(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := readRun(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back %+v\nwant %+v", got, want)
	}
}

func TestMedian(t *testing.T) {
	m := median([]Result{{PerSecond: 3, P99: 30}, {PerSecond: 1, P99: 50}, {PerSecond: 2, P99: 10}})
	if m.PerSecond != 2 || m.P99 != 30 {
		t.Errorf("the medians are %v and %v, want 2 and 30", m.PerSecond, m.P99)
	}
	if m := median([]Result{{PerSecond: 1}, {PerSecond: 4}}); m.PerSecond != 2.5 {
		t.Errorf("the median of 1 and 4 is %v", m.PerSecond)
	}
}

func TestTexts(t *testing.T) {
	for got, want := range map[string]string{
		bytesText(100): "100 B", bytesText(1 << 10): "1 KB", bytesText(1536): "1.5 KB", bytesText(10 << 20): "10 MB", bytesText(3 << 30): "3.0 GB", bytesText(2 << 40): "2 TB",
		countText(999): "999", countText(1_000_000): "1,000,000", short(1_234_567).String(): "1.23ms", figureText(0.954): "0.95", figureText(250): "250",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Figures of another version, machine or length are not mixed into a run.
func TestOnlyRunsAlikeAreMixed(t *testing.T) {
	if !made().alike(made()) {
		t.Error("a run is not like itself")
	}
	for name, change := range map[string]func(r *Run){
		"date":     func(r *Run) { r.Date = "2026-01-03" },
		"machine":  func(r *Run) { r.Machine.Cores = 8 },
		"versions": func(r *Run) { r.Versions[0] = "aspstate y" },
		"rounds":   func(r *Run) { r.Rounds++ },
		"seconds":  func(r *Run) { r.Seconds++ },
	} {
		other := made()
		if change(other); other.alike(made()) {
			t.Errorf("runs that differ in their %s are mixed", name)
		}
	}
}

// A part of a group that is run again leaves the figures of the other stores.
func TestPartOfAGroup(t *testing.T) {
	b := &bench{only: "scale,memory", of: "sqlite"}
	for f, want := range map[*Figure]bool{
		{Group: "scale", Name: "aspstate, SQLite"}:  true,
		{Group: "scale", Name: "aspstate, memory"}:  false,
		{Group: "tail", Name: "aspstate, SQLite"}:   false,
		{Group: "memory", Name: "aspstate, memory"}: true,
	} {
		if b.replaces(*f) != want {
			t.Errorf("%s, %s: replaced is %t", f.Group, f.Name, !want)
		}
	}
}
