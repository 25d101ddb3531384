package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"aspstate/backends"
)

// The JSON API. See the package comment for what it says.

const (
	apiTimeout = 15 * time.Second
	maxBody    = 64 << 10
)

// problem is an answer of 4xx or 5xx.
type problem struct {
	status int
	Text   string   `json:"error"`
	Faults []string `json:"faults,omitempty"`
}

func (p problem) Error() string { return p.Text }

func badRequest(format string, args ...any) error {
	return problem{status: http.StatusBadRequest, Text: fmt.Sprintf(format, args...)}
}

// accepted is an answer of 202.
type accepted struct{ any }

// call carries out a request.
type call func(ctx context.Context, r *http.Request) (any, error)

// api dispatches by path and method.
func (s *Server) api() http.Handler {
	calls := map[string]map[string]call{
		"/api/sessions":       {"GET": s.listSessions},
		"/api/session":        {"GET": s.showSession, "DELETE": s.removeSession},
		"/api/session/unlock": {"POST": s.unlockSession},
		"/api/applications":   {"GET": s.listApplications},
		"/api/keys":           {"GET": s.countKeys},
		"/api/status":         {"GET": s.showStatus},
		"/api/history":        {"GET": s.showHistory},
		"/api/reload":         {"POST": s.reload},
		"/api/switch":         {"POST": s.switchStore},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods, ok := calls[r.URL.Path]
		if !ok {
			answer(w, http.StatusNotFound, problem{Text: "there is no " + r.URL.Path})
			return
		}
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		do, ok := methods[method]
		if !ok {
			var allowed []string
			for m := range methods {
				allowed = append(allowed, m)
			}
			slices.Sort(allowed)
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			answer(w, http.StatusMethodNotAllowed, problem{Text: r.URL.Path + " takes " + strings.Join(allowed, " and ")})
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), apiTimeout)
		defer cancel()
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		result, err := do(ctx, r)
		if err != nil {
			p := toProblem(err)
			if p.status >= 500 && r.Context().Err() == nil { // else nobody waits for it any more
				s.log.Warn("an operator's request failed", "path", r.URL.Path, "error", err)
			}
			answer(w, p.status, p)
			return
		}
		status := http.StatusOK
		if a, ok := result.(accepted); ok {
			status, result = http.StatusAccepted, a.any
		}
		answer(w, status, result)
	})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// toProblem is the one place that turns errors into statuses.
func toProblem(err error) problem {
	if p, ok := errors.AsType[problem](err); ok {
		return p
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem{status: http.StatusRequestEntityTooLarge, Text: fmt.Sprintf("the body is larger than %d bytes", maxBody)}
	}
	if locked, ok := errors.AsType[*backends.LockedError](err); ok {
		return problem{status: http.StatusConflict, Text: fmt.Sprintf("the session has another lock by now, with lock cookie %d: look at it again", locked.Cookie)}
	}
	switch {
	case errors.Is(err, backends.ErrNotFound):
		return problem{status: http.StatusNotFound, Text: "there is no such session: it has timed out, was removed, or never was"}
	case errors.Is(err, backends.ErrUnknownApplication):
		return problem{status: http.StatusNotFound, Text: "there is no such application"}
	case errors.Is(err, errors.ErrUnsupported):
		return problem{status: http.StatusNotImplemented, Text: err.Error()}
	default:
		return problem{status: http.StatusServiceUnavailable, Text: err.Error()}
	}
}

// Session is a session as the API tells it.
type Session struct {
	AppID         string    `json:"app_id"`
	Application   string    `json:"application"`
	ID            string    `json:"id"`
	Bytes         int       `json:"bytes"`
	Created       time.Time `json:"created"`
	Timeout       float64   `json:"timeout_seconds"`
	Left          *float64  `json:"left_seconds,omitempty"`
	Locked        bool      `json:"locked"`
	LockCookie    int32     `json:"lock_cookie"`
	LockAge       *float64  `json:"lock_age_seconds,omitempty"`
	Uninitialized bool      `json:"uninitialized"`
}

// SessionList is the answer of GET /api/sessions.
type SessionList struct {
	Sessions []Session `json:"sessions"`
	Next     string    `json:"next,omitempty"`
}

