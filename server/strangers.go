package server

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// A farm whose nodes call one application differently loses sessions: each node looks for them where the others do not put
// them. That shows as a session ID that is missing in one application and there in another whose name differs in nothing
// but site number or letter case.

// strangers finds such applications, and says so once for each pair.
type strangers struct {
	last atomic.Int64 // when it was looked, in Unix nanoseconds

	mu   sync.Mutex
	told map[[2]string]struct{}
}

const (
	lookEvery = 100 * time.Millisecond
	maxTold   = 1000
)

var (
	siteNumber = regexp.MustCompile(`(^|/)w3svc/[0-9]+(/|$)`)
	keyedHash  = regexp.MustCompile(`\([^()]*\)/$`)
)

// family is what the names of one application have in common on all nodes of a farm.
func family(name string) string {
	name = keyedHash.ReplaceAllString(strings.ToLower(name), "")
	return siteNumber.ReplaceAllString(name, "${1}w3svc/*$2")
}

// lookForStranger looks for a session that was missing under the names that other nodes of a broken farm would use.
func (s *Sessions) lookForStranger(ctx context.Context, session Session) {
	store, ok := s.Store().(backends.Inspector)
	now, last := time.Now().UnixNano(), s.strangers.last.Load()
	if !ok || now-last < int64(lookEvery) || !s.strangers.last.CompareAndSwap(last, now) {
		return
	}
	for _, other := range s.relatives(session.App.Name) {
		pair := [2]string{min(session.App.Name, other), max(session.App.Name, other)}
		s.strangers.mu.Lock()
		_, told := s.strangers.told[pair]
		s.strangers.mu.Unlock()
		if told {
			continue
		}
		id, err := s.Store().Application(ctx, other, false)
		if err == nil {
			_, err = store.Inspect(ctx, backends.Key{App: id, ID: session.ID})
		}
		if err != nil {
			if !errors.Is(err, backends.ErrNotFound) {
				return
			}
			continue
		}
		s.strangers.mu.Lock()
		if s.strangers.told == nil || len(s.strangers.told) >= maxTold {
			s.strangers.told = make(map[[2]string]struct{})
		}
		s.strangers.told[pair] = struct{}{}
		s.strangers.mu.Unlock()
		s.log.Warn("one session ID is in use by two applications whose names differ only in site number or letter case: "+
			"if they are one application of a farm, its users lose their sessions; list both names in applications to join them",
			"application", session.App.Name, "other", other, "session", backends.ShortID(session.ID))
	}
}

// relatives are the other known applications of the same family.
func (s *Sessions) relatives(name string) (names []string) {
	of := family(name)
	a := &s.applications
	a.mu.RLock()
	defer a.mu.RUnlock()
	for other, app := range a.known {
		if app.family == of && other != name {
			names = append(names, other)
		}
	}
	return names
}
