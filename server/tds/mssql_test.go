package tds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"aspstate/server"
)

// What a web application does from its first request on ([MS-ASPSS]), over each kind of encryption.
func TestWebApplication(t *testing.T) {
	f := startMemory(t)
	for _, encrypt := range []string{"disable", "false", "true"} {
		for _, size := range []string{"512", "4096", "32767"} {
			if size == "512" && encrypt != "disable" {
				continue // go-mssqldb wants the handshake in packets of that size
			}
			t.Run(encrypt+"/"+size, func(t *testing.T) {
				db := f.db(t, "encrypt="+encrypt+"&packet+size="+size)
				var name string
				if err := db.QueryRow("Select name from sysobjects where type = 'P' and name = 'TempGetVersion'").Scan(&name); err != nil || name != "TempGetVersion" {
					t.Errorf("the procedures are looked for: %q, %v", name, err)
				}
				var version int64
				if err := db.QueryRow("DECLARE @v int; EXEC dbo.GetMajorVersion @@ver = @v OUTPUT; SELECT @v").Scan(&version); err != nil || version < 8 {
					t.Errorf("the version is %d, %v", version, err)
				}
				c := newCaller(t, db)
				c.id = fmt.Sprint(encrypt, size, c.id)
				visit(c)
			})
		}
	}
}

func visit(c *caller) {
	small, larger, large := pattern(7000), pattern(7001), pattern(1<<20)
	c.wants("a session that is missing", c.lock(), state{})
	c.wants("rows of an update without a session", c.call("dbo.TempUpdateStateItemShort", short(small), minutes(20), withCookie(1)), 0)
	c.wants("rows of InsertUninitialized", c.call("dbo.TempInsertUninitializedItem", short([]byte{0x14, 0, 0, 0, 0, 0xff}), minutes(20)), 1)
	c.wants("a first lock", c.lock(), "6 bytes, locked false, age 0, cookie 2, flags 1")
	c.wants("another page", c.get(), "0 bytes, locked true, age young, cookie 2, flags 0")
	c.wants("rows of an update", c.call("dbo.TempUpdateStateItemShort", short(small), minutes(20), withCookie(2)), 1)
	s := c.get()
	c.wants("a read-only page", s, "7000 bytes, locked false, age young, cookie 2, flags 0")
	c.wants("its item", bytes.Equal(s.item, small), true)
	for i, next := range []struct {
		procedure string
		item      sql.NamedArg
		want      []byte
	}{
		{"dbo.TempUpdateStateItemLongNullShort", long(larger), larger},
		{"TempUpdateStateItemLong", long(large), large},
		{"[dbo].[TempUpdateStateItemShortNullLong]", short(small), small},
		{"aspstate.dbo.tempupdatestateitemshort", short([]byte{1}), []byte{1}},
	} {
		cookie := 3 + i
		c.wants("lock", *c.lock().lockCookie, cookie)
		c.wants("rows with an old cookie", c.call(next.procedure, next.item, minutes(20), withCookie(cookie-1)), 0)
		c.wants("still locked", *c.get().locked, true)
		c.wants("rows", c.call(next.procedure, next.item, minutes(20), withCookie(cookie)), 1)
		if s := c.get(); *s.locked || !bytes.Equal(s.item, next.want) {
			c.t.Errorf("%s: then there are %v", next.procedure, s)
		}
	}
	c.wants("lock", *c.lock().lockCookie, 7)
	c.wants("rows of Release with an old cookie", c.call("dbo.TempReleaseStateItemExclusive", withCookie(6)), 0)
	c.wants("rows of Release", c.call("dbo.TempReleaseStateItemExclusive", withCookie(7)), 1)
	c.wants("rows of ResetTimeout", c.call("dbo.TempResetTimeout"), 1)
	c.wants("rows of Remove with an old cookie, unlocked", c.call("dbo.TempRemoveStateItem", withCookie(6)), 0)
	c.wants("rows of Remove", c.call("dbo.TempRemoveStateItem", withCookie(7)), 1)
	c.wants("rows of Remove again", c.call("dbo.TempRemoveStateItem", withCookie(7)), 0)
	c.wants("rows of ResetTimeout without a session", c.call("dbo.TempResetTimeout"), 0)
	c.wants("then", c.get(), state{})
}

