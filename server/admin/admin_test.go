package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/backendtest"
	"aspstate/backends/memory"
	"aspstate/server"
)

// process is the process around a listener under test.
type process struct {
	reload   func() (changed, restart []string, err error)
	switchTo func(to string) error
}

func (p *process) Facts() Facts {
	return Facts{Version: "v1", Mode: "StateServer", Store: "memory", Listen: []string{"127.0.0.1:42424"}, Allow: []string{}, LockWait: time.Second, RequestBudget: 8 * time.Second}
}
func (p *process) Reload() (changed, restart []string, err error) { return p.reload() }
func (p *process) Switch(_ context.Context, to string) error      { return p.switchTo(to) }
func (p *process) Show(connectionString string) string            { return "shown" }

// failing is a store that can be looked into and that fails on demand.
type failing struct {
	backendtest.Failing
	backends.Inspector
	mu  sync.Mutex
	err error
}

func (f *failing) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *failing) Inspect(ctx context.Context, key backends.Key) (backends.Session, error) {
	if err := f.fault(); err != nil {
		return backends.Session{}, err
	}
	return f.Inspector.Inspect(ctx, key)
}

func (f *failing) List(ctx context.Context, q backends.Query) ([]backends.Session, error) {
	if err := f.fault(); err != nil {
		return nil, err
	}
	return f.Inspector.List(ctx, q)
}

func (f *failing) Applications(ctx context.Context) ([]backends.ApplicationInfo, error) {
	if err := f.fault(); err != nil {
		return nil, err
	}
	return f.Inspector.Applications(ctx)
}

// Pool has numbers as a database's store has them.
func (f *failing) Pool() (connections, queued int) { return 4, 2 }

// rig is a listener over a store in memory.
type rig struct {
	t testing.TB
	*httptest.Server
	admin   *Server
	process *process
	store   *failing
	log     *bytes.Buffer
	token   string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	mem := memory.New(0)
	r := &rig{t: t, store: &failing{Inspector: mem}, log: new(bytes.Buffer), process: &process{}}
	r.store.Store = mem
	log := slog.New(slog.NewTextHandler(r.log, nil))
	sessions := server.NewSessions(r.store, 8*time.Second, log)
	sessions.SetLockWait(5 * time.Second)
	front := &server.Server{Access: server.NewAccessList(log), Log: log}
	front.LimitConnections(100)
	sweeper := &server.Sweeper{Store: sessions, Log: log}
	sweeper.Configure(time.Minute, 100)
	r.admin = New(sessions, front, sweeper, &server.Sampler{Sessions: sessions, Log: log}, r.process, log)
	r.Server = httptest.NewServer(r.admin.http.Handler)
	r.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(r.Close)
	return r
}

// sample counts the sessions now.
func (r *rig) sample() { r.admin.sampler.Sample(r.t.Context()) }

func (r *rig) session(app, id string) server.Session {
	return server.Session{App: r.admin.sessions.Application(app), ID: id}
}

func now() server.Request { return server.Request{Arrived: time.Now()} }

// blob is {name="Ed",age=44,price=34.5} (published in mikeobrien/ClassicAspRemoteSession).
const blob = "\x14\x00\x00\x00\x01\x00\x03\x00\x00\x00\xFF\xFF\xFF\xFF\x04name\x03age\x05price\x04\x00\x00\x00\x09\x00\x00\x00\x12\x00\x00\x00" +
	"\x01\x02Ed\x02\x2C\x00\x00\x00\x09\x00\x00\x00\x00\x00\x40\x41\x40\xFF"

func (r *rig) set(app, id, data string) {
	r.t.Helper()
	err := r.admin.sessions.Set(r.t.Context(), now(), r.session(app, id), backends.Write{Data: []byte(data), Timeout: 20 * time.Minute, LockCookie: backends.NoCookie})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) lock(app, id string) backends.Cookie {
	r.t.Helper()
	item, err := r.admin.sessions.GetExclusive(r.t.Context(), now(), r.session(app, id))
	if err != nil {
		r.t.Fatal(err)
	}
	return item.LockCookie
}

