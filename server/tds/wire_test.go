package tds

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"aspstate/backends/memory"
)

// raw is a client that sends and gets bytes.
type raw struct {
	t testing.TB
	net.Conn
}

func (f *front) dial(t testing.TB) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &raw{t, conn}
}

func (r *raw) send(kind packetType, message []byte) {
	r.t.Helper()
	r.packet(kind, statusEOM, message)
}

func (r *raw) packet(kind packetType, status byte, payload []byte) {
	r.t.Helper()
	b := append([]byte{byte(kind), status, 0, 0, 0, 0, 1, 0}, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	if _, err := r.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

// reply reads an answer.
func (r *raw) reply() (message []byte) {
	r.t.Helper()
	for {
		var h [packetHeader]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			r.t.Fatalf("no answer: %v", err)
		}
		if packetType(h[0]) != packetReply {
			r.t.Fatalf("an answer has type %#x", h[0])
		}
		payload := make([]byte, int(binary.BigEndian.Uint16(h[2:]))-packetHeader)
		if _, err := io.ReadFull(r, payload); err != nil {
			r.t.Fatal(err)
		}
		if message = append(message, payload...); h[1]&statusEOM != 0 {
			return message
		}
	}
}

// closed reports whether the server closes the connection without another word.
func (r *raw) closed() bool {
	n, err := io.Copy(io.Discard, r)
	return n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) // bytes that the server did not read make it a reset
}

// clearPrelogin is a PRELOGIN of a client that cannot encrypt.
func clearPrelogin() []byte { return unhex("00 000b 0006  01 0011 0001  ff  09000000 0000  02") }

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// login7 is a LOGIN7 of TDS 7.4.
func login7(version uint32, user, password, database string) []byte {
	b := make([]byte, loginFixed)
	binary.LittleEndian.PutUint32(b[4:], version)
	binary.LittleEndian.PutUint32(b[8:], 8000)
	field := func(at int, text []byte) {
		binary.LittleEndian.PutUint16(b[at:], uint16(len(b)))
		binary.LittleEndian.PutUint16(b[at+2:], uint16(len(text)/2))
		b = append(b, text...)
	}
	secret := appendUTF16(nil, password)
	for i, c := range secret {
		secret[i] = (c<<4 | c>>4) ^ 0xa5
	}
	field(40, appendUTF16(nil, user))
	field(44, secret)
	field(68, appendUTF16(nil, database))
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

// login logs in without encryption.
func (f *front) login(t testing.TB) *raw {
	t.Helper()
	r := f.dial(t)
	r.send(packetPrelogin, clearPrelogin())
	r.reply()
	r.send(packetLogin, login7(version74, testUser, testPassword, "ASPState"))
	if answer := r.reply(); answer[len(answer)-13] != tokenDone || answer[len(answer)-12]&doneError != 0 {
		t.Fatalf("the login was answered %x", answer)
	}
	return r
}

// headers are ALL_HEADERS as .NET sends them.
func headers() []byte {
	return unhex("16000000 12000000 0200 0000000000000000 01000000")
}

func call(name string, parameters ...[]byte) []byte {
	b := headers()
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)))
	b = append(appendUTF16(b, name), 0, 0)
	return append(b, bytes.Join(parameters, nil)...)
}

func param(name string, status byte, rest string) []byte {
	b := append([]byte{byte(len(name))}, appendUTF16(nil, name)...)
	return append(append(b, status), unhex(rest)...)
}