// An insert over a living session changes nothing and is error 2627, which the in-box client swallows. Any
// other number would be a failed page.
func TestInsertOverASession(t *testing.T) {
	f := startMemory(t)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	c.wants("rows", c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20)), 1)
	for _, procedure := range []string{"dbo.TempInsertStateItemShort", "dbo.TempInsertUninitializedItem"} {
		_, err := c.db.Exec(procedure, sql.Named("id", c.id), short(pattern(20)), minutes(20))
		if e := numberOf(err); e.Number != 2627 || e.Class != 14 {
			t.Errorf("%s: %v", procedure, err)
		}
	}
	_, err := c.db.Exec("dbo.TempInsertStateItemLong", sql.Named("id", c.id), long(pattern(8000)), minutes(20))
	c.wants("number", number(err), 2627)
	c.wants("the session", c.get(), "10 bytes, locked false, age young, cookie 1, flags 0")
}

// A timeout of 0 is for ever on the state server's port, and over at once in ASPState.
func TestBornExpired(t *testing.T) {
	f := startMemory(t)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	for _, n := range []int{0, -1, -1 << 31} {
		c.wants("rows", c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(n)), 1)
		c.wants("then", c.get(), state{})
	}
	c.wants("rows", c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(1<<31-1)), 1)
	c.wants("then", len(c.get().item), 10)
	c.wants("rows of an update to 0", c.call("dbo.TempUpdateStateItemShort", short(pattern(5)), minutes(0), withCookie(1)), 1)
	c.wants("then", c.get(), state{})
}

func TestRefusedLogins(t *testing.T) {
	f := startMemory(t)
	for name, login := range map[string]struct {
		user, password, database string
		number                   int32
	}{
		"wrong password":   {testUser, "guess-0815", "ASPState", 18456},
		"no password":      {testUser, "", "ASPState", 18456},
		"unknown user":     {"sa", testPassword, "ASPState", 18456},
		"unknown database": {testUser, testPassword, "master", 4060},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			err := f.open(t, login.user, login.password, "encrypt=false&TrustServerCertificate=true&dial+timeout=5&database="+login.database).Ping()
			var numbers []int32
			for _, e := range numberOf(err).All {
				numbers = append(numbers, e.Number)
			}
			if len(numbers) == 0 || numbers[0] != login.number || numbers[len(numbers)-1] != 18456 {
				t.Errorf("errors %v (%v), want %d", numbers, err, login.number)
			}
			if took := time.Since(begun); took < loginFails {
				t.Errorf("refused after %v: passwords can be guessed quickly", took)
			}
		})
	}
	t.Cleanup(func() {
		log := f.log.String()
		if !strings.Contains(log, "login refused") || strings.Contains(log, "0815") || strings.Contains(log, testPassword) {
			t.Errorf("the log says:\n%s", log)
		}
	})
}

func TestLoginsThatAreAllowed(t *testing.T) {
	f := startMemory(t)
	for _, options := range []string{"database=aspstate", "database=SHOP", "", "encrypt=true&database=Shop"} {
		if err := f.open(t, strings.ToUpper(testUser), testPassword, "TrustServerCertificate=true&"+options).Ping(); err != nil {
			t.Errorf("%s: %v", options, err)
		}
	}
}

// Where encryption is required, a client that asks for it only for the login gets it for all, and one that refuses it gets nothing.
func TestRequiredEncryption(t *testing.T) {
	f := startMemory(t)
	s := testSettings(t)
	s.RequireTLS = true
	f.Configure(s)
	c := newCaller(t, f.db(t, "encrypt=false"))
	visit(c)
	if err := f.db(t, "encrypt=disable").Ping(); err == nil {
		t.Error("a client that does not encrypt was let in")
	}
}

