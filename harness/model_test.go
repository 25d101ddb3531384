//go:build unix

package harness

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"aspstate/backends"
)

// verb is an operation of a store.
type verb uint8

const (
	get verb = iota
	getExclusive
	release
	set
	remove
	resetTimeout
)

// request is what a client asks for. Instants are counted from the history's start.
type request struct {
	key       string
	verb      verb
	cookie    backends.Cookie    // for release, set and remove
	condition backends.Condition // for release, set and remove
	content   int                // for set; no two writes of a history have the same
	timeout   time.Duration      // for set
	mark      bool               // for set: Uninitialized
	called    time.Duration
	client    int
	// ghost makes it an earlier step of a request, which may have had no effect: only took the mark
	// away, to report it with the answer, or a whole try of a GetExclusive that the store may forget.
	ghost ghost
}

type ghost uint8

const (
	noGhost ghost = iota
	markGhost
	tryGhost
)

// answer is what a client was told, or what the model expects it to be told.
type answer struct {
	result   result
	content  int
	timeout  time.Duration
	cookie   backends.Cookie // untold where the protocol does not tell it
	mark     bool            // Uninitialized was reported
	returned time.Duration   // forever if the outcome is unknown
	tries    int             // of a client that tried again itself, else 0
	terse    bool            // the protocol tells no timeouts
}

type result uint8

const (
	done result = iota
	missing
	exists
	doneOrExists // the wire answers a SetUninitialized like this
	silent       // mode="SQLServer" does not say whether it is missing or has another cookie
	locked
	conflict
	unknown // the operation may take effect at any time from its call on, or never
)

const (
	untold  backends.Cookie = -2
	forever                 = time.Duration(math.MaxInt64)
)

// session is one state that a session may be in.
type session struct {
	exists  bool
	content int
	timeout time.Duration
	cookie  backends.Cookie
	locked  bool
	mark    bool
	orphan  bool // nobody was told of the lock: the server may release it at any time
	owed    uint // bit by client: it has taken the mark, and will report it with its answer
	// touchedFrom and touchedTo enclose the moment when the session was last renewed.
	touchedFrom, touchedTo time.Duration
	now                    time.Duration // everything from here on happens at or after it
}

// model is what MS-ASP (as the original server does it) and the contract of stores allow,
// for one session.
type model struct {
	// timed says that sessions may expire within the history. Otherwise none
	// may, and times are left out of the states.
	timed bool
	// margin is how much later than the contract allows a session may be found alive:
	// the resolution of the store's clock.
	margin time.Duration
	// abandoned are the locks of Sets whose outcome is unknown to a client of a
	// server: the server releases them if it gives the Set up. The value is when the
	// Set was called.
	abandoned map[lock]time.Duration
	// writes says when each content was being written, for a store that forgetsBrokenLocks;
	// else it is nil.
	writes map[int]span
}

// span is a time from, to.
type span struct{ from, to time.Duration }

type lock struct {
	key    string
	cookie backends.Cookie
}

// step returns the states in which a session in this state can be after the operation was
// answered so; none if that cannot be.
func (m *model) step(s session, req request, ans answer) (next []session) {
	if m.timed {
		s.now = max(s.now, req.called)
	}
	before := []session{s}
	if s.exists && s.locked {
		given, ok := m.abandoned[lock{req.key, s.cookie}]
		if s.orphan || ok && given <= ans.returned {
			s.locked, s.orphan = false, false
			before = append(before, s)
		}
	}
	for _, s := range before {
		if m.mayBeExpired(s, ans.returned) {
			next = m.try(next, session{now: s.now, owed: s.owed}, req, ans)
		}
		if m.mayBeThere(s) {
			if req.ghost != markGhost {
				next = m.try(next, s, req, ans)
			}
			if req.ghost != noGhost {
				next = append(next, s)
				if s.exists && s.mark {
					s.mark, s.owed = false, s.owed|1<<req.client
					next = append(next, s)
				}
			}
		}
	}
	return next
}

// mayBeExpired reports whether it is possible that a session's timeout is over at the moment of
// an operation that returned then.
func (m *model) mayBeExpired(s session, returned time.Duration) bool {
	if !m.timed || !s.exists || s.timeout == backends.NeverExpires {
		return false
	}
	return returned-s.touchedFrom > s.timeout
}

// mayBeThere reports whether a session need not have expired yet. A missing one is there as
// what it is.
func (m *model) mayBeThere(s session) bool {
	if !m.timed || !s.exists || s.timeout == backends.NeverExpires {
		return true
	}
	return s.now-s.touchedTo <= s.timeout+slack(s.timeout)+m.margin
}

// slack is how much later than its timeout a session may expire. It is not backends.Slack,
// which is judged as well.
func slack(timeout time.Duration) time.Duration { return min(timeout/20, time.Minute) }

// try appends the state after the operation, if the answer fits.
func (m *model) try(next []session, s session, req request, ans answer) []session {
	owed := req.ghost == noGhost && s.owed&(1<<req.client) != 0
	s, want := m.apply(s, req, ans)
	if ans.terse {
		want.timeout = 0
	}
	if owed {
		s.owed &^= 1 << req.client
		want.mark = want.result != missing
	}
	switch {
	case ans.result == unknown:
	case ans.result == doneOrExists && (want.result == done || want.result == exists):
	case ans.result == silent && (want.result == missing || want.result == conflict):
	case ans.result != want.result:
		return next
	case ans.mark != want.mark:
		return next
	case (ans.content != want.content || ans.timeout != want.timeout) && !m.isLater(req, ans, want):
		return next
	case ans.cookie != untold && ans.cookie != want.cookie:
		return next
	}
	return append(next, s)
}

