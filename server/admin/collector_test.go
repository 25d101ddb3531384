package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"aspstate/backends"
	"aspstate/server"
)

// scrape parses what Prometheus would get.
func scrape(r *rig) map[string]*dto.MetricFamily {
	r.t.Helper()
	status, header, text := r.send("GET", "/metrics", "", nil)
	if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
		r.t.Fatalf("%d %v %s", status, header, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		r.t.Fatal(err)
	}
	return families
}

// value is that of the only metric of a family with these labels, given as name=value.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range families[name].GetMetric() {
		var got []string
		for _, l := range m.GetLabel() {
			got = append(got, l.GetName()+"="+l.GetValue())
		}
		slices.Sort(got)
		if !slices.Equal(got, labels) {
			continue
		}
		switch families[name].GetType() {
		case dto.MetricType_COUNTER:
			return m.GetCounter().GetValue()
		case dto.MetricType_HISTOGRAM:
			return float64(m.GetHistogram().GetSampleCount())
		default:
			return m.GetGauge().GetValue()
		}
	}
	t.Errorf("there is no %s with %q", name, labels)
	return -1
}

func TestScrape(t *testing.T) {
	r := newRig(t)
	r.set(shop, "a", "12345")
	r.lock(shop, "a")
	r.sample()
	m := r.admin.sessions.Metrics
	m.Request(server.StateServer, server.OpGetExclusive, server.AnswerLocked, 3*time.Millisecond)
	m.Request(server.StateServer, server.OpGetExclusive, server.AnswerOK, 7*time.Second)
	m.Request(server.TDS, server.OpGet, server.AnswerNotFound, time.Millisecond)
	m.LoginsRefused.Add(3)
	m.Received.Observe(300)
	f := scrape(r)
	for _, test := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"aspstate_build_info", []string{"mode=StateServer", "store=memory", "version=v1"}, 1},
		{"aspstate_state_server_sessions_total", nil, 1},
		{"aspstate_state_server_sessions_active", nil, 1},
		{"aspstate_state_server_sessions_timed_out_total", nil, 0},
		{"aspstate_requests_total", []string{"answer=locked", "operation=get_exclusive", "protocol=stateserver"}, 1},
		{"aspstate_requests_total", []string{"answer=ok", "operation=get", "protocol=stateserver"}, 0},
		{"aspstate_requests_total", []string{"answer=not_found", "operation=get", "protocol=tds"}, 1},
		{"aspstate_request_seconds", []string{"operation=get", "protocol=tds"}, 1},
		{"aspstate_logins_refused_total", nil, 3},
		{"aspstate_request_seconds", []string{"operation=get_exclusive", "protocol=stateserver"}, 2},
		{"aspstate_item_bytes", []string{"direction=received"}, 1},
		{"aspstate_store_statement_seconds", []string{"statement=set"}, 1},
		{"aspstate_store_statement_seconds", []string{"statement=get exclusive"}, 1},
		{"aspstate_store_statement_seconds", []string{"statement=applications"}, 1},
		{"aspstate_sessions", []string{"application=" + shop}, 1},
		{"aspstate_sessions_locked", []string{"application=" + shop}, 1},
		{"aspstate_sessions_bytes", []string{"application=" + shop}, 5},
		{"aspstate_store_pool_queued", nil, 2},
		{"aspstate_connections_limit", nil, 100},
		{"aspstate_ready", nil, 1},
	} {
		if got := value(t, f, test.name, test.labels...); got != test.want {
			t.Errorf("%s %q is %v, want %v", test.name, test.labels, got, test.want)
		}
	}
	for _, m := range f["aspstate_request_seconds"].GetMetric() {
		if h := m.GetHistogram(); h.GetSampleCount() == 2 {
			if h.GetSampleSum() != 7.003 {
				t.Errorf("the sum is %v", h.GetSampleSum())
			}
			for _, b := range h.GetBucket() {
				if want := map[float64]uint64{0.0025: 0, 0.005: 1, 5: 1, 10: 2}; b.GetCumulativeCount() != want[b.GetUpperBound()] && (b.GetUpperBound() < 0.005 || want[b.GetUpperBound()] > 0) {
					t.Errorf("bucket %v has %d", b.GetUpperBound(), b.GetCumulativeCount())
				}
			}
		}
	}
	if _, ok := f["go_goroutines"]; !ok {
		t.Error("there is nothing of the Go runtime")
	}
	r.admin.sessions.Drain()
	if got := value(t, scrape(r), "aspstate_ready"); got != 0 {
		t.Errorf("ready while draining: %v", got)
	}
}

// A scrape asks the store nothing.
func TestScrapeLeavesTheStoreAlone(t *testing.T) {
	r := newRig(t)
	r.sample()
	r.store.Fail(func(_ context.Context, op string, _ func() error) error {
		t.Errorf("%s during a scrape", op)
		return nil
	})
	r.store.fail(fmt.Errorf("looked into during a scrape"))
	statements := &r.admin.sessions.Metrics.Statements
	before := sum(statements[:])
	scrape(r)
	if after := sum(statements[:]); !slices.Equal(before, after) {
		t.Errorf("statements before the scrape %v, and after %v", before, after)
	}
}

