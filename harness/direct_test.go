//go:build unix

package harness

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
)

// direct asks a store.
type direct struct {
	t       testing.TB
	store   backends.Store
	app     backends.AppID
	rng     *mathrand.Rand
	history *recorder
	// impatient gives calls too little time now and then, tries again with the same token, and gives
	// some up, so that their outcome is unknown.
	impatient bool
}

func newDirect(t testing.TB, s backends.Store, rng *mathrand.Rand, history *recorder, impatient bool) *direct {
	t.Helper()
	app, err := s.Application(t.Context(), "/lm/w3svc/1/root", true)
	for try := 0; !backends.IsAnswer(err) && try < 100; try++ {
		app, err = s.Application(t.Context(), "/lm/w3svc/1/root", true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &direct{t: t, store: s, app: app, rng: rng, history: history, impatient: impatient}
}

func (d *direct) ask(req request) (answer, bool) {
	var tok backends.Token
	rand.Read(tok[:])
	lost := false // an earlier try may have been applied, or may still be
	begun := time.Now()
	for tries := 1; ; tries++ {
		patience := 10 * time.Second
		if d.impatient && d.rng.IntN(5) == 0 {
			patience = mathrand.N(2 * time.Millisecond)
			tally.faults.add("deadline of a store's call cut short")
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		ans, err := d.call(ctx, tok, req)
		cancel()
		if backends.IsAnswer(err) {
			ans.tries = tries
			return ans, true
		}
		if !d.impatient {
			d.t.Errorf("%v: %v", req, err)
			return answer{}, false
		}
		if time.Since(begun) > 2*time.Minute {
			d.t.Errorf("%v fails in every try: %v", req, err)
			return answer{}, false
		}
		lost = lost || !errors.Is(err, backends.ErrNotApplied)
		if d.rng.IntN(3) > 0 {
			continue
		}
		if !lost {
			return answer{}, false
		}
		if d.history.mayForget() {
			return answer{result: unknown}, true
		}
	}
}

// call carries out one try and turns its answer into the model's.
func (d *direct) call(ctx context.Context, tok backends.Token, req request) (ans answer, err error) {
	key := backends.Key{App: d.app, ID: req.key}
	var item backends.Item
	switch req.verb {
	case get:
		item, err = d.store.Get(ctx, key, tok)
	case getExclusive:
		item, err = d.store.GetExclusive(ctx, key, tok)
	case release:
		ans.mark, err = d.store.Release(ctx, key, tok, req.cookie, req.condition)
	case set:
		w := backends.Write{Data: data(req.content), Timeout: req.timeout, LockCookie: req.cookie, Condition: req.condition, Uninitialized: req.mark}
		err = d.store.Set(ctx, key, tok, w)
	case remove:
		err = d.store.Remove(ctx, key, tok, req.cookie, req.condition)
	default:
		err = d.store.ResetTimeout(ctx, key)
	}
	if err == nil && (req.verb == get || req.verb == getExclusive) {
		ans = answer{content: content(d.t, item.Data), timeout: item.Timeout, cookie: item.LockCookie, mark: item.Uninitialized}
	}
	if l, ok := errors.AsType[*backends.LockedError](err); ok {
		return answer{result: locked, cookie: l.Cookie, mark: l.Uninitialized}, err
	}
	for _, refusal := range []struct {
		error
		result
	}{{backends.ErrNotFound, missing}, {backends.ErrExists, exists}, {backends.ErrConflict, conflict}} {
		if errors.Is(err, refusal.error) {
			return answer{result: refusal.result}, err
		}
	}
	if err != nil && backends.IsAnswer(err) {
		d.t.Errorf("%v: %v", req, err)
	}
	return ans, err
}

// data is the content of a session that can be told from all others: its number, and a length and
// filling that follow from it.
func data(content int) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(content))
	return append(b, bytes.Repeat([]byte{byte(content)}, content*content*37%9000)...)
}

// content is data's inverse. It fails the test if the data are not as they were written.
func content(t testing.TB, b []byte) int {
	if len(b) < 8 {
		t.Errorf("a session has %d bytes that nobody wrote", len(b))
		return -1
	}
	n := int(binary.BigEndian.Uint64(b))
	if n <= 0 || !bytes.Equal(b, data(n)) {
		t.Errorf("a session has %d bytes that nobody wrote: %x…", len(b), b[:8])
		return -1
	}
	return n
}

// TestDirect checks histories on a store itself.
func TestDirect(t *testing.T) {
	for _, s := range stores {
		if !s.wholeMinutes {
			t.Run(s.name+"/expiring", func(t *testing.T) { several(t, mathrand.Uint64, often(5, 10), s, expiringHistory) })
		}
		t.Run(s.name+"/impatient", func(t *testing.T) { several(t, mathrand.Uint64, often(3, 6), s, impatientHistory) })
	}
}

// scenario is a test of a store that draws on a seed.
type scenario func(t *testing.T, s store, rng *mathrand.Rand)

// thorough is set for make test-all and the mutants.
var thorough = os.Getenv("ASPSTATE_TEST_LONG") != ""

// often returns how many times to run a scenario: few times in make test, many in the long tests.
func often(few, many int) int {
	if thorough {
		return many
	}
	return few
}

// several runs a scenario n times at once.
func several(t *testing.T, seeds func() uint64, n int, s store, run scenario) {
	for range n {
		seed := seeds()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			run(t, s, newRand(seed))
		})
	}
}