// isLater reports whether the answer may be one of a GetExclusive that was tried again, with an item that
// was written since the first try.
func (m *model) isLater(req request, ans, want answer) bool {
	write, ok := m.writes[ans.content]
	return ok && req.verb == getExclusive && want.content != 0 && write.to >= req.called && write.from <= ans.returned
}

// apply carries the operation out on a state in which the session is what it says, and returns
// the answer to expect.
func (m *model) apply(s session, req request, ans answer) (session, answer) {
	if !s.exists {
		if req.verb != set || req.condition == backends.IfCookie {
			return s, answer{result: missing}
		}
		s = session{exists: true, content: req.content, timeout: req.timeout, cookie: 1, mark: req.mark, now: s.now, owed: s.owed}
		return m.touch(s, req, ans), answer{}
	}
	if req.condition == backends.IfCookie && req.cookie != s.cookie {
		return s, answer{result: conflict} // and not renewed either
	}
	s = m.touch(s, req, ans)
	mark := false
	switch req.verb {
	case get, getExclusive, release:
		if req.condition != backends.IfCookie {
			mark, s.mark = s.mark, false
		}
	}
	refused := answer{result: locked, cookie: s.cookie, mark: mark}
	foreign := s.locked && req.cookie != s.cookie
	switch req.verb {
	case get, getExclusive:
		if s.locked {
			return s, refused
		}
		if req.verb == getExclusive {
			s.locked = true
			s.orphan = ans.result == unknown && m.abandoned != nil
			s.cookie++
		}
		return s, answer{content: s.content, timeout: s.timeout, cookie: s.cookie, mark: mark}
	case release:
		if foreign {
			return s, refused
		}
		s.locked, s.orphan = false, false
		return s, answer{mark: mark}
	case set:
		if req.condition == backends.IfMissing {
			return s, answer{result: exists}
		}
		if foreign {
			return s, refused
		}
		s.content, s.locked, s.orphan = req.content, false, false
		if s.timeout != req.timeout {
			s.timeout, s.mark = req.timeout, s.mark && req.condition == backends.IfCookie
		}
		return s, answer{}
	case remove:
		if foreign {
			return s, refused
		}
		return session{now: s.now, owed: s.owed}, answer{}
	default: // resetTimeout
		return s, answer{}
	}
}

// touch renews the session. Its time counts from some moment within the call: a store reads its clock before it commits, and
// what it has not committed others do not see.
func (m *model) touch(s session, req request, ans answer) session {
	if m.timed {
		s.touchedFrom, s.touchedTo = req.called, ans.returned
	}
	return s
}

// porcupine is the model for histories of several sessions.
func (m *model) porcupine() porcupine.Model {
	nm := porcupine.NondeterministicModel{
		Partition: bySession,
		Init:      func() []any { return []any{session{}} },
		Step: func(state, input, output any) (next []any) {
			for _, s := range m.step(state.(session), input.(request), output.(answer)) {
				next = append(next, s)
			}
			return next
		},
		DescribeOperation: func(input, output any) string {
			return fmt.Sprintf("%v: %v", input.(request), output.(answer))
		},
		DescribeState: func(state any) string { return state.(session).String() },
	}
	return nm.ToModel()
}

func bySession(history []porcupine.Operation) (parts [][]porcupine.Operation) {
	of := map[string][]porcupine.Operation{}
	for _, op := range history {
		key := op.Input.(request).key
		of[key] = append(of[key], op)
	}
	for _, ops := range of {
		parts = append(parts, ops)
	}
	// So that a history's parts stand in the same order every time.
	slices.SortFunc(parts, func(a, b []porcupine.Operation) int {
		return cmp.Compare(a[0].Input.(request).key, b[0].Input.(request).key)
	})
	return parts
}

func (v verb) String() string {
	return [...]string{"Get", "GetExclusive", "Release", "Set", "Remove", "ResetTimeout"}[v]
}

func (r request) String() string {
	switch r.ghost {
	case tryGhost:
		return r.verb.String() + " (an earlier try)"
	case markGhost:
		return r.verb.String() + " (an earlier step)"
	}
	switch r.verb {
	case release, remove:
		return fmt.Sprintf("%v(cookie %d, %s)", r.verb, r.cookie, conditions[r.condition])
	case set:
		return fmt.Sprintf("%v(#%d, timeout %v, cookie %d, %s, mark %t)", r.verb, r.content, r.timeout, r.cookie, conditions[r.condition], r.mark)
	}
	return r.verb.String()
}

var conditions = [...]string{backends.IfUnlocked: "IfUnlocked", backends.IfCookie: "IfCookie", backends.IfMissing: "IfMissing"}

func (a answer) String() string {
	text := [...]string{"done", "missing", "exists", "done or exists", "silent", "locked", "conflict", "unknown"}[a.result]
	if a.content != 0 {
		text += fmt.Sprintf(" #%d, timeout %v", a.content, a.timeout)
	}
	if a.cookie > 0 {
		text += fmt.Sprintf(", cookie %d", a.cookie)
	}
	if a.mark {
		text += ", uninitialized"
	}
	return text
}

func (s session) String() string {
	if !s.exists {
		return "missing"
	}
	text := fmt.Sprintf("#%d, timeout %v, cookie %d", s.content, s.timeout, s.cookie)
	if s.locked {
		text += ", locked"
	}
	if s.orphan {
		text += " (nobody was told)"
	}
	if s.mark {
		text += ", uninitialized"
	}
	if s.owed != 0 {
		text += fmt.Sprintf(", mark taken by clients %b", s.owed)
	}
	if s.touchedTo != 0 {
		text += fmt.Sprintf(", touched between %v and %v", s.touchedFrom, s.touchedTo)
	}
	return text
}