func toJSON(se backends.Session, names map[backends.AppID]string) Session {
	j := Session{
		AppID: se.App.Suffix(), Application: names[se.App], ID: se.ID, Bytes: se.Size, Created: se.Created.UTC(),
		Timeout: se.Timeout.Seconds(), Locked: se.Locked, LockCookie: int32(se.LockCookie), Uninitialized: se.Uninitialized,
	}
	if se.Timeout != backends.NeverExpires {
		left := se.Left.Seconds()
		j.Left = &left
	}
	if se.Locked {
		age := se.LockAge.Seconds()
		j.LockAge = &age
	}
	return j
}

// names are the names of applications, as far as they are known: from the last sample and from web servers' requests.
func (s *Server) names() map[backends.AppID]string {
	names := s.sessions.Names()
	for _, a := range s.sampler.Latest().Applications {
		names[a.ID] = a.Name
	}
	return names
}

// application is what a request names by app or application. ok is false where it names none.
func (s *Server) application(ctx context.Context, app, name *string) (id backends.AppID, ok bool, err error) {
	switch {
	case app != nil && name != nil:
		return 0, false, badRequest("app and application are both there: give one")
	case app != nil:
		n, err := strconv.ParseUint(*app, 16, 32)
		if err != nil || len(*app) != 8 {
			return 0, false, badRequest("app is not eight hexadecimal digits: %q", *app)
		}
		return backends.AppID(uint32(n)), true, nil
	case name != nil:
		id, err := s.sessions.AppID(ctx, *name)
		if lower := strings.ToLower(*name); errors.Is(err, backends.ErrUnknownApplication) && lower != *name {
			id, err = s.sessions.AppID(ctx, lower)
		}
		return id, err == nil, err
	}
	return 0, false, nil
}

// key is the session that a request names.
func (s *Server) key(ctx context.Context, app, name *string, id string) (backends.Key, error) {
	if id == "" {
		return backends.Key{}, badRequest("id is missing")
	}
	appID, ok, err := s.application(ctx, app, name)
	if err == nil && !ok {
		err = badRequest("the application is missing: give app or application")
	}
	return backends.Key{App: appID, ID: id}, err
}

func given(q url.Values, name string) *string {
	if !q.Has(name) {
		return nil
	}
	value := q.Get(name)
	return &value
}

var orders = map[string]backends.Order{"": backends.ByKey, "key": backends.ByKey, "size": backends.BySize, "lock": backends.ByLockAge, "created": backends.ByCreated}

const defaultLimit, mostLimit = 100, 1000

func (s *Server) listSessions(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	app, ok, err := s.application(ctx, given(q, "app"), given(q, "application"))
	if err != nil {
		return nil, err
	}
	query := backends.Query{ID: q.Get("id"), Limit: defaultLimit}
	if ok {
		query.App = &app
	}
	if query.Order, ok = orders[q.Get("order")]; !ok {
		return nil, badRequest("order is not key, size, lock or created: %q", q.Get("order"))
	}
	if text := q.Get("locked"); text != "" {
		if query.Locked, err = strconv.ParseBool(text); err != nil {
			return nil, badRequest("locked is not true or false: %q", text)
		}
	}
	if text := q.Get("limit"); text != "" {
		if query.Limit, err = strconv.Atoi(text); err != nil || query.Limit < 1 || query.Limit > mostLimit {
			return nil, badRequest("limit is not a number from 1 to %d: %q", mostLimit, text)
		}
	}
	if after := q.Get("after"); after != "" {
		if query.Order != backends.ByKey {
			return nil, badRequest("after needs order=key: other orders cannot be paged")
		}
		if query.After, err = cursor(after); err != nil {
			return nil, err
		}
	}
	found, err := s.sessions.List(ctx, query)
	if err != nil {
		return nil, err
	}
	list, names := SessionList{Sessions: make([]Session, len(found))}, s.names()
	for i, se := range found {
		list.Sessions[i] = toJSON(se, names)
	}
	if n := len(found); query.Order == backends.ByKey && n == query.Limit {
		list.Next = found[n-1].App.Suffix() + found[n-1].ID
	}
	return list, nil
}
