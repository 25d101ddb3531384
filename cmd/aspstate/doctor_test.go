package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"aspstate/server/admin"
)

// Each check of the doctor finds what it is for, and nothing where all is well.
func TestDoctorsChecks(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) *time.Time {
		past := now.Add(-d)
		return &past
	}
	age := func(seconds float64) admin.Session {
		return admin.Session{ID: "abc", Application: "/shop", Locked: true, LockAge: &seconds}
	}
	apps := func(names ...string) (list admin.Applications) {
		for _, n := range names {
			list.Applications = append(list.Applications, admin.Application{Name: n})
		}
		return list
	}
	well := admin.Status{Now: now, Started: now.Add(-time.Hour), ConnectionsLimit: 100, Sweeper: admin.Sweeper{Interval: 60, Last: at(time.Minute)}, Listen: []string{"10.1.2.10:42424"}, Allow: []string{"10.1.2.0/24"}}
	but := func(change func(*admin.Status)) admin.Status {
		s := well
		change(&s)
		return s
	}
	for i, test := range []struct {
		findings []Finding
		says     string // of the only finding; "" for none
	}{
		{checkAllow(well), ""},
		{checkAllow(but(func(s *admin.Status) { s.RefusedByAllow = 3 })), "3 connections were refused"},
		{checkAllow(but(func(s *admin.Status) { s.Allow = []string{"0.0.0.0/0"} })), "everybody"},
		{checkAllow(but(func(s *admin.Status) { s.Allow = []string{"::/0"}; s.Listen = []string{"[::]:42424"} })), "everybody"},
		{checkAllow(but(func(s *admin.Status) { s.Listen = []string{"127.0.0.1:42424", "localhost:1"} })), "no other machine can connect"},
		{checkAllow(but(func(s *admin.Status) { s.Listen, s.Allow = []string{"127.0.0.1:42424"}, nil })), ""},

		{checkStore(well), ""},
		{checkStore(but(func(s *admin.Status) { s.StoreFailing, s.StoreError, s.RequestsGivenUp = 3, "no route", 7 })), "failing for 3s: no route"},
		{checkStore(but(func(s *admin.Status) { s.RequestsGivenUp = 7 })), "7 requests got no answer"},
		{checkItems(but(func(s *admin.Status) { s.ItemsUnreadable = 7 })), "7 requests got no answer since the start, because their items"},
		{checkStore(but(func(s *admin.Status) { s.WorkLeft = 5000 })), "5000 releases"},

		{checkSweeper(well), ""},
		{checkSweeper(but(func(s *admin.Status) { s.Sweeper.Error = "deadlock" })), "deadlock"},
		{checkSweeper(but(func(s *admin.Status) { s.Sweeper.Last = nil })), "no sweep"},
		{checkSweeper(but(func(s *admin.Status) { s.Sweeper.Last = nil; s.Started = now.Add(-time.Minute) })), ""},
		{checkSweeper(but(func(s *admin.Status) { s.Sweeper.Last = at(10 * time.Minute) })), "10m0s ago"},

		{checkConnections(well), ""},
		{checkConnections(but(func(s *admin.Status) { s.ConnectionsRefused = 2 })), "2 connections were refused"},
		{checkConnections(but(func(s *admin.Status) { s.Connections = 90 })), "90 of 100"},
		{checkConnections(but(func(s *admin.Status) { s.Connections = 89 })), ""},

		{checkApplications(apps("/lm/w3svc/1/root", "/lm/w3svc/1/root/shop")), ""},
		{checkApplications(apps("/lm/w3svc/1/root/shop", "/lm/w3svc/1/root/x", "/lm/w3svc/7/root/shop")), "/lm/w3svc/1/root/shop, /lm/w3svc/7/root/shop"},
		{checkApplications(apps("/LM/W3SVC/1/ROOT/Shop(abc=)/", "/LM/W3SVC/1/ROOT/shop(def=)/")), "/LM/W3SVC/1/ROOT/Shop(abc=)/, "},

		{checkLocks([]admin.Session{age(110), age(3)}), ""},
		{checkLocks([]admin.Session{age(200), age(150), age(3)}), "2 sessions have been locked"},

		{judgeClock(now, now.Add(time.Second), now), ""},
		{judgeClock(now, now.Add(-10*time.Second), now.Add(time.Second)), "10s apart"},
		{judgeClock(now, now.Add(11*time.Second), now.Add(time.Second)), "10s apart"},
		{judgeClock(now, now.Add(4*time.Second), now.Add(5*time.Second)), ""}, // a slow question

		{judgeVacuum(20_000, 50_000, true, 3), ""},
		{judgeVacuum(0, 0, false, 0), "autovacuum is off"},
		{judgeVacuum(0, 0, true, 7200), "open for 2h0m"},
		{judgeVacuum(300_000, 0, true, 0), "300000 dead rows"},
		{judgeVacuum(0, 600_000, true, 0), "600000 dead pieces"},
	} {
		if test.says == "" && len(test.findings) == 0 {
			continue
		}
		if len(test.findings) != 1 || test.says == "" || !strings.Contains(test.findings[0].Found, test.says) || test.findings[0].Remedy == "" {
			t.Errorf("%d: %+v, want %q", i, test.findings, test.says)
		}
	}
	var many []admin.Session
	for range oldLocksShown {
		many = append(many, age(1000))
	}
	if f := checkLocks(many); len(f) != 1 || !strings.Contains(f[0].Found, fmt.Sprintf("%d or more", oldLocksShown)) {
		t.Errorf("many: %+v", f)
	}
}
