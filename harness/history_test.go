//go:build unix

package harness

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"aspstate/backends"
)

const (
	// enough is how many overlapping operations on one session a history must have.
	enough = 100
	// decideWithin is how long porcupine may think about a history. What it has not decided by
	// then has not passed.
	decideWithin = time.Minute
	// maxUnknown bounds the operations of a history whose outcome is unknown: each doubles
	// what porcupine has to try.
	maxUnknown = 10
)

// asker carries out the requests of one client.
type asker interface {
	// ask returns the answer without its time. ok is false if the request was certainly not carried
	// out, and is none of the history.
	ask(req request) (ans answer, ok bool)
}

// recorder writes a history down.
type recorder struct {
	begun    time.Time
	contents atomic.Int64
	unknown  atomic.Int64
	answered atomic.Int64

	mu  sync.Mutex
	ops []porcupine.Operation
}

func newRecorder() *recorder { return &recorder{begun: time.Now()} }

func (r *recorder) now() time.Duration { return time.Since(r.begun) }

// mayForget reports whether one more operation may have an unknown outcome.
func (r *recorder) mayForget() bool { return r.unknown.Load() < maxUnknown }

// do has the request carried out, between meet and the answer, and writes it down.
func (r *recorder) do(client int, a asker, req request, meet func()) answer {
	req.called, req.client = r.now(), client
	meet()
	ans, ok := a.ask(req)
	ans.returned = r.now()
	if !ok {
		return ans
	}
	tally.operations.Add(1)
	if ans.result == unknown {
		r.unknown.Add(1)
		ans.returned = forever
	} else {
		r.answered.Add(1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{
		ClientId: client, Input: req, Call: int64(req.called), Output: ans, Return: int64(ans.returned),
	})
	return ans
}

// overlapping returns how many operations on the busiest session ran while another one did, on the
// same session. Those of unknown outcome do not count.
func (r *recorder) overlapping() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	most := 0
	for _, ops := range bySession(r.ops) {
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		overlaps := make([]bool, len(ops))
		last := -1 // the one that returns last of those before i
		for i, op := range ops {
			if op.Output.(answer).result == unknown {
				continue
			}
			if last >= 0 && ops[last].Return >= op.Call {
				overlaps[i], overlaps[last] = true, true
			}
			if last < 0 || op.Return > ops[last].Return {
				last = i
			}
		}
		n := 0
		for _, o := range overlaps {
			if o {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// check fails the test unless the history is one that the model allows.
func (r *recorder) check(t testing.TB, m *model) {
	t.Helper()
	if n := r.overlapping(); n < enough {
		t.Errorf("only %d operations overlap on one session, want %d: this history proves little", n, enough)
	}
	r.mu.Lock()
	ops := slices.Clone(r.ops)
	r.mu.Unlock()
	if last := r.now(); !m.timed && last > 10*time.Minute { // the shortest timeout is 20
		t.Fatalf("the history took %v: its sessions may have expired", last)
	}
	// Porcupine wants every operation to return.
	end := int64(r.now())
	for i := range ops {
		ops[i].Return = min(ops[i].Return, end)
	}
	tally.histories.Add(1)
	checked := m.porcupine()
	result, info := porcupine.CheckOperationsVerbose(checked, ops, decideWithin)
	if result == porcupine.Ok {
		return
	}
	if result == porcupine.Unknown {
		t.Errorf("porcupine did not decide within %v on a history of %d operations, %d of them with unknown outcome",
			decideWithin, len(ops), r.unknown.Load())
		return
	}
	tally.violations.Add(1)
	path := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d.html", strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()), r.begun.UnixNano()))
	if err := porcupine.VisualizePath(checked, info, path); err != nil {
		path = err.Error()
	}
	t.Errorf("a history of %d operations cannot be explained (see %s)%s", len(ops), path, stuckAt(info, ops))
}

// stuckAt describes where the explanation of a history ends: what could be explained last, and what
// was under way then.
func stuckAt(info porcupine.LinearizationInfo, ops []porcupine.Operation) string {
	var text strings.Builder
	whole := map[string]int{}
	for _, op := range ops {
		whole[op.Input.(request).key]++
	}
	for _, explanations := range info.PartialLinearizationsOperations() {
		var longest []porcupine.Operation
		for _, e := range explanations {
			if len(e) > len(longest) {
				longest = e
			}
		}
		if len(longest) == 0 {
			continue
		}
		key := longest[0].Input.(request).key
		if len(longest) == whole[key] {
			continue
		}
		explained := map[porcupine.Operation]bool{}
		fmt.Fprintf(&text, "\nsession %s, %d of %d operations explained, the last:", key, len(longest), whole[key])
		line := func(op porcupine.Operation) {
			fmt.Fprintf(&text, "\n  client %d [%v, %v] %v: %v", op.ClientId, time.Duration(op.Call), time.Duration(op.Return), op.Input, op.Output)
		}
		for i, op := range longest {
			explained[op] = true
			if i >= len(longest)-8 {
				line(op)
			}
		}
		text.WriteString("\nand then one of these, which none can be:")
		left := 0
		for _, op := range ops {
			if op.Input.(request).key == key && !explained[op] && left < 8 {
				line(op)
				left++
			}
		}
	}
	return text.String()
}

// webServer is what a web server remembers of its sessions, and chooses its next request.
type webServer struct {
	number   int
	asker    asker
	rng      *rand.Rand
	history  *recorder
	keys     []string
	timeouts []time.Duration
	// conditions says that the client may use IfCookie and tell a creation from an existing session,
	// which the wire does not offer.
	conditions bool
	// ifCookie says that all the client's changes are under this condition, as those of mode="SQLServer" are.
	ifCookie bool

	held map[string]backends.Cookie // locks that this client was given
	seen map[string]backends.Cookie // the latest lock that it heard of
}

func newWebServer(number int, a asker, rng *rand.Rand, history *recorder, keys []string, timeouts []time.Duration) *webServer {
	return &webServer{
		number: number, asker: a, rng: rng, history: history, keys: keys, timeouts: timeouts,
		held: map[string]backends.Cookie{}, seen: map[string]backends.Cookie{},
	}
}

// next chooses a request: mostly what web servers do, sometimes what they ought not to.
func (c *webServer) next() request {
	req := request{key: c.keys[c.rng.IntN(len(c.keys))], cookie: backends.NoCookie}
	if len(c.held) > 0 && c.rng.IntN(3) > 0 { // end what was begun
		req.key = slices.Sorted(maps.Keys(c.held))[c.rng.IntN(len(c.held))]
	}
	held, holds := c.held[req.key]
	switch n := c.rng.IntN(100); {
	case holds && n < 40:
		req.verb, req.cookie = set, held
	case holds && n < 60:
		req.verb, req.cookie = release, held
	case holds && n < 64:
		req.verb, req.cookie = remove, held
	case n < 55:
		req.verb = getExclusive
	case n < 68:
		req.verb = get
	case n < 76:
		req.verb, req.cookie = release, c.anyCookie(req.key)
	case n < 84:
		req.verb, req.cookie = set, c.anyCookie(req.key)
	case n < 91:
		req.verb, req.condition, req.mark, req.cookie = set, backends.IfMissing, true, 0
	case n < 94:
		req.verb, req.cookie = remove, c.anyCookie(req.key)
	default:
		req.verb = resetTimeout
	}
	if req.verb == set {
		req.content = int(c.history.contents.Add(1))
		req.timeout = c.timeouts[c.rng.IntN(len(c.timeouts))]
	}
	if req.condition == backends.IfUnlocked && (req.verb == release || req.verb == set || req.verb == remove) && (c.ifCookie || c.conditions && c.rng.IntN(4) == 0) {
		req.condition = backends.IfCookie
	}
	return req
}

// anyCookie is the cookie of the latest lock that the client heard of, of an older one, or of none.
func (c *webServer) anyCookie(key string) backends.Cookie {
	seen := c.seen[key]
	switch c.rng.IntN(6) {
	case 0:
		return 0
	case 1:
		return max(0, seen-1)
	case 2:
		return seen + 1
	default:
		return seen
	}
}

// work carries out one request.
func (c *webServer) work(meet func()) {
	req := c.next()
	ans := c.history.do(c.number, c.asker, req, meet)
	if ans.cookie > 0 {
		c.seen[req.key] = ans.cookie
	}
	switch {
	case req.verb == getExclusive && ans.result == done:
		c.held[req.key] = ans.cookie
	case req.verb == release || req.verb == set || req.verb == remove || ans.result == missing:
		delete(c.held, req.key)
	}
}

// meeting is where clients wait for each other, for a moment, so that their operations race.
type meeting struct {
	expected int64
	arrived  atomic.Int64
}

func (m *meeting) wait() {
	m.arrived.Add(1)
	for begun := time.Now(); m.arrived.Load() < m.expected && time.Since(begun) < 300*time.Microsecond; {
		runtime.Gosched()
	}
}

func alone() {}

// burst lets the clients work at the same time, each with some requests.
func burst(clients []*webServer, requests int, race bool) {
	meetings := make([]meeting, requests)
	for i := range meetings {
		meetings[i].expected = int64(len(clients))
	}
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for i := range meetings {
				if race {
					c.work(meetings[i].wait)
				} else {
					c.work(alone)
				}
			}
		})
	}
	wg.Wait()
}
