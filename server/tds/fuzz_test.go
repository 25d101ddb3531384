package tds

import (
	"bytes"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"aspstate/backends/memory"
	"aspstate/server"
)

// A panic in a parser would close the connection of whoever sent the bytes, and fill the log; reading past what was sent could
// cost memory, or show one client another's data.

func FuzzPrelogin(f *testing.F) {
	f.Add(clearPrelogin())
	f.Add(unhex("01 0006 0001 ff 03"))
	f.Add(unhex("06 0006 0001 ff 01"))
	f.Add(unhex("01 ffff ffff ff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePrelogin(b)
		if err != nil {
			return
		}
		for _, required := range []bool{false, true} {
			answer, login, all, ok := p.agree(required)
			if all && !login || required && ok && !all || login && !ok {
				t.Errorf("encryption %d, required %v: login %v, all %v, ok %v", p.encryption, required, login, all, ok)
			}
			reply, err := parsePrelogin(p.appendReply(nil, answer))
			if err != nil || reply.encryption != answer || reply.fedAuth != p.fedAuth {
				t.Errorf("our own answer reads as %+v, %v", reply, err)
			}
		}
	})
}

func FuzzLogin(f *testing.F) {
	f.Add(login7(version74, testUser, testPassword, "ASPState"))
	f.Add(login7(0x71000001, "", "", ""))
	f.Add(make([]byte, loginFixed-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLogin(b)
		for _, s := range []string{l.user, l.password, l.database, l.program} {
			if !utf8.ValidString(s) || err == nil && len(s) > 3*len(b) {
				t.Errorf("a text of %d bytes from %d: %q", len(s), len(b), s)
			}
		}
	})
}

func FuzzRPC(f *testing.F) {
	id := param("@id", 0, "e7 b000 0904d00034 1000"+hex.EncodeToString(appendUTF16(nil, "12345678")))
	f.Add(call("dbo.GetMajorVersion", param("@@ver", 1, "26 04 00")))
	f.Add(call("TempInsertStateItemLong", id, param("@itemLong", 0, "22 03000000 03000000 010203"), param("@timeout", 0, "26 04 04 14000000")))
	f.Add(call("TempInsertStateItemLong", id, param("@itemLong", 0, "a5 ffff 0300000000000000 01000000 01 02000000 0203 00000000"), param("", 2, "26 04 00")))
	f.Add(call("x", param("", 0, "a7 0800 0904d00034 0300 8081ff"), param("", 0, "6f 08 08 0000000000000000"), param("", 0, "6a 09 12 00 05 0100000000")))
	f.Add(append(headers(), unhex("ffff 0a00 0000")...))
	f.Add(append(headers(), unhex("ffff 0b00 0000")...))
	f.Add(unhex("00000000"))
	f.Add(call("x", unhex("ff 0100")))
	answered := answering(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		original := bytes.Clone(b)
		answered(t, packetRPC, b)
		c, err := parseRPC(b)
		if !bytes.Equal(b, original) {
			t.Error("the message was changed")
		}
		if err != nil {
			return
		}
		for _, p := range c.parameters {
			if len(p.value.b) > len(b) || !utf8.ValidString(p.value.s) || !utf8.ValidString(p.name) {
				t.Errorf("parameter %q is %+v", p.name, p.value)
			}
		}
		if p := procedures[procedureName(c.name)]; p != nil {
			args, given, fault := p.bind(c.parameters)
			if fault == nil && (len(args) != len(p.parameters) || len(given) != len(args)) {
				t.Errorf("%d arguments were bound to %d parameters", len(args), len(p.parameters))
			}
			for i := range args {
				if args[i].kind != p.parameters[i].kind {
					t.Errorf("%s is of kind %d", p.parameters[i].name, args[i].kind)
				}
			}
		}
	})
}

func FuzzBatch(f *testing.F) {
	for _, s := range []string{
		"EXEC dbo.TempResetTimeout N'it''s'", "tempresettimeout [a]", "DECLARE @a int = -1, @b varbinary(max); SELECT @a AS [x y], 0x0102 -- end",
		"set transaction isolation level read committed set textsize 2147483647", "exec @r = x @a = DEFAULT, @b out", "select 'a' /* b */, NULL", "''", "[", "0x", "select @@version", "EXEC a..b",
		"DECLARE @a int", "", ";", "EXEC TempInsertStateItemShort 'abcdefgh2014c0f1', 0x01, 20; EXEC TempResetTimeout 'abcdefgh2014c0f1'",
	} {
		f.Add(s)
	}
	answered := answering(f)
	f.Fuzz(func(t *testing.T, s string) {
		answered(t, packetBatch, append(headers(), appendUTF16(nil, s)...))
		words, err := lex(s)
		if err == nil && (len(words) == 0 || words[len(words)-1].kind != wordEnd) {
			t.Error("there is no end")
		}
		probeProcedures.MatchString(s)
		probeTables.MatchString(s)
	})
}