// Many applications share series, whatever they are called.
func TestManyApplications(t *testing.T) {
	var all []backends.ApplicationInfo
	for i := range 3 * maxApplicationSeries {
		all = append(all, backends.ApplicationInfo{Name: fmt.Sprintf("/app%d", i), Sessions: i, Bytes: 1})
	}
	all[299].Name = otherApplications
	got := largest(all)
	if len(got) != maxApplicationSeries+1 || got[0].Name != "/app298" || got[0].Sessions != 298 {
		t.Errorf("%d series, the first is %+v", len(got), got[0])
	}
	names, sessions, bytes := map[string]bool{}, 0, int64(0)
	for _, a := range got {
		names[a.Name] = true
		sessions += a.Sessions
		bytes += a.Bytes
	}
	if len(names) != len(got) || sessions != 299*300/2 || bytes != 300 {
		t.Errorf("%d names, %d sessions, %d bytes", len(names), sessions, bytes)
	}
}

// registered are all metrics by name, each as a row of docs/metrics.md.
func registered(t *testing.T) map[string]string {
	r := newRig(t)
	r.set(shop, "a", "12345")
	r.sample()
	r.admin.sessions.SetQuotas(server.Quotas{Each: server.Quota{Item: 1}})
	app := r.admin.sessions.Application(shop)
	if err := r.admin.sessions.Set(t.Context(), server.Request{Arrived: time.Now()}, server.Session{App: app, ID: "b"}, backends.Write{Data: []byte("12")}); !errors.Is(err, backends.ErrFull) {
		t.Fatalf("a write over its quota: %v", err)
	}
	rows := map[string]string{}
	for name, f := range scrape(r) {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		rows[name] = fmt.Sprintf("| `%s` | %s | %s | %s |", name, strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
	}
	return rows
}

// docs/metrics.md has every metric, as it is registered, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.FromSlash("../../docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for line := range strings.Lines(string(doc)) {
		if m := regexp.MustCompile("^\\| `(aspstate_[a-z_]+)` ").FindStringSubmatch(line); m != nil {
			documented[m[1]] = strings.TrimSpace(line)
		}
	}
	have := registered(t)
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if strings.HasPrefix(name, "aspstate_") && documented[name] != have[name] {
			t.Errorf("docs/metrics.md has\n%s\nwant\n%s", documented[name], have[name])
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/metrics.md has %s, which there is not", name)
	}
}

// metricName finds names of metrics in expressions.
var metricName = regexp.MustCompile(`\b(?:aspstate|go|process)_[a-z_]+`)

// namesExist checks that every metric named in an expression exists.
func namesExist(t *testing.T, where, expr string, have map[string]string) {
	t.Helper()
	names := metricName.FindAllString(expr, -1)
	if len(names) == 0 {
		t.Errorf("%s names no metric: %s", where, expr)
	}
	for _, name := range names {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if cut, ok := strings.CutSuffix(name, suffix); ok && strings.Contains(have[cut], "| histogram |") {
				base = cut
			}
		}
		row, ok := have[base]
		if !ok {
			t.Errorf("%s names %s, which there is not", where, name)
		}
		// What is compared to must be the metric's own.
		for _, m := range regexp.MustCompile(regexp.QuoteMeta(name)+`\{([^}]*)\}`).FindAllStringSubmatch(expr, -1) {
			for _, l := range regexp.MustCompile(`([a-z_]+)(?:=~|!~|!=|=)"`).FindAllStringSubmatch(m[1], -1) {
				if !strings.Contains(row, l[1]) && l[1] != "job" && l[1] != "instance" {
					t.Errorf("%s: %s has no label %s", where, name, l[1])
				}
			}
		}
	}
}

func TestDashboard(t *testing.T) {
	data, err := os.ReadFile(filepath.FromSlash("../../deploy/monitoring/grafana-dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title  string
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(data, &board); err != nil {
		t.Fatal(err)
	}
	have, ids := registered(t), map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q: ID %d, at %+v, %d targets", p.Title, p.ID, p.GridPos, len(p.Targets))
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			namesExist(t, "panel "+p.Title, target.Expr, have)
		}
	}
	if len(board.Panels) < 10 || board.UID == "" || board.Title == "" {
		t.Errorf("%d panels, UID %q, title %q", len(board.Panels), board.UID, board.Title)
	}
}

func TestAlertRules(t *testing.T) {
	data, err := os.ReadFile(filepath.FromSlash("../../deploy/monitoring/alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	have, names := registered(t), map[string]bool{}
	for _, g := range file.Groups {
		for _, rule := range g.Rules {
			namesExist(t, "alert "+rule.Alert, rule.Expr, have)
			if _, err := model.ParseDuration(rule.For); rule.For != "" && err != nil {
				t.Errorf("%s: %v", rule.Alert, err)
			}
			if names[rule.Alert] || rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
				t.Errorf("incomplete, or there twice: %+v", rule)
			}
			names[rule.Alert] = true
		}
	}
	if len(names) < 5 {
		t.Errorf("%d alerts", len(names))
	}
	board, err := os.ReadFile(filepath.FromSlash("../../deploy/monitoring/grafana-dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"aspstate_items_unreadable_total", "aspstate_quota_refusals_total", "aspstate_logins_refused_total", "aspstate_connections_refused_total"} {
		if !strings.Contains(string(data), name) || !strings.Contains(string(board), name) {
			t.Errorf("%s, which somebody has to look into, has no alert or is not on the dashboard", name)
		}
	}
}
