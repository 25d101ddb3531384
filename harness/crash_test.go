//go:build unix

package harness

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

const (
	// crashRounds is how often TestCrash kills the server of a database.
	crashRounds = 5
	// A round counts only if so much was acknowledged in the last second before the kill, and so
	// many locks were held.
	wantOverwrites = 500
	wantLocks      = 20
	// Where the database, or a machine that is busy with other things, does not get there in time, so
	// much must have been acknowledged in the round.
	slowOverwrites = 100
	inTime         = 10 * time.Second
	atMost         = 3 * time.Minute

	crashWorkers = 16
)

// TestCrash kills a server under load, again and again on one database, and looks for what it had
// acknowledged.
func TestCrash(t *testing.T) {
	for _, s := range stores {
		if s.durable {
			t.Run(s.name, func(t *testing.T) { several(t, rand.Uint64, 1, s, crashHistory) })
		}
	}
}

// entry is what the journal, which outlives the server, says of a session. It belongs to one worker.
type entry struct {
	target string
	newest int   // content of the newest acknowledged Set; 0 before the first
	cookie int64 // the greatest that was given out
	state  lockState
	doing  verb // the request under way at the time of the kill
	with   int  // the content that it would set
	busy   bool // a request is under way
}

// lockState is what is known of a session's lock.
type lockState uint8

const (
	unlocked lockState = iota // by an acknowledged Set, or never locked
	released                  // by an acknowledged Release, which a crash may undo
	held
)

// journal is what a test of crashes knows.
type journal struct {
	workers  [crashWorkers][]*entry
	contents atomic.Int64
	held     atomic.Int64

	mu         sync.Mutex
	overwrites []time.Time // acknowledged, of the running round
}

// acknowledged returns how many overwrites were acknowledged in the second before now, and in the round.
func (j *journal) acknowledged() (lastSecond, all int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	after := time.Now().Add(-time.Second)
	n := len(j.overwrites)
	for n > 0 && j.overwrites[n-1].After(after) {
		n--
	}
	return len(j.overwrites) - n, len(j.overwrites)
}

// crashHistory kills the server of one database, or all three where it can be shared, crashRounds times.
func crashHistory(t *testing.T, s store, rng *rand.Rand) {
	j := &journal{}
	for i := range j.workers {
		for range 8 {
			j.workers[i] = append(j.workers[i], &entry{target: client.Target(appID, transcript.NewID())})
		}
	}
	flags := append(s.flags(t, straight), "--lock-wait=0s")
	servers := make([]*process, 1)
	if s.shared {
		servers = make([]*process, 3)
	}
	start := func() {
		for i := range servers {
			servers[i] = serve(t, fastProgram, flags...)
		}
	}
	start()
	for round := 0; round < crashRounds && !t.Failed(); round++ {
		j.load(t, servers, rng)
		start()
		j.verify(t, servers)
	}
}

