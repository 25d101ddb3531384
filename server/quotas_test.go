package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
)

// quotaRig is Sessions over a store in memory that a sampler counts.
type quotaRig struct {
	*Sessions
	t       *testing.T
	store   *memory.Store
	sampler *Sampler
	log     *bytes.Buffer
}

func newQuotaRig(t *testing.T, q Quotas) *quotaRig {
	t.Helper()
	r := &quotaRig{t: t, store: memory.New(0), log: new(bytes.Buffer)}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	r.Sessions = NewSessions(r.store, budget, log)
	r.sampler = &Sampler{Sessions: r.Sessions, Log: log}
	r.SetQuotas(q)
	return r
}

// put writes a session, and wants it refused or not.
func (r *quotaRig) put(app, id string, w backends.Write, refused bool) {
	r.t.Helper()
	if w.Data == nil {
		w.Data = []byte("item")
	}
	w.Timeout = 20 * time.Minute
	err := r.Set(r.t.Context(), now(), Session{App: r.Application(app), ID: id}, w)
	if errors.Is(err, backends.ErrFull) != refused || !refused && err != nil {
		r.t.Errorf("set %s of %s: %v, want it refused: %t", id, app, err, refused)
	}
	if refused && !backends.IsAnswer(err) {
		r.t.Errorf("set %s of %s: %v is a failure of the store", id, app, err)
	}
}

func TestQuotaOfItems(t *testing.T) {
	r := newQuotaRig(t, Quotas{Each: Quota{Item: 10}, Single: map[string]Quota{"/lm/w3svc/1/root": {Item: 20}, "free": {}}})
	large := func(n int) backends.Write {
		return backends.Write{Data: make([]byte, n), LockCookie: backends.NoCookie}
	}
	r.put("shop", "1", large(10), false)
	r.put("shop", "1", large(11), true)
	r.put("/lm/w3svc/1/root", "1", large(20), false)
	r.put("/lm/w3svc/1/root", "1", large(21), true)
	r.put("free", "1", large(1000), false)

	// The page that holds the lock loses it with its write, and the session keeps its item.
	session := Session{App: r.Application("shop"), ID: "1"}
	lock, err := r.GetExclusive(t.Context(), now(), session)
	if err != nil {
		t.Fatal(err)
	}
	r.put("shop", "1", backends.Write{Data: make([]byte, 500), LockCookie: lock.LockCookie}, true)
	r.Settle(t.Context())
	if item, err := r.Get(t.Context(), now(), session); err != nil || len(item.Data) != 10 {
		t.Errorf("after the refusal it is %d bytes, %v, want the old 10, unlocked", len(item.Data), err)
	}
	want := []QuotaRefusals{{Application: "/lm/w3svc/1/root", Item: 1}, {Application: "shop", Item: 2}}
	if got := r.QuotaRefusals(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("refusals %v, want %v", got, want)
	}
	if says := r.log.String(); strings.Count(says, "reached its quota") != 2 || !strings.Contains(says, "application=shop quota=item allowed=10") {
		t.Errorf("the log says %s", says)
	}
	r.SetQuotas(Quotas{})
	r.put("shop", "1", large(1000), false)
}

