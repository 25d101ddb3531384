package page_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/server/admin/page"
)

type object = map[string]any

// session is a session of the fake, as the API tells it.
type session struct {
	AppID      string   `json:"app_id"`
	App        string   `json:"application"`
	ID         string   `json:"id"`
	Bytes      int      `json:"bytes"`
	Created    string   `json:"created"`
	Timeout    float64  `json:"timeout_seconds"`
	Left       float64  `json:"left_seconds"`
	Locked     bool     `json:"locked"`
	LockCookie int      `json:"lock_cookie"`
	LockAge    *float64 `json:"lock_age_seconds,omitempty"`
}

// fake is an admin listener whose answers the test decides. It answers as package admin's comment says.
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	sessions []session
	status   object
	points   []object
	token    bool     // asked for, and never given
	broken   int      // answers every call of the API so, unless 0
	log      []string // calls that show values or change something
}

const (
	shop, intranet = "f197a8d4", "00c0ffee"
	hostile        = `<img src=x onerror="document.title='broken in'">`
)

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{}
	now := time.Now()
	for i := range 120 {
		s := session{
			AppID: shop, App: "/lm/w3svc/1/root/shop", ID: sessionID(i), Bytes: 700 + i*i*137%90000,
			Created: now.Add(-time.Duration(i) * 7 * time.Minute).UTC().Format(time.RFC3339), Timeout: 1200, Left: float64(1200 - i*9%1100), LockCookie: i + 1,
		}
		switch {
		case i%3 == 1:
			s.AppID, s.App = intranet, "/lm/w3svc/2/root/intranet"
		case i == 9:
			s.AppID, s.App, s.ID, s.Bytes = "0badf00d", hostile, hostile, 1_000_000
		}
		if i%12 == 5 {
			age := 0.35 * math.Pow(2.3, float64(i/12))
			s.Locked, s.LockAge = true, &age
		}
		f.sessions = append(f.sessions, s)
	}
	f.status = object{
		"version": "1.0.0", "host": "state1", "pid": 4711, "started": now.Add(-75 * time.Hour).UTC(), "ready": true, "mode": "SQLServer", "store": "postgres",
		"database": "postgres://aspstate@db1/sessions", "listen": []string{"10.1.2.10:42424"}, "connections": 120, "store_failing_seconds": 0, "waiters": 2,
	}
	for i := range 181 {
		f.points = append(f.points, point(now.Add(time.Duration(i-180)*5*time.Second), float64(i)))
	}
	mux := http.NewServeMux()
	mux.Handle("/", page.Handler())
	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		if !f.token {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		fmt.Fprint(w, "<title>Log in</title>")
	})
	mux.HandleFunc("/api/", f.api)
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

// sessionID makes IDs that look like ASP.NET's: 24 of a to z and 0 to 5.
func sessionID(i int) string {
	id := make([]byte, 24)
	for j := range id {
		id[j] = "abcdefghijklmnopqrstuvwxyz012345"[(i+1)*(j+3)*0x9e3779b1>>(j+8)&31]
	}
	return string(id)
}

func point(at time.Time, i float64) object {
	wave := 600 + 250*math.Sin(i/23) + 60*math.Sin(i/3.1) + 30*math.Sin(i*1.7)
	p := object{
		"time": at.UTC().Format(time.RFC3339Nano), "requests": wave, "locked": wave / 60, "not_found": 1, "bad": 0, "unanswered": 0,
		"operations":  object{"get": wave * .3, "get_exclusive": wave * .34, "set": wave * .31, "reset_timeout": wave * .05, "release": 0},
		"p50_seconds": .0004 + .0001*math.Sin(i/9), "p95_seconds": .002 + .0008*math.Sin(i/5), "p99_seconds": .5 + .4*math.Sin(i/7), "store_p95_seconds": .0006,
		"lock_waits": 6 + 4*math.Sin(i/11), "lock_handovers": 5.5 + 4*math.Sin(i/11), "lock_wait_p95_seconds": .4, "waiters": 2,
		"connections": 120, "sessions": 9000 + math.Round(i*6+200*math.Sin(i/40)), "locked_sessions": 3, "bytes": 71680000,
	}
	if i > 60 && i < 70 { // a night without requests
		p["p50_seconds"], p["p95_seconds"], p["p99_seconds"] = nil, nil, nil
	}
	return p
}