// What the server cannot do is an ordinary error that names it, and the connection goes on.
func TestWhatIsNotServed(t *testing.T) {
	f := startMemory(t)
	db := f.db(t, "encrypt=disable")
	db.SetMaxOpenConns(1)
	for text, number := range map[string]int32{
		"SELECT * FROM ASPStateTempSessions":                                        208,
		"SELECT SERVERPROPERTY('ProductVersion')":                                   208,
		"IF OBJECT_ID('dbo.ASPStateTempSessions') IS NULL SELECT 1":                 208,
		"select 'unclosed":                                                          208,
		"EXEC dbo.xp_cmdshell 'dir'":                                                2812,
		"xp_cmdshell":                                                               2812,
		"dbo.TempResetTimeout":                                                      201,
		"EXEC TempResetTimeout 'a', 'b'":                                            8144,
		"EXEC TempResetTimeout @key = 'a'":                                          8145,
		"EXEC TempRemoveStateItem 'a', 'b'":                                         8114,
		"EXEC TempRemoveStateItem 'a', 4294967295":                                  8115,
		"EXEC TempInsertStateItemShort 'abcdefgh12345678', 0x, 20":                  515,
		"EXEC TempInsertStateItemShort 'abcdefgh12345678', 0x01, NULL":              515,
		"EXEC TempInsertStateItemShort NULL, 0x01, 20":                              515,
		"EXEC TempInsertStateItemShort N'a\uFFFD12345678', 0x01, 20":                515,
		"EXEC TempInsertStateItemShort '" + strings.Repeat("x", 89) + "', 0x01, 20": 515,
	} {
		_, err := db.Exec(text)
		e := numberOf(err)
		if e.Number != number || e.Class >= 20 {
			t.Errorf("%.60s: %v (%d), want %d", text, err, e.Number, number)
		}
		if number == 208 && !strings.Contains(e.Message, "This is aspstate, which serves only session-state procedures") {
			t.Errorf("%.60s: the error does not say what is served: %v", text, err)
		}
	}
	if _, err := db.Begin(); err == nil {
		t.Error("a transaction began")
	}
	c := newCaller(t, db)
	c.wants("the connection goes on", c.get(), state{})
	if n := f.accepting.Traffic().Accepted[server.TDS].Load(); n > 2 { // go-mssqldb gives a connection up whose transaction did not begin
		t.Errorf("%d connections were made", n)
	}
}

// The provider from NuGet spells its calls differently, and makes the suffix of its IDs itself.
func TestProviderFromNuGet(t *testing.T) {
	f := startMemory(t)
	db := f.db(t, "encrypt=true")
	var table, inMemory int
	err := db.QueryRow(`BEGIN
		DECLARE @tableType int
		IF EXISTS (SELECT * FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_NAME = 'ASPStateTempSessions') SET @tableType = 1
		SELECT @tableType, @isMemoryOpt
	END`).Scan(&table, &inMemory)
	if err != nil || table != 2 || inMemory != 0 {
		t.Errorf("the probe gave %d, %d, %v", table, inMemory, err)
	}
	c := &caller{t, db, "bpr4mimb2vjnvtn2jc4yp3uoB3003E84"}
	item := pattern(100)
	if _, err := db.Exec("TempInsertUninitializedItem", sql.Named("Id", c.id), sql.Named("ItemShort", item), sql.Named("Timeout", 20)); err != nil {
		t.Fatal(err)
	}
	var short []byte
	var locked sql.NullBool
	var age, cookie, flags sql.NullInt64
	_, err = db.Exec("TempGetStateItemExclusive3", sql.Named("Id", c.id), sql.Named("ItemShort", sql.Out{Dest: &short}),
		sql.Named("Locked", sql.Out{Dest: &locked}), sql.Named("LockAge", sql.Out{Dest: &age}),
		sql.Named("LockCookie", sql.Out{Dest: &cookie}), sql.Named("ActionFlags", sql.Out{Dest: &flags}))
	if err != nil || !bytes.Equal(short, item) || cookie.Int64 != 2 || flags.Int64 != 1 || !locked.Valid || locked.Bool {
		t.Errorf("%d bytes, cookie %v, flags %v, locked %v: %v", len(short), cookie, flags, locked, err)
	}
	if _, err := db.Exec("DeleteExpiredSessions"); err != nil {
		t.Error(err)
	}
	c.wants("the session", c.get(), "0 bytes, locked true, age young, cookie 2, flags 0")
}

