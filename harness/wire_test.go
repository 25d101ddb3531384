//go:build unix

package harness

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

const appID = "/LM/W3SVC/1/ROOT/harness"

// wire asks a server.
type wire struct {
	t       testing.TB
	store   store // the server's
	address string
	conn    *client.Conn // nil when there is none
	// databaseFails says that the server's database is disturbed: then it answers a
	// ResetTimeout with 200 whatever comes of it.
	databaseFails bool
}

func (w *wire) ask(req request) (answer, bool) {
	if w.conn == nil {
		conn, err := w.store.dial(w.address)
		if err != nil {
			time.Sleep(time.Millisecond) // it will be refused for a while
			return answer{}, false
		}
		w.conn = conn
	}
	begun := time.Now()
	a, err := w.call(req)
	switch {
	case err != nil:
		w.conn.Close()
		w.conn = nil
		return answer{result: unknown}, req.verb != resetTimeout // whose effect is not seen here
	case req.verb == release && a.Status == 200 && time.Since(begun) > w.store.budget()/2:
		return answer{result: unknown}, true
	case req.verb == resetTimeout && w.databaseFails:
		return answer{}, false
	}
	ans := answer{mark: a.ActionFlags == 1, cookie: backends.Cookie(a.LockCookie)}
	switch a.Status {
	case 200:
	case 404:
		ans.result = missing
		return ans, true
	case 423:
		ans.result = locked
		return ans, true
	default:
		w.t.Errorf("%v was answered %q", req, a.StatusLine)
		return answer{}, false
	}
	switch {
	case req.verb == get || req.verb == getExclusive:
		ans.content, ans.timeout = content(w.t, a.Body), a.Timeout
		if req.verb == get {
			ans.cookie = untold
		}
	case req.condition == backends.IfMissing:
		ans.result = doneOrExists
	}
	return ans, true
}

func (w *wire) call(req request) (client.Answer, error) {
	target, cookie := client.Target(appID, req.key), max(0, int64(req.cookie))
	switch req.verb {
	case get:
		return w.conn.Get(target)
	case getExclusive:
		return w.conn.GetExclusive(target)
	case release:
		return w.conn.Release(target, cookie)
	case set:
		if req.condition == backends.IfMissing {
			return w.conn.SetUninitialized(target, data(req.content), req.timeout)
		}
		return w.conn.Set(target, data(req.content), req.timeout, cookie)
	case remove:
		return w.conn.Remove(target, cookie)
	default:
		return w.conn.ResetTimeout(target)
	}
}

// TestWire checks histories over the wire: with one server process, or two and three
// where the database can be shared.
func TestWire(t *testing.T) {
	for _, s := range stores {
		t.Run(s.name+"/undisturbed", func(t *testing.T) { several(t, rand.Uint64, often(1, 2), s, wireHistories) })
		t.Run(s.name+"/waiting for locks", func(t *testing.T) { several(t, rand.Uint64, often(1, 2), s, waitingHistories) })
		t.Run(s.name+"/clients disturbed", func(t *testing.T) { several(t, rand.Uint64, often(2, 3), s, disturbedClients) })
		if s.network {
			t.Run(s.name+"/database disturbed", func(t *testing.T) { several(t, rand.Uint64, often(2, 3), s, disturbedDatabase) })
		}
	}
}

func wireHistories(t *testing.T, s store, rng *rand.Rand) {
	servers := processes(t, s, 2, straight, "0s")
	for range 4 {
		wireHistory(t, s, servers, rng, nil, false)
	}
}

func waitingHistories(t *testing.T, s store, rng *rand.Rand) {
	servers := processes(t, s, 3, straight, "100ms")
	for range 2 {
		wireHistory(t, s, servers, rng, nil, false)
	}
}

func disturbedClients(t *testing.T, s store, rng *rand.Rand) {
	servers := processes(t, s, 2, straight, "20ms")
	var proxies []*proxy
	var addresses []string
	for _, address := range servers {
		p := newProxy(t, address)
		proxies = append(proxies, p)
		addresses = append(addresses, p.address)
	}
	accidents := newRand(rng.Uint64())
	for range 3 {
		wireHistory(t, s, addresses, rng, func() { proxies[accidents.IntN(len(proxies))].disturb(t, accidents, "client and server") }, false)
	}
}

func disturbedDatabase(t *testing.T, s store, rng *rand.Rand) {
	var p *proxy
	servers := processes(t, s, 2, func(address string) string {
		p = newProxy(t, address)
		return p.address
	}, "20ms")
	accidents := newRand(rng.Uint64())
	for range 3 {
		wireHistory(t, s, servers, rng, func() { p.disturb(t, accidents, "server and database") }, true)
	}
}