func newRand(seed uint64) *mathrand.Rand { return mathrand.New(mathrand.NewPCG(seed, 0)) }

// expiringHistory works on few sessions with short timeouts, in bursts with pauses between them
// which some sessions outlive.
func expiringHistory(t *testing.T, s store, rng *mathrand.Rand) {
	history := newRecorder()
	timeouts := []time.Duration{30 * time.Millisecond, 30 * time.Millisecond, 50 * time.Millisecond, 80 * time.Millisecond, backends.NeverExpires}
	clients := directClients(t, s, rng, history, straight, timeouts, false)
	defer sweep(t, clients, newRand(rng.Uint64()))()
	for i := 0; i < 24 || history.overlapping() < enough && i < 300; i++ {
		if rng.IntN(2) == 0 {
			burst(clients[:1+rng.IntN(2)], 1, false)
		} else {
			burst(clients, 2+rng.IntN(8), true)
		}
		time.Sleep(pause(rng, timeouts[rng.IntN(len(timeouts)-1)])) // time that sessions spend untouched
	}
	history.check(t, &model{timed: true, margin: s.resolution + time.Millisecond})
}

// pause is a time around the end of a session that is not touched in it.
func pause(rng *mathrand.Rand, timeout time.Duration) time.Duration {
	part := func(from, to float64) time.Duration {
		return time.Duration((from + (to-from)*rng.Float64()) * float64(timeout))
	}
	switch rng.IntN(6) {
	case 0:
		return part(0, 0.2)
	case 1:
		return timeout + slack(timeout) + part(0, 0.3)
	case 2:
		return part(1, 1.8)
	default:
		return part(0.5, 1)
	}
}

// sweep deletes expired sessions at random moments until the function that it returns is called.
func sweep(t testing.TB, clients []*webServer, rng *mathrand.Rand) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(rng.Int64N(int64(20 * time.Millisecond)))):
			}
			d := clients[rng.IntN(len(clients))].asker.(*direct)
			if _, err := d.store.DeleteExpired(context.Background(), 1+rng.IntN(5)); err != nil {
				t.Errorf("DeleteExpired: %v", err)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// impatientHistory works on sessions that do not expire, with calls that end too early; where the
// database is on the network, its connections are disturbed as well.
func impatientHistory(t *testing.T, s store, rng *mathrand.Rand) {
	history := newRecorder()
	way, disturb := straight, (func())(nil)
	if s.network {
		way = func(address string) string {
			p, accidents := newProxy(t, address), newRand(rng.Uint64())
			disturb = func() { p.disturb(t, accidents, "store and database") }
			return p.address
		}
	}
	clients := directClients(t, s, rng, history, way, []time.Duration{20 * time.Minute, time.Hour}, true)
	stop := disturbed(history, newRand(rng.Uint64()), disturb)
	for i := 0; i < 12 || history.overlapping() < enough && i < 300; i++ {
		burst(clients, 5+rng.IntN(10), rng.IntN(2) == 0)
	}
	stop()
	m := &model{}
	if s.forgetsBrokenLocks {
		m.writes = history.writes()
		history.addGhosts(true)
	}
	history.check(t, m)
}

// twoKeys are the sessions of a history on a fresh store.
var twoKeys = []string{"bpr4mimb2vjnvtn2jc4yp3uo", "BPR4mimb2vjnvtn2jc4yp3uo"}

// directClients are five clients of a fresh store, or of two that share a database.
func directClients(t *testing.T, s store, rng *mathrand.Rand, history *recorder, via via, timeouts []time.Duration, impatient bool) []*webServer {
	opens := 1
	if s.shared {
		opens = 2
	}
	open := s.open(t, opens, via)
	var clients []*webServer
	for i := range 5 {
		c := newWebServer(i, nil, newRand(rng.Uint64()), history, twoKeys, timeouts)
		c.asker = newDirect(t, open[i%len(open)], newRand(rng.Uint64()), history, impatient)
		c.conditions = true
		clients = append(clients, c)
	}
	return clients
}
