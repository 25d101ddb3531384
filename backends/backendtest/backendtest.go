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
}

// Run runs the suite. Each case opens a store of its own, which open closes at the end of
// the case through t.Cleanup; a case may have closed it already.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	t.Helper()
	groups := []struct {
		name  string
		cases []testCase
	}{
		{"Get", getCases},
		{"GetExclusive", getExclusiveCases},
		{"Release", releaseCases},
		{"Set", setCases},
		{"Remove", removeCases},
		{"Uninitialized", uninitializedCases},
		{"LockAge", lockAgeCases},
		{"Expiry", expiryCases},
		{"Renewal", renewalCases},
		{"DeleteExpired", sweepCases},
		{"Application", applicationCases},
		{"Identity", identityCases},
		{"Data", dataCases},
		{"Failure", failureCases},
		{"Token", tokenCases},
		{"Concurrency", concurrencyCases},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			for _, tc := range g.cases {
				t.Run(tc.name, func(t *testing.T) {
					f := open(t)
					tc.run(newSuite(t, f))
				})
			}
		})
	}
}

type testCase struct {
	name string
	run  func(s *suite)
}