func TestQuotaOfSessions(t *testing.T) {
	r := newQuotaRig(t, Quotas{Single: map[string]Quota{"shop": {Sessions: 3}}})
	create := backends.Write{LockCookie: 0}
	for i := range 3 {
		r.put("shop", fmt.Sprint(i), create, false)
		r.put("intranet", fmt.Sprint(i), create, false)
	}
	for _, w := range []backends.Write{create, {LockCookie: backends.NoCookie}, {LockCookie: 7},
		{Condition: backends.IfMissing}, {Condition: backends.IfMissing, Uninitialized: true}} {
		r.put("shop", "new", w, true)
	}
	r.put("intranet", "new", create, false)

	// What is there can be written to in every way.
	r.put("shop", "1", create, false)
	session := Session{App: r.Application("shop"), ID: "1"}
	lock, err := r.GetExclusive(t.Context(), now(), session)
	if err != nil {
		t.Fatal(err)
	}
	r.put("shop", "1", backends.Write{LockCookie: lock.LockCookie}, false)
	r.put("shop", "1", backends.Write{LockCookie: lock.LockCookie, Condition: backends.IfCookie}, false)
	err = r.Set(t.Context(), now(), session, backends.Write{Data: []byte("item"), Timeout: time.Hour, Condition: backends.IfMissing})
	if !errors.Is(err, backends.ErrExists) {
		t.Errorf("creating what exists: %v, want that it exists", err)
	}

	// One that goes makes room: here at once, elsewhere with the next count.
	if err := r.Remove(t.Context(), now(), Session{App: r.Application("shop"), ID: "2"}, 0, backends.IfUnlocked); err != nil {
		t.Fatal(err)
	}
	r.put("shop", "3", create, false)
	r.put("shop", "4", create, true)
	id, err := r.AppID(t.Context(), "shop")
	if err == nil {
		err = r.store.Remove(t.Context(), backends.Key{App: id, ID: "3"}, r.token(), 0, backends.IfUnlocked)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.put("shop", "4", create, true)
	r.sampler.Sample(t.Context())
	r.put("shop", "4", create, false)
	r.put("shop", "5", create, true)

	if got := r.QuotaRefusals(); len(got) != 1 || got[0] != (QuotaRefusals{Application: "shop", Sessions: 8}) {
		t.Errorf("refusals %v, want 8 of shop", got)
	}
}

// A server that starts on a full store learns that with the first count.
func TestQuotaOfSessionsThatWereThere(t *testing.T) {
	r := newQuotaRig(t, Quotas{})
	for i := range 5 {
		r.put("shop", fmt.Sprint(i), backends.Write{}, false)
	}
	next := newQuotaRig(t, Quotas{Each: Quota{Sessions: 5}})
	next.setRoute(newRoute(r.store))
	next.sampler.Sample(t.Context())
	next.put("shop", "new", backends.Write{}, true)
	next.put("shop", "4", backends.Write{}, false)
}

// Of what others create a server learns with the next count: until then they pass a quota together, each by no more than it allows.
func TestServersPassAQuotaBetweenCounts(t *testing.T) {
	one, other := newQuotaRig(t, Quotas{Each: Quota{Sessions: 3}}), newQuotaRig(t, Quotas{Each: Quota{Sessions: 3}})
	other.setRoute(newRoute(one.store))
	for i := range 3 {
		one.put("shop", fmt.Sprint("one", i), backends.Write{}, false)
		other.put("shop", fmt.Sprint("other", i), backends.Write{}, false)
	}
	for _, r := range []*quotaRig{one, other} {
		r.put("shop", "new", backends.Write{}, true)
		r.sampler.Sample(t.Context())
		if n := r.quotas.sessions("shop"); n != 6 {
			t.Errorf("a count finds %d sessions, want 6", n)
		}
		r.put("shop", "new", backends.Write{}, true)
		r.put("shop", "other0", backends.Write{}, false)
	}
}

// What is created while the sessions are being counted is not forgotten.
func TestCreatedDuringACount(t *testing.T) {
	var q quotas
	q.init()
	q.add("shop", 2)
	begun := q.begin()
	q.add("shop", 3)
	q.add("intranet", 1)
	q.counted(begun, []backends.ApplicationInfo{{Name: "shop", Sessions: 10}, {Name: "old", Sessions: 1}})
	for name, want := range map[string]int{"shop": 13, "intranet": 1, "old": 1} {
		if n := q.sessions(name); n != want {
			t.Errorf("%s has %d sessions, want %d", name, n, want)
		}
	}
	q.counted(q.begin(), nil)
	if len(q.used) != 0 {
		t.Errorf("%v is remembered of applications that have no sessions", q.used)
	}
}

// Where sessions are refused, they are counted again soon, however long the sampler would have rested.
func TestRefusalHasSessionsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newQuotaRig(t, Quotas{Each: Quota{Sessions: 1}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go r.sampler.Run(ctx)
		synctest.Wait() // the first count is over
		r.put("shop", "1", backends.Write{}, false)
		first := r.sampler.Latest().At
		time.Sleep(sampleEvery / 5)
		r.put("shop", "2", backends.Write{}, true)
		time.Sleep(recountEvery + time.Millisecond)
		synctest.Wait()
		if at := r.sampler.Latest().At; at.Sub(first) > sampleEvery/2 || at == first {
			t.Errorf("counted again after %v", at.Sub(first))
		}
		cancel()
		synctest.Wait()
	})
}

func TestNamesOfQuotas(t *testing.T) {
	q := &Quotas{Each: Quota{Sessions: 1}, Single: map[string]Quota{"/lm/w3svc/1/root": {Sessions: 2}, "shop": {Sessions: 3}}}
	for name, want := range map[string]int{
		"/lm/w3svc/1/root": 2, "/LM/W3SVC/1/ROOT(NDbkwGi0191wFdDv0yOUOobtHns=)/": 2, "shop/": 3,
		"/lm/w3svc/1/root/x": 1, "other": 1, "": 1, ")/": 1,
	} {
		if got := q.of(name).Sessions; got != want {
			t.Errorf("%s may have %d sessions, want %d", name, got, want)
		}
	}
}

func TestQuotaRefusalsAreBounded(t *testing.T) {
	r := newQuotaRig(t, Quotas{Each: Quota{Item: 1}})
	for i := range maxQuotaRefusals + 50 {
		r.put(fmt.Sprintf("app%03d", i), "1", backends.Write{}, true)
	}
	list := r.QuotaRefusals()
	if len(list) != maxQuotaRefusals+1 || list[0] != (QuotaRefusals{Application: otherApplications, Item: 50}) {
		t.Errorf("%d applications, the first %v", len(list), list[0])
	}
}
