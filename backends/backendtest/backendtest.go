// Package backendtest is the conformance suite that every session-state store
// passes. A store's own test is a caller of a few lines.
package backendtest

import (
	"testing"
	"time"

	"aspstate/backends"
)

// Fixture is an empty store under test.
type Fixture struct {
	Store backends.Store
	// Backdate makes a session d older than it is: its creation, its expiry and
	// its lock move into the past by d, as if d had gone by without a touch.
	Backdate func(t testing.TB, key backends.Key, d time.Duration)
	// Beside opens the same store once more, as another process does; nil where one
	// process owns it.
	Beside func(t testing.TB) backends.Store
	// Collides says that the store refuses an application whose number another one has, as ASPState
	// does, instead of giving it the next.
	Collides bool
}

// Run runs the suite. Each case opens a store of its own, which open closes at the end of
// the case through t.Cleanup; a case may have closed it already. Some cases open a second one. What
// only some stores implement (Inspector, Movable, SharedMovable) is tested where it is.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	t.Helper()
	groups := []struct {
		name  string
		cases []testCase
		in    func(backends.Store) bool // whether the store has it; nil: all have
	}{
		{"Get", getCases, nil},
		{"GetExclusive", getExclusiveCases, nil},
		{"Release", releaseCases, nil},
		{"Set", setCases, nil},
		{"Remove", removeCases, nil},
		{"Uninitialized", uninitializedCases, nil},
		{"LockAge", lockAgeCases, nil},
		{"Expiry", expiryCases, nil},
		{"Renewal", renewalCases, nil},
		{"Unread", unreadCases, nil},
		{"DeleteExpired", sweepCases, nil},
		{"Application", applicationCases, nil},
		{"Identity", identityCases, nil},
		{"Data", dataCases, nil},
		{"Failure", failureCases, nil},
		{"Token", tokenCases, nil},
		{"Concurrency", concurrencyCases, nil},
		{"Inspector", inspectorCases, implements[backends.Inspector]},
		{"Leave", leaveCases, implements[backends.Movable]},
		{"Import", importCases, implements[backends.Movable]},
		{"Move", moveCases, implements[backends.Movable]},
		{"SharedMovable", sharedMovableCases, implements[backends.SharedMovable]},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, tc := range g.cases {
				t.Run(tc.name, func(t *testing.T) {
					s := newSuite(t, open)
					if g.in != nil && !g.in(s.Store) {
						t.Skip("the store does not implement this")
					}
					tc.run(s)
				})
			}
		})
	}
}

type testCase struct {
	name string
	run  func(s *suite)
}

func implements[T any](store backends.Store) bool {
	_, ok := store.(T)
	return ok
}
