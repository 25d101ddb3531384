package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"aspstate/backends"
)

// Quotas bound what one application can put into the store, so that it cannot fill it for the others. Nothing is counted
// for a request: an application has as many sessions as the sampler counted last, and those more that this server has created since. What
// other servers create between two counts is not seen, so that a quota can be passed by as many.

// Quota is what one application may have in the store.
type Quota struct {
	Item     int64 // bytes of an item, 0 for any number
	Sessions int   // 0 for any number
}

// Quotas are the quotas of all applications.
type Quotas struct {
	Each Quota
	// Single are other quotas of single applications, by app id in lower case or by the name of their alias.
	Single map[string]Quota
}

// of returns the quota of the application of this name.
func (q *Quotas) of(application string) Quota {
	for _, name := range []string{application, strings.TrimSuffix(application, "/"), keyedAppID(application)} {
		if single, ok := q.Single[strings.ToLower(name)]; ok {
			return single
		}
	}
	return q.Each
}

// keyedAppID is the app id in the name of an application whose framework keys the hash, "/app id(hash)/"; else "".
func keyedAppID(application string) string {
	if keyed, ok := strings.CutSuffix(application, ")/"); ok {
		if open := strings.LastIndexByte(keyed, '('); open > 0 {
			return keyed[:open]
		}
	}
	return ""
}

// quotas are the quotas in force, and what is used of them.
type quotas struct {
	inForce atomic.Pointer[Quotas]
	recount chan struct{} // asks the sampler to count soon

	mu      sync.Mutex
	used    map[string]usage     // by application
	refused map[string]*refusals // by application
}

// usage is how many sessions an application has.
type usage struct {
	counted int // by the sampler
	since   int // created since, less those that were removed
}

// QuotaRefusals are the writes of an application that were refused, since the start.
type QuotaRefusals struct {
	Application string
	Item        uint64 // because the item was too large
	Sessions    uint64 // because they would have created a session too many
}

type refusals struct {
	QuotaRefusals
	log seldom
}

// maxQuotaRefusals bounds the applications whose refusals are counted. The others share a count.
const maxQuotaRefusals = 100

const otherApplications = "(others)"

func (q *quotas) init() {
	q.inForce.Store(new(Quotas))
	q.recount = make(chan struct{}, 1)
	q.used = make(map[string]usage)
	q.refused = make(map[string]*refusals)
}

// SetQuotas puts q into force for the writes to come.
func (s *Sessions) SetQuotas(q Quotas) { s.quotas.inForce.Store(&q) }

// overQuota is a refusal, which is answered as one for want of room.
type overQuota struct{ text string }

func (e *overQuota) Error() string        { return e.text }
func (e *overQuota) Is(target error) bool { return target == backends.ErrFull }

// checkQuota returns an overQuota where the write is more than the application may have. A session that exists can be written to
// whatever their number; exists says that it was looked for, and is there.
func (s *Sessions) checkQuota(ctx context.Context, req Request, session Session, w backends.Write) (exists bool, err error) {
	name := session.App.Name
	quota := s.quotas.inForce.Load().of(name)
	if quota.Item > 0 && int64(len(w.Data)) > quota.Item {
		s.refuse(session, len(w.Data), "item", quota.Item)
		return false, &overQuota{fmt.Sprintf("the item has %d bytes, and the application's quota is %d", len(w.Data), quota.Item)}
	}
	if quota.Sessions == 0 || w.Condition == backends.IfCookie || s.quotas.sessions(name) < quota.Sessions {
		return false, nil
	}
	// A renewal tells whether the session exists without reading it.
	at := s.place(session, w.LockCookie)
	_, err = s.do(ctx, stmtResetTimeout, req, func(ctx context.Context) error {
		return at.do(ctx, false, func(store backends.Store, key backends.Key) error { return store.ResetTimeout(ctx, key) })
	})
	if _, elsewhere := errors.AsType[*backends.LockedError](err); elsewhere {
		return true, nil // its page runs there
	}
	if !errors.Is(err, backends.ErrNotFound) {
		return err == nil, err
	}
	s.refuse(session, len(w.Data), "sessions", int64(quota.Sessions))
	select {
	case s.quotas.recount <- struct{}{}:
	default:
	}
	return false, &overQuota{fmt.Sprintf("the application has its quota of %d sessions", quota.Sessions)}
}

// refuse counts a refusal, and says so in the log.
func (s *Sessions) refuse(session Session, bytes int, which string, quota int64) {
	q := &s.quotas
	name := session.App.Name
	q.mu.Lock()
	r := q.refused[name]
	if r == nil {
		if len(q.refused) >= maxQuotaRefusals {
			name = otherApplications
			r = q.refused[name]
		}
		if r == nil {
			r = &refusals{QuotaRefusals: QuotaRefusals{Application: name}}
			q.refused[name] = r
		}
	}
	if which == "item" {
		r.Item++
	} else {
		r.Sessions++
	}
	q.mu.Unlock()
	r.log.add(1, func(n int64) {
		s.log.Error("writes were refused because their application has reached its quota; what it has in the store stays",
			"writes", n, "application", session.App.Name, "quota", which, "allowed", quota, "session", backends.ShortID(session.ID), "bytes", bytes)
	})
}

// QuotaRefusals returns the applications of which something was refused, by name.
func (s *Sessions) QuotaRefusals() []QuotaRefusals {
	q := &s.quotas
	q.mu.Lock()
	defer q.mu.Unlock()
	list := make([]QuotaRefusals, 0, len(q.refused))
	for _, name := range slices.Sorted(maps.Keys(q.refused)) {
		list = append(list, q.refused[name].QuotaRefusals)
	}
	return list
}

// sessions is how many the application has, as far as this server knows.
func (q *quotas) sessions(application string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.used[application]
	return u.counted + u.since
}

// add notes that sessions were created, or removed.
func (q *quotas) add(application string, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.used[application]
	u.since += n
	q.used[application] = u
}

// begin returns what has been noted when a count begins: it may or may not be in the count, so it is taken to be.
func (q *quotas) begin() map[string]usage {
	q.mu.Lock()
	defer q.mu.Unlock()
	return maps.Clone(q.used)
}

// counted takes over a count.
func (q *quotas) counted(begin map[string]usage, applications []backends.ApplicationInfo) {
	q.mu.Lock()
	defer q.mu.Unlock()
	next := make(map[string]usage, len(applications))
	for _, app := range applications {
		next[app.Name] = usage{counted: app.Sessions}
	}
	for name, u := range q.used {
		u.since -= begin[name].since
		if now, ok := next[name]; ok || u.since != 0 {
			now.since = u.since
			next[name] = now
		}
	}
	q.used = next
}
