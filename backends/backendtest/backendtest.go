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
// the case through t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	t.Helper()
}