// send sends a request; change alters it first.
func (r *rig) send(method, path, body string, change func(*http.Request)) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.URL+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if method != "GET" {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	if change != nil {
		change(req)
	}
	resp, err := r.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// want sends a request and wants this status, and these parts in the answer, which is JSON.
func (r *rig) want(status int, method, path, body string, parts ...string) string {
	r.t.Helper()
	got, header, text := r.send(method, path, body, nil)
	ok := got == status && json.Valid([]byte(text)) && strings.HasPrefix(header.Get("Content-Type"), "application/json")
	for _, part := range parts {
		ok = ok && strings.Contains(text, part)
	}
	if !ok {
		r.t.Errorf("%s %s %s: %d %s\nwant %d with %q", method, path, body, got, text, status, parts)
	}
	return text
}

// ask decodes the answer of a GET.
func ask[T any](r *rig, path string) (answer T) {
	r.t.Helper()
	text := r.want(200, "GET", path, "")
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&answer); err != nil {
		r.t.Errorf("GET %s: %v in %s", path, err, text)
	}
	return answer
}

const (
	shop    = "/lm/w3svc/1/root/shop"
	shopApp = "6028b1ba"
)

func TestShowListAndPage(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.set(shop, fmt.Sprintf("s%d", i), strings.Repeat("x", 10*i+1))
	}
	r.set("/other", "s9", blob)
	r.lock(shop, "s3")
	r.sample()

	all := ask[SessionList](r, "/api/sessions")
	if len(all.Sessions) != 6 || all.Next != "" {
		t.Fatalf("all sessions: %+v", all)
	}
	var paged []Session
	for after, pages := "", 0; ; pages++ {
		page := ask[SessionList](r, "/api/sessions?limit=2&after="+url.QueryEscape(after))
		paged = append(paged, page.Sessions...)
		if after = page.Next; after == "" || pages > 5 {
			break
		}
	}
	if got, want := fmt.Sprint(keysOf(paged)), fmt.Sprint(keysOf(all.Sessions)); got != want {
		t.Errorf("page by page %s, at once %s", got, want)
	}
	for query, want := range map[string]string{
		"app=" + shopApp:                       "s0 s1 s2 s3 s4",
		"application=" + shop + "&id=s1":       "s1",
		"application=/LM/W3SVC/1/ROOT/Shop":    "s0 s1 s2 s3 s4",
		"id=s9":                                "s9",
		"locked=true":                          "s3",
		"order=lock":                           "s3",
		"order=size&app=" + shopApp:            "s4 s3 s2 s1 s0",
		"order=size&limit=1":                   "s9",
		"order=created&limit=2&app=" + shopApp: "s0 s1",
		"id=none":                              "",
	} {
		if got := strings.Join(keysOf(ask[SessionList](r, "/api/sessions?"+query).Sessions), " "); got != want {
			t.Errorf("%s lists %q, want %q", query, got, want)
		}
	}
	se := ask[SessionList](r, "/api/sessions?locked=true").Sessions[0]
	if se.AppID != shopApp || se.Application != shop || se.Bytes != 31 || !se.Locked || se.LockCookie != 2 || se.LockAge == nil ||
		se.Timeout != 1200 || se.Left == nil || *se.Left <= 1190 || *se.Left > 1260 || time.Since(se.Created) > time.Minute {
		t.Errorf("the locked session is %+v", se)
	}
}

func keysOf(list []Session) (ids []string) {
	for _, se := range list {
		ids = append(ids, se.ID)
	}
	return ids
}

func TestShowHidesValues(t *testing.T) {
	r := newRig(t)
	const id = "bpr4mimb2vjnvtn2jc4yp3uo"
	r.set(shop, id, blob)
	path := "/api/session?application=" + shop + "&id=" + id
	shown := ask[ShownSession](r, path)
	if len(shown.Item.Items) != 3 || shown.Item.Items[0].Name != "name" || shown.Item.Items[0].Value != nil || shown.ItemError != "" {
		t.Errorf("shown: %+v", shown)
	}
	if strings.Contains(r.log.String(), "audit") {
		t.Error("to show no values left an audit line")
	}
	shown = ask[ShownSession](r, path+"&values=true")
	if v := shown.Item.Items[0].Value; v == nil || !strings.Contains(*v, "Ed") {
		t.Errorf("with values: %+v", shown.Item)
	}
	line := r.log.String()
	if !strings.Contains(line, `audit="show values"`) || !strings.Contains(line, "session=bpr4mi…") || !strings.Contains(line, "client=127.0.0.1:") || strings.Contains(line, id) {
		t.Errorf("audit line: %s", line)
	}
	r.set(shop, "odd", "no item")
	if shown := ask[ShownSession](r, "/api/session?app="+shopApp+"&id=odd"); shown.ItemError == "" || shown.Session.Bytes != 7 {
		t.Errorf("an item that cannot be decoded: %+v", shown)
	}
}

