package admin

import (
	"sort"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"aspstate/backends"
	"aspstate/server"
)

// collector tells Prometheus what the server counts. docs/metrics.md says the same for people; a
// test compares them.
type collector struct {
	parts
	facts func() Facts
}

// maxApplicationSeries bounds the applications that have series of their own. Those with the fewest sessions
// share one.
const maxApplicationSeries = 100

const otherApplications = "(others)"

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("aspstate_"+name, help, labels, nil)
}

var (
	buildInfo = desc("build_info", "Always 1; the labels say what runs.", "version", "mode", "store")

	totalSessions     = desc("state_server_sessions_total", "Sessions created, as counted by this server since its start.")
	activeSessions    = desc("state_server_sessions_active", "Sessions in the store that have not expired, sampled.")
	timedOutSessions  = desc("state_server_sessions_timed_out_total", "Expired sessions that this server has deleted.")
	abandonedSessions = desc("state_server_sessions_abandoned_total", "Sessions that were removed through this server.")

	requests       = desc("requests_total", "Requests of web servers.", "protocol", "operation", "answer")
	requestSeconds = desc("request_seconds", "Time from a request's first byte until its answer was ready, lock waits included.", "protocol", "operation")
	itemBytes      = desc("item_bytes", "Sizes of the items that came with requests (received) and left with answers (sent).", "direction")

	lockWaitSeconds = desc("lock_wait_seconds", "Time that requests waited for a lock, by how the wait ended.", "outcome")
	lockRefused     = desc("lock_waits_refused_total", "Requests for a locked session that could not wait, because too many did.")
	lockWaiters     = desc("lock_waiters", "Requests that wait for a lock.")

	statementSeconds = desc("store_statement_seconds", "Time that the store took, each try of its own.", "statement")
	statementErrors  = desc("store_statement_errors_total", "Tries that failed.", "statement")
	statementRetries = desc("store_statement_retries_total", "Tries that were repeated because the one before failed.", "statement")
	givenUp          = desc("requests_given_up_total", "Requests whose connection was closed without an answer because the store failed.")
	storeFailing     = desc("store_failing_seconds", "For how long the store has been failing; 0 while it works.")
	workLeft         = desc("store_work_left", "Releases and renewals to be done when the store works again.")
	poolConnections  = desc("store_pool_connections", "Connections to the database that there may be.")
	poolQueued       = desc("store_pool_queued", "Calls that wait for a connection to the database.")

	itemsUnreadable = desc("items_unreadable_total", "Requests whose connection was closed because the item in the store was not to be given out.", "reason")

	quotaRefusals = desc("quota_refusals_total", "Writes that were refused because their application has reached its quota: the item was too large, or there would have been a session too many.", "application", "quota")
	loginsRefused = desc("logins_refused_total", "Logins over TDS that were refused.")

	sweepFailures = desc("sweep_failures_total", "Sweeps for expired sessions that failed.")
	sweepLast     = desc("sweep_last_success_timestamp_seconds", "When the last sweep that succeeded ended, as Unix time; 0 before the first.")

	connections         = desc("connections", "Open connections of web servers.", "protocol")
	connectionsLimit    = desc("connections_limit", "How many connections may be open, 0 for any number.")
	connectionsTotal    = desc("connections_accepted_total", "Connections that were accepted.", "protocol")
	connectionsRefused  = desc("connections_refused_total", "Connections that were refused: by the allow list, because all of the allowed number were busy (limit), or because a proxy did not say whose they are (proxy).", "reason")
	connectionsInsecure = desc("connections_tls_failed_total", "Connections to tls.listen that were closed because their TLS handshake failed.")
	connectionsCutOff   = desc("connections_cut_off_total", "Connections that were closed because memory for items was used up and their clients neither sent nor took theirs.")
	itemsInFlight       = desc("items_in_flight_bytes", "Memory that items hold on their way in and out; limits.bodiesInFlight bounds it.")
	connectionsClosed   = desc("connections_closed_idle_total", "Idle connections that were closed to make room for others.")
	receivedBytes       = desc("received_bytes_total", "Bytes received from web servers.")
	sentBytes           = desc("sent_bytes_total", "Bytes sent to web servers.")

	appSessions   = desc("sessions", "Sessions in the store by application, sampled.", "application")
	appLocked     = desc("sessions_locked", "Locked sessions in the store by application, sampled.", "application")
	appBytes      = desc("sessions_bytes", "Bytes of the sessions in the store by application, sampled.", "application")
	sampleTime    = desc("sample_timestamp_seconds", "When the sessions were counted, as Unix time.")
	sampleSeconds = desc("sample_seconds", "How long counting the sessions took.")

	ready = desc("ready", "1 if /readyz says so, else 0.")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector. It asks the store nothing.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	m := c.sessions.Metrics
	f := c.facts()
	gauge(buildInfo, 1, f.Version, f.Mode, f.Store)
	counter(totalSessions, m.Created.Load())
	counter(timedOutSessions, uint64(c.sweeper.Swept()))
	counter(abandonedSessions, m.Abandoned.Load())

	for p := range m.Requests {
		protocol := server.Protocol(p).String()
		for op := range m.Requests[p] {
			name := server.Operation(op).String()
			for a := range m.Requests[p][op] {
				counter(requests, m.Requests[p][op][a].Load(), protocol, name, server.Answer(a).String())
			}
			ch <- histogram(requestSeconds, &m.Latency[p][op], time.Second, protocol, name)
		}
	}
	counter(loginsRefused, m.LoginsRefused.Load())
	ch <- histogram(itemBytes, &m.Received, 1, "received")
	ch <- histogram(itemBytes, &m.Sent, 1, "sent")

	for w := range m.LockWait {
		ch <- histogram(lockWaitSeconds, &m.LockWait[w], time.Second, server.LockWait(w).String())
	}
	counter(lockRefused, m.LockRefused.Load())
	gauge(lockWaiters, float64(c.sessions.Waiting()))

	for i := range m.Statements {
		name := server.Statement(i).String()
		ch <- histogram(statementSeconds, &m.Statements[i], time.Second, name)
		counter(statementErrors, m.StatementErrors[i].Load(), name)
		counter(statementRetries, m.Retries[i].Load(), name)
	}
	counter(givenUp, m.GivenUp.Load())
	for _, r := range c.sessions.QuotaRefusals() {
		counter(quotaRefusals, r.Item, r.Application, "item")
		counter(quotaRefusals, r.Sessions, r.Application, "sessions")
	}
	for u := range m.Unreadable {
		counter(itemsUnreadable, m.Unreadable[u].Load(), server.Unreadable(u).String())
	}
	failing, _ := c.sessions.Failing()
	gauge(storeFailing, failing.Seconds())
	gauge(workLeft, float64(c.sessions.WorkLeft()))
	if connections, queued, ok := c.sessions.Pool(); ok {
		gauge(poolConnections, float64(connections))
		gauge(poolQueued, float64(queued))
	}

	counter(sweepFailures, c.sweeper.Faults())
	last, _ := c.sweeper.Done()
	gauge(sweepLast, unix(last))

	t := c.front.Traffic()
	for p := range t.Accepted {
		protocol := server.Protocol(p)
		gauge(connections, float64(c.front.Speaking(protocol)), protocol.String())
		counter(connectionsTotal, t.Accepted[p].Load(), protocol.String())
	}
	gauge(connectionsLimit, float64(c.front.Limit()))
	counter(connectionsRefused, c.front.Access.Refusals(), "allow")
	counter(connectionsRefused, t.BadHeaders.Load(), "proxy")
	counter(connectionsRefused, t.Refused.Load(), "limit")
	counter(connectionsClosed, t.ClosedIdle.Load())
	counter(connectionsInsecure, t.Insecure.Load())
	counter(connectionsCutOff, t.CutOff.Load())
	gauge(itemsInFlight, float64(c.front.Held()))
	counter(receivedBytes, t.Received.Load())
	counter(sentBytes, t.Sent.Load())

	if sample := c.sampler.Latest(); !sample.At.IsZero() {
		gauge(activeSessions, float64(sample.Total().Sessions))
		for _, a := range largest(sample.Applications) {
			gauge(appSessions, float64(a.Sessions), a.Name)
			gauge(appLocked, float64(a.Locked), a.Name)
			gauge(appBytes, float64(a.Bytes), a.Name)
		}
		gauge(sampleTime, unix(sample.At))
		gauge(sampleSeconds, sample.Took.Seconds())
	}
	if c.notReady() == "" {
		gauge(ready, 1)
	} else {
		gauge(ready, 0)
	}
}

