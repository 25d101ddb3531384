package admin

import (
	"context"
	"errors"
	"net/http"
	"os"
	"time"

	"aspstate/backends"
)

// Application is an application as the API tells it.
type Application struct {
	AppID    string `json:"app_id"`
	Name     string `json:"name"`
	Sessions int    `json:"sessions"`
	Locked   int    `json:"locked"`
	Bytes    int64  `json:"bytes"`
}

// Applications is the answer of GET /api/applications.
type Applications struct {
	Applications []Application `json:"applications"`
	Counted      *time.Time    `json:"counted,omitempty"`
	Took         float64       `json:"took_seconds"`
	Error        string        `json:"error,omitempty"`
}

func (s *Server) listApplications(context.Context, *http.Request) (any, error) {
	sample := s.sampler.Latest()
	if errors.Is(sample.Err, errors.ErrUnsupported) {
		return nil, sample.Err
	}
	list := Applications{Applications: make([]Application, len(sample.Applications)), Counted: known(sample.At), Took: sample.Took.Seconds(), Error: text(sample.Err)}
	for i, a := range sample.Applications {
		list.Applications[i] = Application{a.ID.Suffix(), a.Name, a.Sessions, a.Locked, a.Bytes}
	}
	return list, nil
}

// Status is the answer of GET /api/status.
type Status struct {
	Version  string    `json:"version"`
	Host     string    `json:"host"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	Now      time.Time `json:"now"`
	Ready    bool      `json:"ready"`
	NotReady string    `json:"not_ready,omitempty"`

	Mode          string   `json:"mode"`
	Store         string   `json:"store"`
	Database      string   `json:"database,omitempty"`
	SchemaVersion int      `json:"schema_version,omitempty"`
	Listen        []string `json:"listen"`
	Allow         []string `json:"allow"`
	LockWait      float64  `json:"lock_wait_seconds"`
	RequestBudget float64  `json:"request_budget_seconds"`

	Sessions *int       `json:"sessions,omitempty"`
	Locked   *int       `json:"locked,omitempty"`
	Bytes    *int64     `json:"bytes,omitempty"`
	Counted  *time.Time `json:"counted,omitempty"`
	Waiters  int        `json:"waiters"`

	Connections        int    `json:"connections"`
	ConnectionsLimit   int    `json:"connections_limit"`
	ConnectionsRefused uint64 `json:"connections_refused"`
	RefusedByAllow     uint64 `json:"connections_refused_by_allow"`

	StoreFailing    float64 `json:"store_failing_seconds"`
	StoreError      string  `json:"store_error,omitempty"`
	RequestsGivenUp uint64  `json:"requests_given_up"`
	ItemsUnreadable uint64  `json:"items_unreadable"`
	WorkLeft        int     `json:"work_left"`
	Pool            *Pool   `json:"pool,omitempty"`
	Sweeper         Sweeper `json:"sweeper"`
	Totals          Totals  `json:"totals"`
	Rates           *Point  `json:"rates,omitempty"`
	Switch          *Switch `json:"switch,omitempty"`

	TakeOver *TakeOver `json:"take_over,omitempty"`
}

// TakeOver counts the sessions asked for at the state server that takeOver names, since the start.
type TakeOver struct {
	Taken  int64      `json:"taken"`
	Missed int64      `json:"missed"`
	Last   *time.Time `json:"last,omitempty"`
}

// Pool is the store's pool of connections.
type Pool struct {
	Connections int `json:"connections"`
	Queued      int `json:"queued"`
}

// Sweeper is what the sweeper did since the start.
type Sweeper struct {
	Interval float64    `json:"interval_seconds"`
	Last     *time.Time `json:"last,omitempty"`
	Swept    int64      `json:"swept"`
	Error    string     `json:"error,omitempty"`
}

// Totals are numbers since the start.
type Totals struct {
	Requests  uint64 `json:"requests"`
	Created   uint64 `json:"sessions_created"`
	TimedOut  uint64 `json:"sessions_timed_out"`
	Abandoned uint64 `json:"sessions_abandoned"`
}

// Switch is the last move of the sessions to another store that this server took part in.
type Switch struct {
	Stage   string  `json:"stage"`
	From    string  `json:"from"`
	To      string  `json:"to"`
	Claimed int64   `json:"claimed"`
	Copying bool    `json:"copying"`
	Moved   int     `json:"moved"`
	Total   int     `json:"total"`
	Rate    float64 `json:"per_second"`
	Left    float64 `json:"left_seconds"`
	Error   string  `json:"error,omitempty"`
}

func (s *Server) showStatus(context.Context, *http.Request) (any, error) { return s.status(), nil }

func (s *Server) status() Status {
	f, m := s.process.Facts(), s.sessions.Metrics
	st := Status{
		Version: f.Version, PID: os.Getpid(), Started: s.started.UTC(), Now: time.Now().UTC(), NotReady: s.notReady(),
		Mode: f.Mode, Store: f.Store, Database: f.Database, SchemaVersion: f.SchemaVersion,
		Listen: f.Listen, Allow: f.Allow, LockWait: f.LockWait.Seconds(), RequestBudget: f.RequestBudget.Seconds(),
		Waiters:     s.sessions.Waiting(),
		Connections: s.front.Connections(), ConnectionsLimit: s.front.Limit(), ConnectionsRefused: s.front.Traffic().Refused.Load(),
		RefusedByAllow:  s.front.Access.Refusals(),
		RequestsGivenUp: m.GivenUp.Load(), ItemsUnreadable: m.ItemsUnreadable(), WorkLeft: s.sessions.WorkLeft(),
		Totals: Totals{Created: m.Created.Load(), TimedOut: uint64(s.sweeper.Swept()), Abandoned: m.Abandoned.Load()},
		Rates:  s.history.last(),
	}
	st.Host, _ = os.Hostname()
	st.Ready = st.NotReady == ""
	for p := range m.Requests {
		for op := range m.Requests[p] {
			for a := range m.Requests[p][op] {
				st.Totals.Requests += m.Requests[p][op][a].Load()
			}
		}
	}
	if sample := s.sampler.Latest(); !sample.At.IsZero() {
		total := sample.Total()
		st.Sessions, st.Locked, st.Bytes, st.Counted = &total.Sessions, &total.Locked, &total.Bytes, known(sample.At)
	}
	failing, err := s.sessions.Failing()
	st.StoreFailing, st.StoreError = failing.Seconds(), text(err)
	if connections, queued, ok := s.sessions.Pool(); ok {
		st.Pool = &Pool{connections, queued}
	}
	last, err := s.sweeper.Done()
	st.Sweeper = Sweeper{s.sweeper.Interval().Seconds(), known(last), s.sweeper.Swept(), text(err)}
	st.Switch = s.switching()
	if taken, missed, last, ok := s.sessions.TakenOver(); ok {
		st.TakeOver = &TakeOver{taken, missed, known(last)}
	}
	return st
}

var stages = map[backends.Stage]string{backends.Announced: "announced", backends.Moving: "moving", backends.Moved: "moved"}

// switching is the last switch, nil if there was none.
func (s *Server) switching() *Switch {
	p, ok := s.sessions.Progress()
	if !ok {
		return nil
	}
	stage := stages[p.Move.Stage]
	if p.Over {
		stage = stages[backends.Moved]
	}
	return &Switch{
		Stage: stage, From: s.process.Show(p.Move.From), To: s.process.Show(p.Move.To), Claimed: p.Claimed, Copying: p.Copying,
		Moved: p.Done, Total: p.Total, Rate: p.Rate, Left: p.Left.Seconds(), Error: text(p.Failure),
	}
}

// Reloaded is the answer of POST /api/reload.
type Reloaded struct {
	Changed []string `json:"changed"`
	Restart []string `json:"restart"`
}

func (s *Server) reload(context.Context, *http.Request) (any, error) {
	changed, restart, err := s.process.Reload()
	if err != nil {
		return nil, unprocessable("the settings have faults, those in force stay", err)
	}
	return Reloaded{append([]string{}, changed...), append([]string{}, restart...)}, nil
}

// switchTimeout is how long a switch may take to begin: the servers of a database agree on it first.
const switchTimeout = time.Minute

func (s *Server) switchStore(ctx context.Context, r *http.Request) (any, error) {
	var body struct {
		To string `json:"to"`
	}
	if err := readJSON(r, &body); err != nil {
		return nil, err
	}
	if body.To == "" {
		return nil, badRequest("to is missing: give a connection string, env:NAME, file:PATH or StateServer")
	}
	if p, ok := s.sessions.Progress(); ok && !p.Over {
		return nil, problem{status: http.StatusConflict, Text: "another switch is under way: wait for its end"}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), switchTimeout)
	defer cancel()
	s.log.Info("an operator switches to another store", "audit", "switch", "to", s.process.Show(body.To), "client", r.RemoteAddr)
	if err := s.process.Switch(ctx, body.To); err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
		return nil, unprocessable("the switch did not begin", err)
	}
	return accepted{s.switching()}, nil
}

// unprocessable is an answer of 422 with each of the faults that err joins.
func unprocessable(what string, err error) problem {
	p := problem{status: http.StatusUnprocessableEntity}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, fault := range joined.Unwrap() {
			p.Faults = append(p.Faults, fault.Error())
		}
	} else {
		p.Faults = []string{err.Error()}
	}
	p.Text = what + ": " + p.Faults[0]
	return p
}

// known is a time, or nil for the zero time.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