// load works until the servers are killed at a random moment.
func (j *journal) load(t *testing.T, servers []*process, rng *rand.Rand) {
	j.overwrites = nil
	var killed atomic.Bool
	var wg sync.WaitGroup
	for i := range j.workers {
		rng := newRand(rng.Uint64())
		wg.Go(func() {
			c, err := client.Dial(servers[i%len(servers)].address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j.work(t, c, j.workers[i], rng) {
			}
			if !killed.Load() {
				t.Error("a request failed before the server was killed")
			}
		})
	}
	begun := time.Now()
	moment := time.Second + time.Duration(rng.Int64N(int64(time.Second/2)))
	for {
		lastSecond, all := j.acknowledged()
		took, locks := time.Since(begun), j.held.Load()
		if took > moment && locks >= wantLocks && (lastSecond >= wantOverwrites || took > inTime && all >= slowOverwrites) {
			break
		}
		if took > atMost {
			t.Errorf("in %v %d overwrites were acknowledged and %d locks are held, want at least %d and %d", atMost, all, locks, slowOverwrites, wantLocks)
			break
		}
		time.Sleep(time.Millisecond) // the moment of the kill is random anyway
	}
	killed.Store(true)
	for _, server := range servers {
		server.kill()
	}
	lastSecond, all := j.acknowledged()
	wg.Wait()
	tally.crashes.Add(1)
	tally.faults.add("server killed under load")
	if testing.Verbose() {
		t.Logf("killed with %d overwrites acknowledged in the last second, %d in all, and %d locks held", lastSecond, all, j.held.Load())
	}
}

// work sends one request for one of the worker's sessions and writes down what becomes of it. It
// returns false if there was no answer.
func (j *journal) work(t *testing.T, c *client.Conn, sessions []*entry, rng *rand.Rand) bool {
	// The first sessions are mostly kept locked, the others are written.
	n := rng.IntN(len(sessions))
	keep := n < 2
	e := sessions[n]
	if keep && e.state == held && rng.IntN(50) > 0 {
		return true
	}
	e.busy = true
	var a client.Answer
	var err error
	switch {
	case e.newest == 0 || e.state != held && !keep && rng.IntN(2) == 0:
		e.doing, e.with = set, int(j.contents.Add(1))
		a, err = c.Set(e.target, data(e.with), time.Hour, 0)
	case e.state != held:
		e.doing = getExclusive
		a, err = c.GetExclusive(e.target)
	case rng.IntN(4) == 0:
		j.held.Add(-1)
		e.doing = release
		a, err = c.Release(e.target, e.cookie)
	default:
		j.held.Add(-1)
		e.doing, e.with = set, int(j.contents.Add(1))
		a, err = c.Set(e.target, data(e.with), time.Hour, e.cookie)
	}
	if err != nil {
		return false
	}
	e.busy = false
	tally.operations.Add(1)
	if a.Status != 200 {
		t.Errorf("%v was answered %q", e.doing, a.StatusLine)
		return false
	}
	switch e.doing {
	case set:
		if e.newest != 0 {
			j.mu.Lock()
			j.overwrites = append(j.overwrites, time.Now())
			j.mu.Unlock()
		}
		e.newest, e.state = e.with, unlocked
	case release:
		e.state = released
	case getExclusive:
		if e.newest != content(t, a.Body) || a.LockCookie <= e.cookie {
			t.Errorf("GetExclusive gives #%d and cookie %d after #%d and cookie %d", content(t, a.Body), a.LockCookie, e.newest, e.cookie)
		}
		e.cookie, e.state = a.LockCookie, held
		j.held.Add(1)
	}
	return true
}

// verify compares every session with the journal and leaves it unlocked.
func (j *journal) verify(t *testing.T, servers []*process) {
	var wg sync.WaitGroup
	for _, sessions := range j.workers {
		wg.Go(func() {
			var c [2]*client.Conn
			for i := range c {
				var err error
				if c[i], err = client.Dial(servers[i%len(servers)].address); err != nil {
					t.Error(err)
					return
				}
				defer c[i].Close()
			}
			for _, e := range sessions {
				if err := e.verify(t, c); err != nil {
					t.Errorf("after the crash: %v", err)
				}
			}
		})
	}
	wg.Wait()
	j.held.Store(0)
}

func (e *entry) verify(t *testing.T, c [2]*client.Conn) error {
	doing := e.doing
	if !e.busy {
		doing = get // nothing that matters
	}
	fail := func(format string, args ...any) {
		t.Helper()
		tally.violations.Add(1)
		t.Errorf("session with #%d, cookie %d, lock state %d, busy with %v of #%d: "+format,
			append([]any{e.newest, e.cookie, e.state, doing, e.with}, args...)...)
	}
	a, err := c[0].Get(e.target)
	if err != nil {
		return err
	}
	tally.operations.Add(1)
	if a.Status == 404 && e.newest == 0 {
		*e = entry{target: e.target}
		return nil
	}
	mustBeLocked := e.state == held && (!e.busy || doing == getExclusive)
	mayBeLocked := mustBeLocked || doing == getExclusive || e.state == released || e.state == held
	switch {
	case a.Status == 423 && mayBeLocked:
		newest := e.cookie
		if doing == getExclusive {
			newest = max(newest+1, 2) // the first lock of a session
		}
		if a.LockCookie != e.cookie && a.LockCookie != newest {
			fail("it is locked with cookie %d", a.LockCookie)
		}
		e.cookie = a.LockCookie
		if won, _, err := compete(c, e.target); err != nil || won != 0 {
			fail("%d got the lock that is held, %v", won, err)
		}
		if a, err = c[0].Release(e.target, e.cookie+1); err != nil || a.Status != 423 {
			fail("Release with another cookie was answered %q, %v", a.StatusLine, err)
		}
		if a, err = c[0].Release(e.target, e.cookie); err != nil || a.Status != 200 {
			fail("Release with the lock's cookie was answered %q, %v", a.StatusLine, err)
		}
	case a.Status != 200 || mustBeLocked:
		fail("Get was answered %q", a.StatusLine)
		return nil
	}
	won, a, err := compete(c, e.target)
	if err != nil || won != 1 {
		fail("%d of 2 got the lock, %v", won, err)
		return nil
	}
	if a.LockCookie <= e.cookie {
		fail("the next lock has cookie %d", a.LockCookie)
	}
	if got := content(t, a.Body); got != e.newest && (doing != set || got != e.with) {
		fail("it holds #%d", got)
	}
	*e = entry{target: e.target, newest: content(t, a.Body), cookie: a.LockCookie}
	if a, err = c[0].Set(e.target, a.Body, time.Hour, e.cookie); err != nil || a.Status != 200 {
		fail("Set under the new lock was answered %q, %v", a.StatusLine, err)
	}
	return nil
}

// compete sends a GetExclusive over each connection at once and returns how many got the lock, and the answer of
// one that did.
func compete(c [2]*client.Conn, target string) (won int, lock client.Answer, err error) {
	var answers [2]client.Answer
	var errs [2]error
	var wg sync.WaitGroup
	for i := range c {
		wg.Go(func() { answers[i], errs[i] = c[i].GetExclusive(target) })
	}
	wg.Wait()
	for i, a := range answers {
		tally.operations.Add(1)
		if errs[i] != nil {
			return 0, a, errs[i]
		}
		if a.Status == 200 {
			won++
			lock = a
		}
	}
	return won, lock, nil
}