// serve runs do while no call is answered.
func (f *fake) set(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// calls are those that show values or change something, so far.
func (f *fake) calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

func (f *fake) api(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	status, body := f.answer(r)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func (f *fake) answer(r *http.Request) (int, any) {
	problem := func(status int, text string) (int, any) { return status, object{"error": text} }
	if f.token {
		return problem(401, "a token is needed")
	}
	if f.broken != 0 {
		return problem(f.broken, "the store fails: connection refused")
	}
	if r.Method != http.MethodGet && r.Header.Get("Content-Type") != "application/json" {
		return problem(415, "a change needs the header Content-Type: application/json")
	}
	q := r.URL.Query()
	find := func(app, id string) int {
		return slices.IndexFunc(f.sessions, func(s session) bool { return s.AppID == app && s.ID == id })
	}
	switch call := r.Method + " " + r.URL.Path; call {
	case "GET /api/status":
		f.status["now"] = time.Now().UTC()
		return 200, f.status
	case "GET /api/history":
		points := []object{}
		for _, p := range f.points {
			if after := q.Get("after"); after == "" || p["time"].(string) > after {
				points = append(points, p)
			}
		}
		return 200, object{"interval_seconds": 5, "points": points}
	case "GET /api/applications":
		return 200, object{"counted": time.Now().UTC(), "applications": []object{
			{"app_id": shop, "name": "/lm/w3svc/1/root/shop", "sessions": 6100, "locked": 3, "bytes": 44000000},
			{"app_id": intranet, "name": "/lm/w3svc/2/root/intranet", "sessions": 3900, "locked": 0, "bytes": 27680000},
			{"app_id": "0badf00d", "name": hostile, "sessions": 1, "locked": 0, "bytes": 700},
		}}
	case "GET /api/sessions":
		return 200, f.list(q.Get("order"), q.Get("app"), q.Get("id"), q.Get("after"))
	case "GET /api/session":
		i := find(q.Get("app"), q.Get("id"))
		if i < 0 {
			return problem(404, "there is no such session")
		}
		if q.Get("values") == "true" {
			f.log = append(f.log, "values "+q.Get("id"))
		}
		return 200, show(f.sessions[i], q.Get("values") == "true")
	case "POST /api/session/unlock":
		var asked struct {
			App, ID    string
			LockCookie int `json:"lock_cookie"`
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			return problem(400, err.Error())
		}
		f.log = append(f.log, fmt.Sprintf("unlock %s %s %d", asked.App, asked.ID, asked.LockCookie))
		i := find(asked.App, asked.ID)
		if i < 0 || !f.sessions[i].Locked || f.sessions[i].LockCookie != asked.LockCookie {
			return problem(409, "the session has another lock by now: look at it again")
		}
		f.sessions[i].Locked, f.sessions[i].LockAge = false, nil
		return 200, object{"unlocked": true, "lock_cookie": asked.LockCookie}
	case "DELETE /api/session":
		f.log = append(f.log, "remove "+q.Get("app")+" "+q.Get("id"))
		i := find(q.Get("app"), q.Get("id"))
		if i < 0 {
			return problem(404, "there is no such session")
		}
		f.sessions = slices.Delete(f.sessions, i, i+1)
		return 200, object{"removed": true}
	default:
		return problem(404, "there is no "+call)
	}
}

func (f *fake) list(order, app, id, after string) object {
	var found []session
	for _, s := range f.sessions {
		if (app == "" || s.AppID == app) && strings.HasPrefix(s.ID, id) && (order != "lock" || s.Locked) && (after == "" || s.AppID+s.ID > after) {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(a, b session) int {
		switch order {
		case "lock":
			return int(1000 * (*b.LockAge - *a.LockAge))
		case "size":
			return b.Bytes - a.Bytes
		case "created":
			return strings.Compare(a.Created, b.Created)
		default:
			return strings.Compare(a.AppID+a.ID, b.AppID+b.ID)
		}
	})
	const limit = 50
	answer := object{}
	if len(found) > limit {
		found = found[:limit]
		if order == "key" {
			answer["next"] = found[limit-1].AppID + found[limit-1].ID
		}
	}
	answer["sessions"] = append([]session{}, found...)
	return answer
}

func show(s session, values bool) object {
	entry := func(name, typeName string, bytes int, value string) object {
		e := object{"name": name, "type": typeName, "bytes": bytes}
		if values && value != "" {
			e["value"] = value
		}
		return e
	}
	graph := entry("Cart", "System.Collections.Generic.List<Shop.Line>", 1890, "")
	graph["graph"] = true
	items := []object{
		entry("UserName", "System.String", 10, "ed@example.org"), graph, entry("Visits", "System.Int32", 5, "44"),
		entry("Note"+hostile, "System.String", 52, hostile), entry("LastSeen", "System.DateTime", 9, "2026-11-22T16:00:00.5"), entry("Discount", "null", 1, ""),
	}
	if s.ID == hostile {
		items = append(items, entry("Essay", "System.String", 1_000_003, strings.Repeat("no end. ", 125_000)))
		for i := range 65_000 {
			items = append(items, entry(fmt.Sprint("Key", i), "null", 1, ""))
		}
	}
	return object{"session": s, "item": object{
		"bytes": s.Bytes, "compressed": true, "inflated_bytes": 4 * s.Bytes,
		"items":          items,
		"static_objects": []object{entry("Basket", "Shop.Basket", 13, "")},
	}}
}
