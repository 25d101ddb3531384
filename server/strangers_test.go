package server

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
)

func TestFamily(t *testing.T) {
	for name, want := range map[string]string{
		"/lm/w3svc/1/root":                                "/lm/w3svc/*/root",
		"/lm/w3svc/77/root/shop":                          "/lm/w3svc/*/root/shop",
		"/LM/W3SVC/7/ROOT(NDbkwGi0191wFdDv0yOUOobtHns=)/": "/lm/w3svc/*/root",
		"/lm/w3svc/1/root/1":                              "/lm/w3svc/*/root/1",
		"shop/":                                           "shop/",
	} {
		if got := family(name); got != want {
			t.Errorf("family of %s is %s, want %s", name, got, want)
		}
	}
}

// A farm whose nodes call one application differently is told, once.
func TestBrokenFarmIsNoticed(t *testing.T) {
	var log bytes.Buffer
	s := NewSessions(memory.New(0), budget, slog.New(slog.NewTextHandler(&log, nil)))
	at := func(app, id string) Session { return Session{App: s.Application(app), ID: id} }
	set := func(app, id string) {
		t.Helper()
		if err := s.Set(t.Context(), now(), at(app, id), backends.Write{Data: []byte("x"), Timeout: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	misses := func(app, id string) {
		t.Helper()
		s.strangers.last.Store(0) // it looks seldom
		if _, err := s.GetExclusive(t.Context(), now(), at(app, id)); err == nil {
			t.Fatalf("%s has session %s", app, id)
		}
	}
	set("/lm/w3svc/1/root", "a")
	set("/lm/w3svc/7/root", "b")
	set("/lm/w3svc/1/root/shop", "c")
	misses("/lm/w3svc/1/root", "nobody's")
	misses("/lm/w3svc/1/root", "c") // another application, and it has that session by right
	if log.Len() > 0 {
		t.Errorf("the log complains of a farm that is well:\n%s", &log)
	}
	misses("/lm/w3svc/7/root", "a")
	misses("/lm/w3svc/1/root", "b")
	misses("/lm/w3svc/7/root", "a")
	if n := strings.Count(log.String(), "users lose their sessions"); n != 1 || !strings.Contains(log.String(), "/lm/w3svc/1/root") || !strings.Contains(log.String(), "/lm/w3svc/7/root") {
		t.Errorf("the log complains %d times, want once, with both names:\n%s", n, &log)
	}
	if err := s.SetAliases(t.Context(), []Alias{{"shop", []string{"/lm/w3svc/1/root", "/lm/w3svc/7/root"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), now(), at("/lm/w3svc/7/root", "a")); err != nil {
		t.Errorf("joined, the session is %v", err)
	}
}
