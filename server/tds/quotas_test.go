package tds

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"aspstate/server"
)

// refused wants a call refused for want of room, on a connection that goes on.
func (c *caller) refused(procedure string, args ...any) {
	c.t.Helper()
	_, err := c.db.Exec(procedure, append([]any{sql.Named("id", c.id)}, args...)...)
	if e := numberOf(err); e.Number != 1105 || e.Class >= 20 || !strings.Contains(e.Message, "quota") {
		c.t.Errorf("%s: %v, want it refused by the quota", procedure, err)
	}
}

func TestQuotaOfItemsOverTDS(t *testing.T) {
	f := startMemory(t)
	f.sessions.SetQuotas(server.Quotas{Single: map[string]server.Quota{strings.ToLower(testApp): {Item: 100}}})
	db := f.db(t, "encrypt=disable")
	db.SetMaxOpenConns(1)
	c := newCaller(t, db)
	c.refused("dbo.TempInsertUninitializedItem", short(pattern(101)), minutes(20))
	c.refused("dbo.TempInsertStateItemShort", short(pattern(101)), minutes(20))
	c.refused("dbo.TempInsertStateItemLong", long(pattern(8000)), minutes(20))
	c.wants("refused", c.get(), "no session (NULL NULL NULL 0)")
	c.call("dbo.TempInsertStateItemShort", short(pattern(100)), minutes(20))

	// The page that holds the lock loses it with its write, and the session keeps its item.
	for i, write := range []func(cookie int){
		func(n int) {
			c.refused("dbo.TempUpdateStateItemShort", short(pattern(101)), minutes(20), withCookie(n))
		},
		func(n int) {
			c.refused("dbo.TempUpdateStateItemLongNullShort", long(pattern(8000)), minutes(20), withCookie(n))
		},
	} {
		c.lock()
		write(i + 2)
		f.sessions.Settle(t.Context())
		until(t, func() bool { return !*c.get().locked }) // somebody else may have begun to settle
		c.wants("after a refusal", c.get(), fmt.Sprintf("100 bytes, locked false, age young, cookie %d, flags 0", i+2))
	}

	// Another application is not concerned.
	other := &caller{t, db, "0123456789abcdefghijklmn" + suffixOf(t, db, "/LM/W3SVC/2/ROOT")}
	other.call("dbo.TempInsertStateItemLong", long(pattern(8000)), minutes(20))

	want := []server.QuotaRefusals{{Application: strings.ToLower(testApp), Item: 5}}
	if got := f.sessions.QuotaRefusals(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("refusals %v, want %v", got, want)
	}
	if says := f.log.String(); strings.Count(says, "reached its quota") != 1 ||
		!strings.Contains(says, "application="+strings.ToLower(testApp)+" quota=item allowed=100 session="+c.id[:4]) {
		t.Errorf("the log says %s", says)
	}
	asked := &f.sessions.Metrics.Requests[server.TDS]
	if a, b := asked[server.OpSetUninitialized][server.AnswerBad].Load(), asked[server.OpSet][server.AnswerBad].Load(); a != 1 || b != 4 {
		t.Errorf("%d and %d requests are counted as refused, want 1 and 4", a, b)
	}
	if n := f.accepting.Traffic().Accepted[server.TDS].Load(); n != 1 {
		t.Errorf("it took %d connections, want one", n)
	}
}

func TestQuotaOfSessionsOverTDS(t *testing.T) {
	f := startMemory(t)
	f.sessions.SetQuotas(server.Quotas{Each: server.Quota{Sessions: 2}})
	db := f.db(t, "encrypt=disable")
	db.SetMaxOpenConns(1)
	suffix := suffixOf(t, db, testApp)
	var c [3]*caller
	for i := range c {
		c[i] = &caller{t, db, fmt.Sprintf("0123456789abcdefghijkl%02d", i) + suffix}
	}
	c[0].call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	c[1].call("dbo.TempInsertUninitializedItem", short(pattern(10)), minutes(20))
	c[2].refused("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	c[2].refused("dbo.TempInsertStateItemLong", long(pattern(8000)), minutes(20))
	c[2].refused("dbo.TempInsertUninitializedItem", short(pattern(10)), minutes(20))
	c[2].wants("refused", c[2].get(), "no session (NULL NULL NULL 0)")
	// Nothing there is nothing to update, which creates nothing.
	c[2].wants("rows", c[2].call("dbo.TempUpdateStateItemShort", short(pattern(9)), minutes(20), withCookie(1)), 0)

	// What is there can be written to, and an insert over it is what it always is.
	_, err := db.Exec("dbo.TempInsertStateItemShort", sql.Named("id", c[1].id), short(pattern(10)), minutes(20))
	if number(err) != 2627 {
		t.Errorf("an insert over a session that exists: %v", err)
	}
	c[1].lock()
	c[1].wants("rows", c[1].call("dbo.TempUpdateStateItemShort", short(pattern(11)), minutes(20), withCookie(2)), 1)
	c[1].wants("written", len(c[1].get().item), 11)

	// One that goes makes room; other applications have their own.
	other := &caller{t, db, "0123456789abcdefghijkl00" + suffixOf(t, db, "/LM/W3SVC/2/ROOT")}
	other.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	c[0].wants("rows", c[0].call("dbo.TempRemoveStateItem", withCookie(1)), 1)
	c[2].call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))

	want := []server.QuotaRefusals{{Application: strings.ToLower(testApp), Sessions: 3}}
	if got := f.sessions.QuotaRefusals(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("refusals %v, want %v", got, want)
	}
	if says := f.log.String(); !strings.Contains(says, "application="+strings.ToLower(testApp)+" quota=sessions allowed=2") {
		t.Errorf("the log says %s", says)
	}
	if n := f.accepting.Traffic().Accepted[server.TDS].Load(); n != 1 {
		t.Errorf("it took %d connections, want one", n)
	}
}
