package tds

import (
	"bytes"
	"crypto/rand"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/seal"
	"aspstate/server/stateserver"
	"aspstate/server/stateserver/client"
)

func newSealKey(t *testing.T) *seal.Key {
	t.Helper()
	secret := make([]byte, seal.KeySize)
	rand.Read(secret)
	k, err := seal.NewKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// vault is a front end over a store in memory with encryption on, and the state server's port beside it.
type vault struct {
	*caller
	f      *front
	store  *memory.Store
	key    *seal.Key
	state  *client.Conn
	target string // the caller's session, at the state server's port
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{store: memory.New(0), key: newSealKey(t)}
	v.f = start(t, v.store)
	v.f.sessions.SetEncryption(server.Encryption{Keys: []*seal.Key{v.key}, Seal: true})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		v.f.accepting.ServeWith(ln, server.StateServer, stateserver.New(v.f.sessions, "", "4.0.30319", slog.New(slog.DiscardHandler)).Handle)
	})
	t.Cleanup(func() { ln.Close(); running.Wait() })
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	v.state = client.New(conn)
	t.Cleanup(func() { v.state.Close() })
	v.caller = newCaller(t, v.f.db(t, "encrypt=disable"))
	_, bare, _ := splitSuffix(v.id)
	v.target = client.Target(testApp, bare)
	return v
}

// kept is what the store has of the session of an ID with its suffix.
func (v *vault) kept(id string) backends.Session {
	v.t.Helper()
	app, bare, _ := splitSuffix(id)
	found, err := v.store.Inspect(v.t.Context(), backends.Key{App: app, ID: bare})
	if err != nil {
		v.t.Fatal(err)
	}
	return found
}

// plant puts data into the session's place in the store, as who can write to the database does.
func (v *vault) plant(id string, data []byte) {
	v.t.Helper()
	found := v.kept(id)
	w := backends.Write{Data: data, Timeout: found.Timeout, LockCookie: found.LockCookie}
	tok := backends.Token([]byte(rand.Text())[:16])
	if err := v.store.Set(v.t.Context(), found.Key, tok, w); err != nil {
		v.t.Fatal(err)
	}
}

// What web applications of mode="SQLServer" write is sealed in the store, and both ports give it out in the clear.
func TestEncryptedOverTDS(t *testing.T) {
	v := newVault(t)
	sealed := func(n int) {
		t.Helper()
		data := v.kept(v.id).Data
		if by, ok := seal.KeyOf(data); !ok || by != v.key.ID() || bytes.Contains(data, pattern(20)) || len(data) != n+seal.Overhead {
			t.Errorf("of an item of %d bytes the store holds %d, sealed by the key: %t", n, len(data), ok && by == v.key.ID())
		}
	}
	read := func(n int) {
		t.Helper()
		if s := v.get(); !bytes.Equal(s.item, pattern(n)) {
			t.Errorf("an item of %d bytes is one of %d over TDS", n, len(s.item))
		}
		a, err := v.state.Get(v.target)
		if err != nil || a.Status != 200 || !bytes.Equal(a.Body, pattern(n)) {
			t.Errorf("an item of %d bytes is answered %d with %d bytes at the state server's port, %v", n, a.Status, len(a.Body), err)
		}
	}
	v.call("dbo.TempInsertUninitializedItem", short(pattern(30)), minutes(20))
	sealed(30)
	read(30)
	cookie := 1
	for _, n := range []int{100, shortItem, shortItem + 1, 100_000} { // of which it is in the clear whether it is short
		s := v.lock()
		if cookie++; *s.lockCookie != int64(cookie) || *s.locked {
			t.Fatalf("the lock is %v, want cookie %d", s, cookie)
		}
		if n <= shortItem {
			v.wants("rows", v.call("dbo.TempUpdateStateItemShort", short(pattern(n)), minutes(20), withCookie(cookie)), 1)
		} else {
			v.wants("rows", v.call("dbo.TempUpdateStateItemLong", long(pattern(n)), minutes(20), withCookie(cookie)), 1)
		}
		sealed(n)
		read(n)
	}
	v.call("dbo.TempRemoveStateItem", withCookie(cookie))
	v.call("dbo.TempInsertStateItemLong", long(pattern(9000)), minutes(20))
	sealed(9000)
	read(9000)
	if a, err := v.state.Set(v.target, pattern(8000), 20*time.Minute, 0); err != nil || a.Status != 200 {
		t.Fatalf("Set at the state server's port: %d, %v", a.Status, err)
	}
	sealed(8000)
	read(8000)
}