// Procedures of ASP.NET 1.x, and those that only people call.
func TestOtherProcedures(t *testing.T) {
	f := startMemory(t)
	db := f.db(t, "encrypt=disable")
	c := newCaller(t, db)
	var version string
	var hash int64
	if _, err := db.Exec("TempGetVersion", sql.Named("ver", sql.Out{Dest: &version})); err != nil || strings.TrimSpace(version) != "2" {
		t.Errorf("TempGetVersion: %q, %v", version, err)
	}
	if _, err := db.Exec("GetHashCode", sql.Named("input", "/lm/w3svc/1/root"), sql.Named("hash", sql.Out{Dest: &hash})); err != nil || hash != 538231025 {
		t.Errorf("GetHashCode: %d, %v", hash, err)
	}
	if _, err := db.Exec("CreateTempTables"); err != nil {
		t.Error(err)
	}
	c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	var item []byte
	var locked sql.NullBool
	var date sql.NullTime
	var age, cookie sql.NullInt64
	_, err := db.Exec("dbo.TempGetStateItemExclusive", sql.Named("id", c.id), sql.Named("itemShort", sql.Out{Dest: &item}), sql.Named("locked", sql.Out{Dest: &locked}),
		sql.Named("lockDate", sql.Out{Dest: &date}), sql.Named("lockCookie", sql.Out{Dest: &cookie}))
	now := time.Now()
	local := time.Date(now.Year(), now.Month(), now.Day(), now.Hour(), now.Minute(), now.Second(), now.Nanosecond(), time.UTC)
	if err != nil || len(item) != 10 || cookie.Int64 != 2 || date.Time.Sub(local).Abs() > 5*time.Second {
		t.Errorf("1.0: %d bytes, cookie %v, date %v: %v", len(item), cookie, date, err)
	}
	item = nil
	_, err = db.Exec("dbo.TempGetStateItem2", sql.Named("id", c.id), sql.Named("itemShort", sql.Out{Dest: &item}), sql.Named("locked", sql.Out{Dest: &locked}),
		sql.Named("lockAge", sql.Out{Dest: &age}), sql.Named("lockCookie", sql.Out{Dest: &cookie}))
	if err != nil || item != nil || !locked.Bool || !age.Valid {
		t.Errorf("1.1: %d bytes, locked %v, age %v: %v", len(item), locked, age, err)
	}
}

// What people type.
func TestText(t *testing.T) {
	f := startMemory(t)
	db := f.db(t, "encrypt=disable")
	c := newCaller(t, db)
	item := pattern(100_000)
	if _, err := db.Exec("EXEC dbo.TempInsertStateItemLong @p1, @p2, @p3", c.id, item, 20); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("set nocount on; exec [dbo].[TempResetTimeout] @id = N'" + c.id + "' -- renew"); err != nil {
		t.Error(err)
	}
	var got []byte
	if err := db.QueryRow("EXECUTE TempGetStateItem3 @p1, NULL, NULL, NULL, NULL, NULL", c.id).Scan(&got); err != nil || !bytes.Equal(got, item) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	rows, err := db.Query(fmt.Sprintf(`
		DECLARE @short varbinary(7000), @locked bit, @age int, @cookie int = NULL, @flags int, @status int
		EXEC TempUpdateStateItemShortNullLong '%[1]s', 0x0102fF, 20, 1;
		EXEC @status = TempGetStateItemExclusive3 @id = '%[1]s', @itemShort = @short OUTPUT, @locked = @locked OUT, @lockAge = @age OUTPUT,
			@lockCookie = @cookie OUTPUT, @actionFlags = @flags OUTPUT
		SELECT @short AS item, @locked, @age age, @cookie AS [cookie], @flags, @status, -5, 'it''s'`, c.id))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var locked bool
	var age, cookie, flags, status, minus int
	var text string
	for !rows.Next() {
		if !rows.NextResultSet() {
			t.Fatal("there is no result", rows.Err())
		}
	}
	if err := rows.Scan(&got, &locked, &age, &cookie, &flags, &status, &minus, &text); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, []byte{1, 2, 255}) || locked || age != 0 || cookie != 2 || flags != 0 || status != 0 || minus != -5 || text != "it's" {
		t.Error(got, locked, age, cookie, flags, status, minus, text)
	}
}