// processes starts the servers of a fresh database, as many as shared says if it can be, and returns their addresses.
func processes(t *testing.T, s store, shared int, via via, lockWait string) (addresses []string) {
	t.Helper()
	flags := append(s.flags(t, via), "--request-budget="+s.budget().String(), "--lock-wait="+lockWait, "--sweep-interval=1s")
	n := 1
	if s.shared {
		n = shared
	}
	for range n {
		addresses = append(addresses, serve(t, program, flags...).address)
	}
	return addresses
}

// wireClients are five clients of running servers, on two new sessions.
func wireClients(t *testing.T, s store, servers []string, rng *rand.Rand, history *recorder, databaseFails bool) (clients []*webServer) {
	id := transcript.NewID()
	keys := []string{id, strings.ToUpper(id)}
	for i := range 5 {
		w := &wire{t: t, store: s, address: servers[i%len(servers)], databaseFails: databaseFails}
		t.Cleanup(func() {
			if w.conn != nil {
				w.conn.Close()
			}
		})
		clients = append(clients, newWebServer(i, w, newRand(rng.Uint64()), history, keys, []time.Duration{20 * time.Minute, time.Hour}))
	}
	return clients
}

// wireHistory works on two new sessions of running servers, and disturbs the work now and then.
func wireHistory(t *testing.T, s store, servers []string, rng *rand.Rand, disturb func(), databaseFails bool) {
	t.Helper()
	history := newRecorder()
	clients := wireClients(t, s, servers, rng, history, databaseFails)
	stop := disturbed(history, newRand(rng.Uint64()), disturb)
	for i := 0; i < 8 || history.overlapping() < enough && i < 300; i++ {
		burst(clients, 5+rng.IntN(8), rng.IntN(2) == 0)
	}
	stop()
	m := &model{abandoned: history.abandoned()}
	forgets := databaseFails && s.forgetsBrokenLocks
	if forgets {
		m.writes = history.writes()
	}
	history.addGhosts(forgets)
	history.check(t, m)
}

// disturbed lets accidents happen, unless there are none, until the function that it returns is called or the history
// has enough operations of unknown outcome. Requests are answered between two accidents: else one long
// outage gives nothing but operations of unknown outcome.
func disturbed(history *recorder, rng *rand.Rand, accident func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	if accident != nil {
		wg.Go(func() {
			for ctx.Err() == nil && history.mayForget() {
				answered := history.answered.Load()
				accident()
				for ctx.Err() == nil && history.answered.Load() < answered+5 {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(time.Duration(rng.Int64N(int64(60 * time.Millisecond)))) // until the next accident
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// abandoned returns the locks of the Sets whose outcome the client does not know.
func (r *recorder) abandoned() map[lock]time.Duration {
	locks := map[lock]time.Duration{}
	for _, op := range r.ops {
		req := op.Input.(request)
		if req.verb == set && req.cookie > 0 && op.Output.(answer).result == unknown {
			at := lock{req.key, req.cookie}
			if called, ok := locks[at]; !ok || req.called < called {
				locks[at] = req.called
			}
		}
	}
	return locks
}

// writes returns when each content was being written.
func (r *recorder) writes() map[int]span {
	writes := map[int]span{}
	for _, op := range r.ops {
		if req := op.Input.(request); req.verb == set {
			writes[req.content] = span{req.called, op.Output.(answer).returned}
		}
	}
	return writes
}

// addGhosts adds the earlier steps that a request may have had. One that met a lock, or whose first answer was lost, took the mark away
// then, and reports it with its answer, unless the session is gone by then: where the store forgets, an earlier try of a GetExclusive may have taken the lock as
// well. Servers wait for 5 ms at least before they try again, other clients do not.
func (r *recorder) addGhosts(forgets bool) {
	for _, op := range slices.Clone(r.ops) {
		req, ans := op.Input.(request), op.Output.(answer)
		switch {
		case forgets && req.verb == getExclusive && (ans.tries > 1 || ans.tries == 0 && ans.returned-req.called >= 5*time.Millisecond):
			req.ghost = tryGhost
		case (req.verb == get || req.verb == getExclusive) && (ans.mark || ans.result == missing) && ans.tries != 1:
			req.ghost = markGhost
		case req.verb == getExclusive && ans.result == unknown:
			req.ghost = markGhost
		default:
			continue
		}
		op.Input, op.Output = req, answer{result: unknown, returned: ans.returned}
		r.ops = append(r.ops, op)
	}
}