// An unlock hands the lock over to who waits for it.
func TestUnlock(t *testing.T) {
	r := newRig(t)
	r.set(shop, "a", "x")
	r.want(409, "POST", "/api/session/unlock", `{"app": "`+shopApp+`", "id": "a"}`, "not locked")
	first := r.lock(shop, "a")
	waiter := make(chan error, 1)
	go func() {
		item, err := r.admin.sessions.GetExclusive(context.Background(), now(), r.session(shop, "a"))
		if err == nil && item.LockCookie != first+1 {
			err = fmt.Errorf("cookie %d", item.LockCookie)
		}
		waiter <- err
	}()
	for r.admin.sessions.Waiting() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.want(409, "POST", "/api/session/unlock", `{"app": "`+shopApp+`", "id": "a", "lock_cookie": 77}`, "lock cookie 2")
	if r.admin.sessions.Waiting() != 1 {
		t.Error("another lock's cookie unlocks")
	}
	r.want(200, "POST", "/api/session/unlock", `{"application": "`+shop+`", "id": "a", "lock_cookie": 2}`, `"unlocked":true`, `"lock_cookie":2`)
	unlocked := time.Now()
	if err := <-waiter; err != nil {
		t.Errorf("the waiter: %v", err)
	}
	if took := time.Since(unlocked); took > 2*time.Second { // it would ask again by itself after lockWait, 5 s
		t.Errorf("the waiter got the lock only after %v", took)
	}
	if !strings.Contains(r.log.String(), "audit=unlock") {
		t.Errorf("no audit line:\n%s", r.log)
	}
}