// A request whose client gives up no longer waits for the lock, and does not take it.
func TestAttentionEndsAWait(t *testing.T) {
	f := startMemory(t)
	f.sessions.SetLockWait(6 * time.Second)
	for _, encrypt := range []string{"disable", "true"} {
		t.Run(encrypt, func(t *testing.T) {
			db := f.db(t, "encrypt="+encrypt)
			c := newCaller(t, db)
			c.id = encrypt + c.id
			c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
			c.lock()
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := query(ctx, conn, "dbo.TempGetStateItemExclusive3", c.id)
				ended <- err
			}()
			until(t, func() bool { return f.sessions.Waiting() > 0 })
			begun := time.Now()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the wait ended with %v", err)
			}
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			until(t, func() bool { return f.sessions.Waiting() == 0 })
			c.call("dbo.TempReleaseStateItemExclusive", withCookie(2))
			c.wants("nobody has the lock", c.get(), "10 bytes, locked false, age young, cookie 2, flags 0")
			// The same connection is of use still.
			s, err := query(t.Context(), conn, "dbo.TempGetStateItem3", c.id)
			if err != nil {
				t.Errorf("the connection is of no use: %v", err)
			}
			c.wants("over the same connection", s, "10 bytes, locked false, age young, cookie 2, flags 0")
		})
	}
}

// Who waits gets the lock when it is released.
func TestHandOver(t *testing.T) {
	f := startMemory(t)
	f.sessions.SetLockWait(6 * time.Second)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	c.lock()
	got := make(chan string, 1)
	go func() { got <- c.lock().String() }()
	until(t, func() bool { return f.sessions.Waiting() > 0 })
	begun := time.Now()
	c.call("dbo.TempUpdateStateItemShort", short(pattern(11)), minutes(20), withCookie(2))
	c.wants("the next page", <-got, "11 bytes, locked false, age 0, cookie 3, flags 0")
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A connection that goes back to a pool is another user's afterwards.
func TestResetConnection(t *testing.T) {
	f := startMemory(t)
	db := f.db(t, "encrypt=disable")
	db.SetMaxOpenConns(1)
	c := newCaller(t, db)
	for range 3 {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := query(t.Context(), conn, "dbo.TempGetStateItem3", c.id); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	if n := f.accepting.Traffic().Accepted[server.TDS].Load(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

// An item over the limit must not leave its session locked.
func TestTooLargeItem(t *testing.T) {
	f := startMemory(t)
	s := testSettings(t)
	s.Body = 100_000
	f.Configure(s)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	c.call("dbo.TempInsertStateItemLong", long(pattern(100_000)), minutes(20))
	c.lock()
	_, err := c.db.Exec("dbo.TempUpdateStateItemLong", sql.Named("id", c.id), long(pattern(100_001)), minutes(20), withCookie(2))
	if e := numberOf(err); e.Number != 1105 || e.Class >= 20 {
		t.Errorf("answered %v", err)
	}
	until(t, func() bool { return !*c.get().locked }) // it is released behind the answer
	c.wants("the session", c.get(), "100000 bytes, locked false, age young, cookie 2, flags 0")
	if _, err := c.db.Exec("dbo.TempUpdateStateItemLong", sql.Named("id", c.id), long(pattern(1<<20)), minutes(20), withCookie(2)); err == nil {
		t.Error("a request ten times the limit was read")
	}
}
