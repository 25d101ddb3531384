package tds

import (
	"bytes"
	"database/sql"
	"strings"
	"testing"
)

// A short text cannot have the server make an answer of any length, by asking for one item, or one variable, often.
func TestAnswersAreBounded(t *testing.T) {
	f := startMemory(t)
	s := testSettings(t)
	s.Body = 100_000
	f.Configure(s)
	db := f.db(t, "encrypt=disable")
	db.SetMaxOpenConns(1)
	c := newCaller(t, db)
	c.call("dbo.TempInsertStateItemLong", long(pattern(100_000)), minutes(20))
	get := "EXEC TempGetStateItem3 '" + c.id + "', NULL, NULL, NULL, NULL, NULL;"
	item := sql.Named("a", pattern(100_000))
	for _, test := range []struct {
		text   string
		args   []any
		number int32
	}{
		{strings.Repeat(get, 4), nil, 0},
		{strings.Repeat(get, 40), nil, 50001},
		{"SELECT @a, @a", []any{item}, 0},
		{"SELECT @a" + strings.Repeat(", @a", 9), []any{item}, 50001},
		{strings.Repeat("SELECT @a;", 10), []any{item}, 50001},
		{"SELECT @a, @b", []any{item, sql.Named("b", strings.Repeat("x", 4000))}, 0},
		{"SELECT 1" + strings.Repeat(", 1", maxColumns-1), nil, 0},
		{"SELECT 1" + strings.Repeat(", 1", maxColumns), nil, 208},
	} {
		rows, err := db.Query(test.text, test.args...)
		for err == nil && (rows.Next() || rows.NextResultSet()) {
		}
		if err == nil {
			err = rows.Err()
			rows.Close()
		}
		if e := numberOf(err); e.Number != test.number || test.number == 0 && err != nil || e.Class >= 20 {
			t.Errorf("%.40s…: %v (%d), want %d", test.text, err, e.Number, test.number)
		}
	}
	// OUTPUT parameters of a text, which name one variable.
	r := f.login(t)
	null := param("@a", 1, "a5 ffff ffffffffffffffff") // varbinary(max)
	filled := append(append(param("@a", 0, "a5 ffff feffffffffffffff a0860100"), pattern(100_000)...), 0, 0, 0, 0)
	text := func(s string) []byte {
		b := append(param("", 0, ""), 0x63) // ntext
		b = append(b, unhex("ffffff7f 0904d00034")...)
		utf16 := appendUTF16(nil, s)
		return append(append(b, byte(len(utf16)), byte(len(utf16)>>8), 0, 0), utf16...)
	}
	message := append(headers(), unhex("ffff 0a00 0000")...)
	message = append(append(message, text("SELECT 1")...), text("@a varbinary(max)")...)
	for range 9 {
		message = append(message, null...)
	}
	message = append(message, filled...)
	for rest := message; len(rest) > 0; {
		n := min(len(rest), 4000)
		r.packet(packetRPC, map[bool]byte{true: statusEOM}[n == len(rest)], rest[:n])
		rest = rest[n:]
	}
	if answer := r.reply(); len(answer) > 500_000 || !bytes.Contains(answer, appendUTF16(nil, "much larger than limits.body")) {
		t.Errorf("OUTPUT parameters are answered with %d bytes, and no error", len(answer))
	}
}

// An @itemShort that a client fills before is cut to its declared length, as SQL Server does, where it comes back unchanged.
func TestItemShortIsCut(t *testing.T) {
	c := newCaller(t, startMemory(t).db(t, "encrypt=disable"))
	out := pattern(70_000)
	var locked sql.NullBool
	var age, cookie, flags sql.NullInt64
	_, err := c.db.Exec("dbo.TempGetStateItem3", sql.Named("id", c.id), sql.Named("itemShort", sql.Out{Dest: &out, In: true}),
		sql.Named("locked", sql.Out{Dest: &locked}), sql.Named("lockAge", sql.Out{Dest: &age}),
		sql.Named("lockCookie", sql.Out{Dest: &cookie}), sql.Named("actionFlags", sql.Out{Dest: &flags}))
	c.wants("the call", err, nil)
	if locked.Valid || !bytes.Equal(out, pattern(shortItem)) {
		t.Errorf("it is %d bytes, want %d", len(out), shortItem)
	}
}