// Answers to the bytes that .NET's SqlClient sends, byte for byte ([MS-ASPSS]).
func TestBytes(t *testing.T) {
	f := startMemory(t)
	r := f.login(t)
	id := param("@id", 0, "e7 b000 0904d00034 1000"+hex.EncodeToString(appendUTF16(nil, "12345678")))
	outputs := [][]byte{id, param("@itemShort", 1, "a5 581b ffff"), param("@Locked", 1, "68 01 00"), param("@lockAge", 1, "26 04 00"),
		param("@lockCookie", 1, "26 04 00"), param("@actionFlags", 1, "26 04 00")}
	for _, step := range []struct {
		name    string
		kind    packetType
		message []byte
		want    string
	}{
		{"version", packetRPC, call("dbo.GetMajorVersion", param("@@ver", 1, "26 04 00")),
			"79 00000000  ac 0000 05 4000 4000 7600 6500 7200 01 00000000 0000 26 04 04 0f000000  fe 0000 e000 0000000000000000"},
		{"no session", packetRPC, call("dbo.TempGetStateItem3", outputs...),
			"ff 1100 c500 0000000000000000  79 00000000" +
				"ac 0100 0a 4000 6900 7400 6500 6d00 5300 6800 6f00 7200 7400 01 00000000 0000 a5 581b ffff" +
				"ac 0200 07 4000 4c00 6f00 6300 6b00 6500 6400 01 00000000 0000 68 01 00" +
				"ac 0300 08 4000 6c00 6f00 6300 6b00 4100 6700 6500 01 00000000 0000 26 04 00" +
				"ac 0400 0b 4000 6c00 6f00 6300 6b00 4300 6f00 6f00 6b00 6900 6500 01 00000000 0000 26 04 00" +
				"ac 0500 0c 4000 6100 6300 7400 6900 6f00 6e00 4600 6c00 6100 6700 7300 01 00000000 0000 26 04 00" +
				"fe 0000 e000 0000000000000000"},
		{"insert", packetRPC, call("dbo.TempInsertStateItemLong", id, param("@itemLong", 0, "22 03000000 03000000 010203"), param("@timeout", 0, "26 04 04 14000000")),
			"ff 1100 c300 0100000000000000 79 00000000 fe 0000 e000 0000000000000000"},
		{"attention", packetAttention, nil, "fd 2000 0000 0000000000000000"},
		{"probe", packetBatch, append(headers(), appendUTF16(nil, "Select name from sysobjects where type = 'P' and name = 'TempGetVersion'")...),
			"81 0100 00000000 0100 e7 401f 0904d00034 04 6e00 6100 6d00 6500  d1 1c00" + hex.EncodeToString(appendUTF16(nil, "TempGetVersion")) +
				"fd 1000 c100 0100000000000000"},
		{"an empty batch", packetBatch, headers(), "fd 0000 0000 0000000000000000"},
	} {
		r.send(step.kind, step.message)
		if got := r.reply(); !bytes.Equal(got, unhex(step.want)) {
			t.Errorf("%s:\n got %x\nwant %x", step.name, got, unhex(step.want))
		}
	}
	// A request that another user of the connection begins, in several packets.
	whole := call("TempResetTimeout", id)
	r.packet(packetRPC, statusReset, whole[:10])
	r.packet(packetRPC, 0, whole[10:11])
	r.packet(packetRPC, statusEOM, whole[11:])
	if got, want := r.reply(), unhex("e3 0300 12 00 00  ff 1100 c500 0100000000000000 79 00000000 fe 0000 e000 0000000000000000"); !bytes.Equal(got, want) {
		t.Errorf("reset:\n got %x\nwant %x", got, want)
	}
	// A request that is given up before its end.
	r.packet(packetRPC, 0, whole[:10])
	r.packet(packetRPC, statusEOM|statusIgnore, whole[10:])
	if got, want := r.reply(), unhex("fd 0200 0000 0000000000000000"); !bytes.Equal(got, want) {
		t.Errorf("given up:\n got %x\nwant %x", got, want)
	}
}