// answering returns a function that has a request answered, which must end with one DONE that is the last.
func answering(f *testing.F) func(t *testing.T, kind packetType, body []byte) {
	f.Helper()
	log := slog.New(slog.DiscardHandler)
	srv := New(server.NewSessions(memory.New(1<<20), time.Second, log), log)
	return func(t *testing.T, kind packetType, body []byte) {
		t.Helper()
		c := &conn{srv: srv, settings: srv.settings.Load()}
		c.t.last = 1 << 20 // of an answer before this one
		r := &run{conn: c, ctx: t.Context(), ask: server.Request{Arrived: time.Now()}}
		run := r.batch
		if kind == packetRPC {
			run = r.rpc
		}
		if err := run(body); err != nil {
			t.Fatal(err)
		}
		if len(c.t.b) != c.t.last+12 {
			t.Fatalf("the answer ends %d bytes behind its last DONE: %x", len(c.t.b)-c.t.last, c.t.b)
		}
		c.t.end()
	}
}

// What the writer writes, the reader reads: values, and heads of packets.
func FuzzValue(f *testing.F) {
	f.Add(int64(-1), "text", []byte{1, 2, 3}, uint16(512))
	f.Add(int64(1<<31-1), strings.Repeat("ü𝄞", 2500), make([]byte, 9000), uint16(4096))
	f.Fuzz(func(t *testing.T, n int64, s string, b []byte, size uint16) {
		if !utf8.ValidString(s) || len(b) > 1<<20 {
			return
		}
		var out tokens
		put := func(typ columnType, v value) value {
			out.b = out.b[:0]
			out.typeInfo(typ)
			out.value(typ, v)
			r := &reader{b: out.b}
			got := r.value()
			if r.err != nil || len(r.b) > 0 {
				t.Fatalf("type %d: %v, %d bytes left", typ, r.err, len(r.b))
			}
			return got
		}
		if got := put(columnInt, integer(int64(int32(n)))); got.n != int64(int32(n)) {
			t.Errorf("%d is %d", int32(n), got.n)
		}
		if got := put(columnText, text(s)); got.s != cut(s, maxText) {
			t.Errorf("%q is %q", s, got.s)
		}
		if got := put(columnLong, binaryOf(b)); !bytes.Equal(got.b, b) || got.null {
			t.Errorf("%d bytes are %d", len(b), len(got.b))
		}
		for _, typ := range []columnType{columnInt, columnBit, columnText, columnLong, columnShort, columnDateTime, columnVersion} {
			if got := put(typ, value{null: true}); !got.null {
				t.Errorf("type %d: NULL is %+v", typ, got)
			}
		}
		packets := appendMessage(nil, packetRPC, int(max(minPacket, min(size, maxPacket))), b)
		var again []byte
		for {
			h, err := parseHeader(packets)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, packets[packetHeader:h.length]...)
			if packets = packets[h.length:]; h.status&statusEOM != 0 {
				break
			}
		}
		if len(packets) > 0 || !bytes.Equal(again, b) {
			t.Errorf("a message of %d bytes comes back with %d", len(b), len(again))
		}
	})
}

func TestPasswords(t *testing.T) {
	l := newLogins([]User{{"Web", quick(t, "right")}})
	for range 2 {
		for _, test := range []struct {
			user, password string
			want           bool
		}{{"web", "right", true}, {"WEB", "right", true}, {"web", "Right", false}, {"web", "", false}, {"", "right", false}, {"webright", "", false}} {
			if got := l.allowed(t.Context(), test.user, test.password); got != test.want {
				t.Errorf("%q with %q: %v", test.user, test.password, got)
			}
		}
	}
	good, err := hashPassword("x", minIterations)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParsePasswordHash(good); err != nil {
		t.Errorf("%s: %v", good, err)
	}
	if again, _ := hashPassword("x", minIterations); again == good {
		t.Error("two hashes of a password are equal: there is no salt")
	}
	for _, bad := range []string{"", "x", good[:len(good)-1], strings.Replace(good, "10000", "1", 1), strings.Replace(good, "10000", "99999999", 1), strings.Replace(good, "sha256", "sha1", 1)} {
		if _, err := ParsePasswordHash(bad); !errors.Is(err, errHash) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