// An item that was changed in the store, or planted there, fails the call, over TDS and over the state server's port: it is no session
// that is missing, empty or locked. The session stays, unlocked.
func TestForgedItemsFailOverTDS(t *testing.T) {
	for name, test := range map[string]struct {
		plant func(v *vault, other string) []byte
		why   server.Unreadable
	}{
		"another session's": {func(v *vault, other string) []byte { return v.kept(other).Data }, server.UnreadableDamaged},
		"an object graph":   {func(*vault, string) []byte { return []byte("\x14\x00\x00\x00 by whom") }, server.UnreadableUnencrypted},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			v.db.SetMaxIdleConns(0) // SqlClient gives up a connection after an error of class 20, too
			other := &caller{t, v.db, "0123456789abcdefghijklmn" + v.id[len(v.id)-suffixLen:]}
			v.call("dbo.TempInsertStateItemShort", short(pattern(50)), minutes(20))
			other.call("dbo.TempInsertStateItemShort", short(pattern(60)), minutes(20))
			planted := test.plant(v, other.id)
			v.plant(v.id, planted)
			for _, procedure := range []string{"dbo.TempGetStateItemExclusive3", "dbo.TempGetStateItem3"} {
				s, err := query(t.Context(), v.db, procedure, v.id)
				if e := numberOf(err); e.Number != 50000 || e.Class < 20 || !strings.Contains(e.Message, "cannot be given out") || s.locked != nil || len(s.item) > 0 {
					t.Errorf("%s: %v, %v, want a failure", procedure, s, err)
				}
			}
			if n := v.f.sessions.Metrics.Unreadable[test.why].Load(); n < 2 {
				t.Errorf("%d requests are counted as %v", n, test.why)
			}
			if a, err := v.state.Get(v.target); err == nil {
				t.Errorf("the state server's port answers %d", a.Status)
			}
			if says := v.f.log.String(); !strings.Contains(says, "application="+strings.ToLower(testApp)) || strings.Contains(says, "by whom") {
				t.Errorf("the log says %s", says)
			}
			v.f.sessions.Settle(t.Context())
			if found := v.kept(v.id); found.Locked || !bytes.Equal(found.Data, planted) {
				t.Errorf("the store has %+v", found)
			}
			other.wants("the other session", other.get(), "60 bytes, locked false, age young, cookie 1, flags 0")

			// A page that had the lock before ends that with its item.
			v.plant(v.id, v.key.Seal(strings.ToLower(testApp), strings.TrimSuffix(v.id, v.id[len(v.id)-suffixLen:]), pattern(50)))
			cookie := int(*v.lock().lockCookie)
			v.plant(v.id, planted)
			v.wants("rows", v.call("dbo.TempUpdateStateItemShort", short(pattern(70)), minutes(20), withCookie(cookie)), 1)
			v.wants("length", len(v.get().item), 70)
		})
	}
}

// Locks of encrypted sessions are the same over both ports, and are handed over from one to the other.
func TestLocksOfEncryptedSessions(t *testing.T) {
	v := newVault(t)
	v.call("dbo.TempInsertStateItemShort", short(pattern(50)), minutes(20))
	v.wants("lock", v.lock(), "50 bytes, locked false, age 0, cookie 2, flags 0")
	a, err := v.state.GetExclusive(v.target)
	if err != nil || a.Status != 423 || a.LockCookie != 2 || len(a.Body) > 0 {
		t.Errorf("at the state server's port: %d, cookie %d, %d bytes, %v", a.Status, a.LockCookie, len(a.Body), err)
	}
	v.f.sessions.SetLockWait(6 * time.Second)
	got := make(chan client.Answer)
	go func() {
		a, err := v.state.GetExclusive(v.target)
		if err != nil {
			t.Error(err)
		}
		got <- a
	}()
	until(t, func() bool { return v.f.sessions.Waiting() > 0 })
	v.call("dbo.TempUpdateStateItemLong", long(pattern(8000)), minutes(20), withCookie(2))
	if a := <-got; a.Status != 200 || a.LockCookie != 3 || !bytes.Equal(a.Body, pattern(8000)) {
		t.Errorf("the waiter has %d, cookie %d, %d bytes", a.Status, a.LockCookie, len(a.Body))
	}
	v.f.sessions.SetLockWait(0)
	v.wants("while it is locked there", v.lock(), "0 bytes, locked true, age young, cookie 3, flags 0")
	if a, err := v.state.Set(v.target, pattern(90), 20*time.Minute, 3); err != nil || a.Status != 200 {
		t.Errorf("Set at the state server's port: %d, %v", a.Status, err)
	}
	v.wants("then", v.lock(), "90 bytes, locked false, age 0, cookie 4, flags 0")
	v.wants("released", v.call("dbo.TempReleaseStateItemExclusive", withCookie(4)), 1)
}

// The copy that encryption makes of an item counts as the item does.
func TestEncryptedRequestsCountTwice(t *testing.T) {
	f := startMemory(t)
	f.accepting.LimitBodies(64 << 20)
	for _, test := range []struct {
		e    server.Encryption
		held int64
	}{{server.Encryption{}, 60_000}, {server.Encryption{Keys: []*seal.Key{newSealKey(t)}, Seal: true}, 120_000}} {
		f.sessions.SetEncryption(test.e)
		r := f.login(t)
		r.packet(packetRPC, 0, make([]byte, 30_000))
		r.packet(packetRPC, 0, make([]byte, 10_000))
		until(t, func() bool { return f.accepting.Held() == test.held })
		r.Close()
		until(t, func() bool { return f.accepting.Held() == 0 })
	}
}