func TestRemove(t *testing.T) {
	r := newRig(t)
	r.set(shop, "a", "x")
	r.set(shop, "b", "x")
	r.lock(shop, "b")
	for _, id := range []string{"a", "b"} {
		r.want(200, "DELETE", "/api/session?app="+shopApp+"&id="+id, "", `"removed":true`)
		r.want(404, "DELETE", "/api/session?app="+shopApp+"&id="+id, "", "no such session")
	}
	if n := strings.Count(r.log.String(), "audit=remove"); n != 2 {
		t.Errorf("%d audit lines:\n%s", n, r.log)
	}
	if n := r.admin.sessions.Metrics.Abandoned.Load(); n != 2 {
		t.Errorf("%d sessions abandoned", n)
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.set(shop, "a", "x")
	r.process.reload = func() ([]string, []string, error) {
		return nil, nil, errors.Join(errors.New("fault one"), errors.New("fault two"))
	}
	r.process.switchTo = func(string) error { return errors.New("no such database") }
	for _, test := range []struct {
		status             int
		method, path, body string
		says               string
	}{
		{404, "GET", "/api/nothing", "", "no /api/nothing"},
		{405, "POST", "/api/sessions", "{}", "takes GET"},
		{405, "GET", "/api/reload", "", "takes POST"},
		{405, "PUT", "/api/session", "{}", "DELETE and GET"},
		{400, "GET", "/api/sessions?order=age", "", "order"},
		{400, "GET", "/api/sessions?limit=0", "", "limit"},
		{400, "GET", "/api/sessions?limit=1001", "", "limit"},
		{400, "GET", "/api/sessions?locked=perhaps", "", "locked"},
		{400, "GET", "/api/sessions?after=xyz", "", "cursor"},
		{400, "GET", "/api/sessions?after=00000001", "", "cursor"},
		{400, "GET", "/api/sessions?order=size&after=00000001x", "", "order=key"},
		{400, "GET", "/api/sessions?app=zz", "", "eight hexadecimal"},
		{400, "GET", "/api/sessions?app=1&application=x", "", "give one"},
		{404, "GET", "/api/sessions?application=/none", "", "no such application"},
		{400, "GET", "/api/session?app=" + shopApp, "", "id is missing"},
		{400, "GET", "/api/session?id=a", "", "application is missing"},
		{400, "GET", "/api/session?app=" + shopApp + "&id=a&values=2x", "", "values"},
		{404, "GET", "/api/session?app=" + shopApp + "&id=b", "", "no such session"},
		{404, "GET", "/api/session?app=00000007&id=a", "", "no such session"},
		{400, "POST", "/api/session/unlock", "", "JSON object"},
		{400, "POST", "/api/session/unlock", `{"app": "` + shopApp + `", "id": "a", "cookie": 2}`, "cookie"},
		{400, "POST", "/api/session/unlock", `{"app": "` + shopApp + `"} {}`, "follows"},
		{413, "POST", "/api/session/unlock", `{"id": "` + strings.Repeat("x", 70<<10) + `"}`, "larger than"},
		{400, "GET", "/api/history?after=yesterday", "", "not a time"},
		{422, "POST", "/api/reload", "", `"faults":["fault one","fault two"]`},
		{400, "POST", "/api/switch", `{}`, "to is missing"},
		{422, "POST", "/api/switch", `{"to": "postgres://u:secret@db/x"}`, "no such database"},
	} {
		text := r.want(test.status, test.method, test.path, test.body, test.says)
		var p problem
		if json.Unmarshal([]byte(text), &p) != nil || p.Text == "" {
			t.Errorf("%s %s: no error in %s", test.method, test.path, text)
		}
	}
	if strings.Contains(r.log.String(), "secret") {
		t.Errorf("a password is logged:\n%s", r.log)
	}
	r.store.fail(errors.New("the disk is on fire"))
	for _, path := range []string{"/api/sessions", "/api/session?app=" + shopApp + "&id=a"} {
		r.want(503, "GET", path, "", "the disk is on fire")
	}
	r.want(503, "DELETE", "/api/session?app="+shopApp+"&id=a", "", "the disk is on fire")
	r.want(503, "POST", "/api/session/unlock", `{"app": "`+shopApp+`", "id": "a"}`, "the disk is on fire")
	r.store.fail(fmt.Errorf("not that one: %w", errors.ErrUnsupported))
	r.want(501, "GET", "/api/sessions", "", "not that one")
}

func TestReloadAndSwitch(t *testing.T) {
	r := newRig(t)
	r.process.reload = func() ([]string, []string, error) { return []string{"lockWait"}, nil, nil }
	r.want(200, "POST", "/api/reload", "", `{"changed":["lockWait"],"restart":[]}`)
	to := ""
	r.process.switchTo = func(where string) error { to = where; return nil }
	r.want(202, "POST", "/api/switch", `{"to": "env:DB"}`)
	if to != "env:DB" {
		t.Errorf("switched to %q", to)
	}
	r.process.switchTo = func(string) error { return errors.ErrUnsupported }
	r.want(501, "POST", "/api/switch", `{"to": "env:DB"}`)
}

func TestStatusAndApplications(t *testing.T) {
	r := newRig(t)
	if st := ask[Status](r, "/api/status"); st.Counted != nil || st.Sessions != nil {
		t.Errorf("counted before the first sample: %+v", st)
	}
	r.set(shop, "a", "12345")
	r.set(shop, "b", "12345")
	r.lock(shop, "a")
	r.sample()
	r.admin.sessions.Metrics.Request(server.TDS, server.OpGet, server.AnswerOK, time.Millisecond)
	st := ask[Status](r, "/api/status")
	if !st.Ready || st.Version != "v1" || *st.Sessions != 2 || *st.Locked != 1 || *st.Bytes != 10 || st.Pool == nil || *st.Pool != (Pool{4, 2}) ||
		st.Totals.Created != 2 || st.Totals.Requests != 1 || st.ConnectionsLimit != 100 || st.Sweeper.Interval != 60 || st.Switch != nil {
		t.Errorf("status: %+v", st)
	}
	apps := ask[Applications](r, "/api/applications")
	if len(apps.Applications) != 1 || apps.Applications[0] != (Application{shopApp, shop, 2, 1, 10}) || apps.Counted == nil {
		t.Errorf("applications: %+v", apps)
	}
}

func TestHealth(t *testing.T) {
	r := newRig(t)
	get := func(path string, status int, says string) {
		t.Helper()
		if got, _, text := r.send("GET", path, "", func(req *http.Request) { req.Host = "balancer.example" }); got != status || !strings.Contains(text, says) {
			t.Errorf("%s: %d %q, want %d %q", path, got, text, status, says)
		}
	}
	get("/livez", 200, "ok")
	get("/readyz", 200, "ok")
	r.admin.sessions.Drain()
	get("/readyz", 503, "draining")
	get("/livez", 200, "ok")
	if st := ask[Status](r, "/api/status"); st.Ready || !strings.Contains(st.NotReady, "draining") {
		t.Errorf("status while draining: %+v", st)
	}
}

// The listener serves on a socket, and stops.
func TestServeAndShutdown(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.admin.Serve(ln) }()
	resp, err := http.Get("http://" + ln.Addr().String() + "/livez")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	if err := r.admin.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
