package tds

import (
	"testing"

	"aspstate/server"
)

// Each request is counted once, as one over TDS, with what it asked for and what became of it.
func TestRequestsAreCounted(t *testing.T) {
	f := startMemory(t)
	db := f.db(t, "encrypt=disable")
	db.SetMaxOpenConns(1)
	c := newCaller(t, db)
	c.get()
	c.call("dbo.TempInsertUninitializedItem", short(pattern(6)), minutes(20))
	c.lock()
	c.lock()
	c.call("dbo.TempReleaseStateItemExclusive", withCookie(9))
	c.call("dbo.TempReleaseStateItemExclusive", withCookie(2))
	c.call("dbo.TempUpdateStateItemShort", short(pattern(7)), minutes(20), withCookie(1))
	c.call("dbo.TempUpdateStateItemShort", short(pattern(7)), minutes(20), withCookie(2))
	c.call("dbo.TempResetTimeout")
	c.call("dbo.TempRemoveStateItem", withCookie(2))
	c.call("dbo.TempRemoveStateItem", withCookie(2))
	for _, text := range []string{"SELECT 1 FROM sys.tables", "EXEC xp_cmdshell 'dir'", "EXEC TempResetTimeout", "EXEC TempInsertStateItemShort 'abcdefgh12345678', 0x, 20"} {
		if _, err := db.Exec(text); err == nil {
			t.Errorf("%s is served", text)
		}
	}
	want := map[string]uint64{
		"get not_found": 1, "set_uninitialized ok": 1, "get_exclusive ok": 1, "get_exclusive locked": 1, "release locked": 1, "release ok": 1,
		"set locked": 1, "set ok": 1, "reset_timeout ok": 1, "remove ok": 1, "remove not_found": 1, "unreadable bad_request": 3, "set bad_request": 1,
	}
	m := f.sessions.Metrics
	for op := range server.Operations {
		var timed, all uint64
		for a := range server.Answers {
			name := server.Operation(op).String() + " " + server.Answer(a).String()
			if got := m.Requests[server.TDS][op][a].Load(); got != want[name] {
				t.Errorf("%s: %d, want %d", name, got, want[name])
			}
			all += want[name]
			if n := m.Requests[server.StateServer][op][a].Load(); n != 0 {
				t.Errorf("%s: %d over the state server's port", name, n)
			}
		}
		for _, n := range m.Latency[server.TDS][op].Counts() {
			timed += n
		}
		if timed != all {
			t.Errorf("%v: the time of %d requests, want %d", server.Operation(op), timed, all)
		}
	}
	if open, none := f.accepting.Speaking(server.TDS), f.accepting.Speaking(server.StateServer); open != 1 || none != 0 {
		t.Errorf("%d connections over TDS, %d of a state server", open, none)
	}
	if n := m.LoginsRefused.Load(); n != 0 {
		t.Errorf("%d logins refused", n)
	}
	for _, login := range [][3]string{{"sa", testPassword, "ASPState"}, {testUser, testPassword, "master"}} {
		if err := f.open(t, login[0], login[1], "encrypt=disable&database="+login[2]).Ping(); err == nil {
			t.Errorf("%s got into %s", login[0], login[2])
		}
	}
	if n := m.LoginsRefused.Load(); n != 2 {
		t.Errorf("%d logins refused, want 2", n)
	}
}
