package stateserver

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/stateserver/client"
)

// What a web application with mode="SQLServer" appends to its session IDs, and so finds what it wrote with
// mode="StateServer", and the other way round. The first two were seen in databases of the original.
func TestApplicationsHaveTheOriginalsSuffixes(t *testing.T) {
	for appID, suffix := range map[string]string{
		"/LM/W3SVC/1/ROOT":             "2014c0f1",
		"/LM/W3SVC/5/ROOT":             "28d8c075",
		"/LM/W3SVC/2/ROOT":             "2b7731d2",
		"/LM/W3SVC/1/ROOT/SessionTest": "a30e2956", // of a negative AppId
		"/LM/W3SVC/1/ROOT/ozbyjek":     "f197a8d4",
		"/LM/W3SVC/1/ROOT/vewemtr":     "f197a8d4", // a collision: the second one's is another, see below
	} {
		session, err := newTargets().find([]byte(client.Target(appID, "abc")), new(ids))
		if err != nil {
			t.Fatal(err)
		}
		if got := backends.HashAppID(session.App.Name).Suffix(); got != suffix || session.ID != "abc" {
			t.Errorf("%s has suffix %s, want %s", appID, got, suffix)
		}
	}
	if id := backends.HashAppID("/lm/w3svc/1/root/sessiontest"); id != -1559353002 {
		t.Errorf("AppId %d, want -1559353002", id)
	}
	store := memory.New(0)
	one, err := store.Application(t.Context(), "/lm/w3svc/1/root/ozbyjek", true)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := store.Application(t.Context(), "/lm/w3svc/1/root/vewemtr", true); err != nil || two == one {
		t.Errorf("colliding applications have AppIds %d and %d, %v", one, two, err)
	}
}

func newTargets() *targets {
	return &targets{sessions: server.NewSessions(memory.New(0), time.Second, discard), prefixes: make(map[string]*server.Application)}
}

// Distinct sessions never meet, and equal ones always do, whichever way web servers spell them.
func TestIdentity(t *testing.T) {
	targets := newTargets()
	text := func(most int) *rapid.Generator[string] {
		return rapid.StringOfN(rapid.RuneFrom([]rune("aBc/()%+ 01é\U0001F600."), unicode.L, unicode.N), 1, most, -1)
	}
	rapid.Check(t, func(rt *rapid.T) {
		app := "/" + strings.TrimRight(text(12).Draw(rt, "application"), "/") + "x"
		id := rapid.StringMatching(`[a-z0-5]{24}|[A-Za-z0-9)(/%+. -]{1,80}`).Draw(rt, "session ID")
		found := func(app, id string) server.Session {
			session, err := targets.find([]byte(client.Target(app, id)), new(ids))
			if err != nil {
				rt.Fatalf("target of %q %q: %v", app, id, err)
			}
			return session
		}
		session := found(app, id)
		if session.App.Name != strings.ToLower(app) || session.ID != id {
			rt.Fatalf("%q %q is found as %q %q", app, id, session.App.Name, session.ID)
		}
		// In another letter case, and hashed as that.
		folds := strings.ToLower(strings.ToUpper(app)) == session.App.Name // not every letter comes back from upper case
		if again := found(strings.ToUpper(app), id); folds && (again.App.Name != session.App.Name || again.ID != id) {
			rt.Fatalf("%q is another application than %q", strings.ToUpper(app), app)
		}
		other := "/" + strings.TrimRight(text(12).Draw(rt, "other application"), "/") + "y"
		if strange := found(other, id); strange.App.Name == session.App.Name {
			rt.Fatalf("%q and %q are one application", app, other)
		}
		if strange := found(app, id[1:]+"-"); strange.ID == id && id[1:]+"-" != id {
			rt.Fatalf("%q and %q are one session", id, id[1:]+"-")
		}
		// Keyed hashes say nothing: such names are exact, and no app id is like them.
		keyed := app + "(NDbkwGi0191wFdDv0yOUOobtHns=)/"
		if session, err := targets.find([]byte(escape(keyed+"abc")), new(ids)); err != nil || !strings.HasSuffix(session.App.Name, ")/") || session.App.Name != keyed {
			rt.Fatalf("%q is found as %q, %v", keyed, session.App.Name, err)
		}
	})
}

// escape encodes every byte, which no client does and every server must understand.
func escape(s string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		b.WriteString("%" + string(hex[s[i]>>4]) + string(hex[s[i]&15]))
	}
	return b.String()
}