// The login is answered in the order that clients want.
func TestLoginAnswer(t *testing.T) {
	f := startMemory(t)
	for _, version := range []struct{ asked, told uint32 }{{version74, version74}, {0x730a0003, version73}, {version72, version72}, {0x75000000, version74}} {
		r := f.dial(t)
		r.send(packetPrelogin, clearPrelogin())
		if got, want := r.reply(), unhex("00 001a 0006 01 0020 0001 02 0021 0001 03 0022 0000 04 0022 0001 ff 0f0007d00000 02 00 00"); !bytes.Equal(got, want) {
			t.Fatalf("PRELOGIN:\n got %x\nwant %x", got, want)
		}
		r.send(packetLogin, login7(version.asked, testUser, testPassword, "aspstate"))
		answer := &reader{b: r.reply()}
		var order []byte
		for len(answer.b) > 0 && answer.err == nil {
			token := answer.uint8()
			order = append(order, token)
			if token == tokenDone {
				answer.take(12)
				continue
			}
			body := answer.take(int(answer.uint16()))
			if token == tokenEnvChange {
				order[len(order)-1] = body[0]
			}
			if token == tokenLoginAck && binary.BigEndian.Uint32(body[1:]) != version.told {
				t.Errorf("a client of version %x was told %x", version.asked, body[1:5])
			}
		}
		if want := []byte{envDatabase, tokenInfo, envCollation, envLanguage, tokenInfo, envPacketSize, tokenLoginAck, tokenDone}; !bytes.Equal(order, want) {
			t.Errorf("the answer has %x, want %x", order, want)
		}
	}
}

func TestRefusedConnections(t *testing.T) {
	f := startMemory(t)
	for name, talk := range map[string]func(r *raw){
		"no TDS":       func(r *raw) { io.WriteString(r, "GET / HTTP/1.1\r\nHost: a\r\n\r\n") },
		"TLS at once":  func(r *raw) { r.Write(unhex("16 0301 0005 01000001 00")) },
		"no PRELOGIN":  func(r *raw) { r.send(packetLogin, login7(version74, testUser, testPassword, "")) },
		"bad PRELOGIN": func(r *raw) { r.send(packetPrelogin, unhex("01 0006 0100 ff")) },
		"MARS session": func(r *raw) {
			r.send(packetPrelogin, clearPrelogin())
			r.reply()
			r.Write(unhex("53 01 0000 10000000 00000000 04000000"))
		},
		"short LOGIN7": func(r *raw) {
			r.send(packetPrelogin, clearPrelogin())
			r.reply()
			r.send(packetLogin, make([]byte, 40))
		},
		"no TLS": func(r *raw) {
			r.send(packetPrelogin, unhex("01 0006 0001 ff 00"))
			r.reply()
			r.send(packetLogin, login7(version74, "a", "b", ""))
		},
		"huge PRELOGIN": func(r *raw) {
			for range 4 {
				r.packet(packetPrelogin, 0, make([]byte, 20_000))
			}
		},
		"an empty head":  func(r *raw) { r.Write(unhex("12 01 0007 0000 0100")) },
		"other messages": func(r *raw) { r.packet(packetPrelogin, 0, nil); r.send(packetLogin, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := f.dial(t)
			talk(r)
			if n, _ := io.Copy(io.Discard, r); n > 0 {
				t.Errorf("answered with %d bytes", n)
			}
		})
	}
}

// A client that wants Windows authentication is told what to do, and so is one that is too old.
func TestLoginsThatCannotBe(t *testing.T) {
	f := startMemory(t)
	for name, test := range map[string]struct {
		change func(b []byte)
		says   string
	}{
		"integrated": {func(b []byte) { b[25] |= 0x80 }, "does not know Windows accounts"},
		"old":        {func(b []byte) { binary.LittleEndian.PutUint32(b[4:], 0x71000001) }, "wants TDS 7.2 or later"},
		"change":     {func(b []byte) { b[27] |= 1 }, "keeps passwords in its settings"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := f.dial(t)
			r.send(packetPrelogin, clearPrelogin())
			r.reply()
			message := login7(version74, testUser, testPassword, "")
			test.change(message)
			r.send(packetLogin, message)
			if answer := r.reply(); !strings.Contains(utf16String(answer[1:])+utf16String(answer), test.says) {
				t.Errorf("answered %q", answer)
			}
			if !r.closed() {
				t.Error("the connection goes on")
			}
		})
	}
}