// histogram is h as Prometheus has it, in units.
func histogram(d *prometheus.Desc, h *server.Histogram, unit time.Duration, labels ...string) prometheus.Metric {
	counts, bounds := h.Counts(), h.Bounds()
	buckets := make(map[float64]uint64, len(bounds))
	var total uint64
	for i, n := range counts {
		total += n
		if i < len(bounds) {
			buckets[float64(bounds[i])/float64(unit)] = total
		}
	}
	return prometheus.MustNewConstHistogram(d, total, float64(h.Sum())/float64(unit), buckets, labels...)
}

// largest are the applications with the most sessions, and one that stands for the others.
func largest(all []backends.ApplicationInfo) []backends.ApplicationInfo {
	if len(all) <= maxApplicationSeries {
		return all
	}
	list := append([]backends.ApplicationInfo{}, all...)
	sort.SliceStable(list, func(i, j int) bool {
		if list[j].Name == otherApplications { // an application may have this name, but no two series
			return true
		}
		return list[i].Name != otherApplications && list[i].Sessions > list[j].Sessions
	})
	rest := server.Sample{Applications: list[maxApplicationSeries:]}
	others := rest.Total()
	others.Name = otherApplications
	return append(list[:maxApplicationSeries:maxApplicationSeries], others)
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}