// Who does not log in, or does not end its request, is cut off.
func TestSlowClientsAreCutOff(t *testing.T) {
	f := startMemory(t)
	s := testSettings(t)
	s.Login, s.Read = 50*time.Millisecond, 50*time.Millisecond
	f.Configure(s)
	if r := f.dial(t); !r.closed() {
		t.Error("a silent client was answered")
	}
	r := f.dial(t)
	r.send(packetPrelogin, clearPrelogin())
	r.reply()
	if !r.closed() {
		t.Error("a client without a login was answered")
	}
	s.Login = 10 * time.Second
	f.Configure(s)
	r = f.login(t)
	r.packet(packetRPC, 0, call("TempResetTimeout"))
	if !r.closed() {
		t.Error("half a request was answered")
	}
}

// Calls by number (sp_prepare and others) are not served, but for sp_executesql; the connection goes on.
func TestCallsByNumber(t *testing.T) {
	r := startMemory(t).login(t)
	for _, id := range []string{"0b00", "0c00", "0d00", "0100"} {
		r.send(packetRPC, append(headers(), unhex("ffff "+id+" 0000")...))
		answer := r.reply()
		if says := utf16String(answer[1:]) + utf16String(answer); answer[0] != tokenError || binary.LittleEndian.Uint32(answer[3:]) != 2812 ||
			answer[8] != 16 || !strings.Contains(says, "which serves only session-state procedures") {
			t.Errorf("%s was answered %x (%q)", id, answer, says)
		}
	}
}

// Connections that have logged in may be idle for any time, until there are too many: then those idle longest make room, and so
// does one that says nothing at all.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	f := startMemory(t)
	f.accepting.LimitConnections(3)
	f.dial(t)
	for range 5 {
		r := f.login(t)
		r.send(packetBatch, append(headers(), appendUTF16(nil, "DECLARE @a int")...))
		r.reply()
	}
	if open, closed := f.accepting.Connections(), f.accepting.Traffic().ClosedIdle.Load(); open > 3 || closed != 3 {
		t.Errorf("%d connections are open, %d were closed", open, closed)
	}
}

// The bytes of requests that are still arriving are bounded over all connections. Who sends nothing gives way to who does.
func TestRequestsInFlightAreBounded(t *testing.T) {
	f := startMemory(t)
	f.accepting.LimitBodies(240_000) // a quarter of it for small ones
	holder, other := f.login(t), f.login(t)
	holder.packet(packetRPC, 0, make([]byte, 30_000))
	holder.packet(packetRPC, 0, make([]byte, 10_000)) // 60,000 are held for it
	until(t, func() bool { return f.accepting.Held() == 60_000 })
	other.send(packetBatch, append(headers(), appendUTF16(nil, strings.Repeat(" ", 10_000)+"SELECT 1")...))
	other.reply()
	if !holder.closed() {
		t.Error("who sends nothing is not cut off")
	}
	until(t, func() bool { return f.accepting.Held() == 0 })
}

// A lock that was granted to a client which gave its request up at that moment is released.
func TestLateAttentionReleasesTheLock(t *testing.T) {
	f := startMemory(t)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	r := f.login(t)
	message := append(headers(), appendUTF16(nil, "EXEC TempGetStateItemExclusive3 '"+c.id+"', NULL, NULL, NULL, NULL, NULL")...)
	r.send(packetBatch, message)
	r.reply()
	c.wants("locked", *c.get().locked, true)
	r.send(packetAttention, nil)
	r.reply()
	until(t, func() bool { return !*c.get().locked })
}

// A client that closes its connection while it waits does not get the lock.
func TestGoneWhileWaiting(t *testing.T) {
	f := start(t, memory.New(0))
	f.sessions.SetLockWait(6 * time.Second)
	c := newCaller(t, f.db(t, "encrypt=disable"))
	c.call("dbo.TempInsertStateItemShort", short(pattern(10)), minutes(20))
	c.lock()
	r := f.login(t)
	r.send(packetBatch, append(headers(), appendUTF16(nil, "EXEC TempGetStateItemExclusive3 '"+c.id+"', NULL, NULL, NULL, NULL, NULL")...))
	until(t, func() bool { return f.sessions.Waiting() > 0 })
	r.Close()
	until(t, func() bool { return f.sessions.Waiting() == 0 })
	c.call("dbo.TempReleaseStateItemExclusive", withCookie(2))
	c.wants("nobody has it", *c.get().locked, false)
}
