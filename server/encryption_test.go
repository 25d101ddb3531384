package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server/seal"
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

// vault is Sessions over a store in memory, with encryption on.
type vault struct {
	*Sessions
	t     *testing.T
	store *memory.Store
	log   *bytes.Buffer
	key   *seal.Key
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{t: t, store: memory.New(0), log: new(bytes.Buffer), key: newSealKey(t)}
	v.Sessions = NewSessions(v.store, budget, slog.New(slog.NewTextHandler(v.log, nil)))
	v.SetEncryption(Encryption{Keys: []*seal.Key{v.key}, Seal: true})
	return v
}

func (v *vault) session(app, id string) Session { return Session{App: v.Application(app), ID: id} }

func (v *vault) write(app, id, data string) {
	v.t.Helper()
	if err := v.Set(v.t.Context(), now(), v.session(app, id), backends.Write{Data: []byte(data), Timeout: 20 * time.Minute}); err != nil {
		v.t.Fatalf("set %s of %s: %v", id, app, err)
	}
}

// kept is what the store has of a session.
func (v *vault) kept(app, id string) backends.Session {
	v.t.Helper()
	number, err := v.store.Application(v.t.Context(), app, true)
	if err != nil {
		v.t.Fatal(err)
	}
	found, err := v.store.Inspect(v.t.Context(), backends.Key{App: number, ID: id})
	if err != nil {
		v.t.Fatalf("look at %s of %s: %v", id, app, err)
	}
	return found
}

// plant puts data into the store as who can write to the database does.
func (v *vault) plant(app, id string, data []byte) {
	v.t.Helper()
	found := v.kept(app, id)
	if err := v.store.Set(v.t.Context(), found.Key, v.token(), backends.Write{Data: data, Timeout: found.Timeout, LockCookie: found.LockCookie}); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vault) reads(app, id, want string) {
	v.t.Helper()
	item, err := v.Get(v.t.Context(), now(), v.session(app, id))
	if err != nil || string(item.Data) != want {
		v.t.Errorf("%s of %s is %q, %v, want %q", id, app, item.Data, err, want)
	}
}

func (v *vault) unreadable(app, id string, why Unreadable) {
	v.t.Helper()
	before, tries := v.Metrics.Unreadable[why].Load(), count(&v.Metrics.Statements[stmtGetExclusive])
	_, err := v.GetExclusive(v.t.Context(), now(), v.session(app, id))
	if !errors.Is(err, ErrUnreadable) || backends.IsAnswer(err) {
		v.t.Fatalf("GetExclusive of %s of %s: %v, want that it cannot be read", id, app, err)
	}
	if n := v.Metrics.Unreadable[why].Load() - before; n != 1 {
		v.t.Errorf("it was counted %d times as %v", n, why)
	}
	if n := count(&v.Metrics.Statements[stmtGetExclusive]) - tries; n != 1 {
		v.t.Errorf("it took %d tries", n)
	}
	v.Settle(v.t.Context())
	if found := v.kept(app, id); found.Locked {
		v.t.Error("it is locked now, and nobody knows")
	}
	if _, err := v.Get(v.t.Context(), now(), v.session(app, id)); !errors.Is(err, ErrUnreadable) {
		v.t.Errorf("Get of %s of %s: %v, want that it cannot be read", id, app, err)
	}
	if failing, _ := v.Failing(); failing > 0 {
		v.t.Error("the store is taken for failing")
	}
}

func TestStoreHoldsSealedItems(t *testing.T) {
	v := newVault(t)
	const secret = "a secret of one user"
	v.write("shop", "1", secret)
	if data := v.kept("shop", "1").Data; bytes.Contains(data, []byte("secret")) || len(data) != len(secret)+seal.Overhead {
		t.Errorf("the store holds %q", data)
	}
	v.reads("shop", "1", secret)
	item, err := v.GetExclusive(t.Context(), now(), v.session("shop", "1"))
	if err != nil || string(item.Data) != secret {
		t.Errorf("GetExclusive gives %q, %v", item.Data, err)
	}
	// Operators see what is inside, too.
	data, err := v.Content(t.Context(), v.kept("shop", "1"))
	if err != nil || string(data) != secret {
		t.Errorf("Content gives %q, %v", data, err)
	}
}

// Who can write to the database cannot make a web application read anything that it did not write into this session.
func TestPlantedItemsAreRefused(t *testing.T) {
	other := newSealKey(t)
	for name, test := range map[string]struct {
		plant func(v *vault) []byte
		why   Unreadable
	}{
		"an object graph":       {func(*vault) []byte { return []byte("\x14\x00\x00\x00 by whom") }, UnreadableUnencrypted},
		"another session's":     {func(v *vault) []byte { return v.kept("shop", "2").Data }, UnreadableDamaged},
		"another application's": {func(v *vault) []byte { return v.kept("intranet", "1").Data }, UnreadableDamaged},
		"a changed bit": {func(v *vault) []byte {
			data := bytes.Clone(v.kept("shop", "1").Data)
			data[len(data)-1] ^= 1
			return data
		}, UnreadableDamaged},
		"a part":      {func(v *vault) []byte { return v.kept("shop", "1").Data[:20] }, UnreadableDamaged},
		"another key": {func(*vault) []byte { return other.Seal("shop", "1", []byte("by whom")) }, UnreadableUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t)
			v.write("shop", "1", "mine")
			v.write("shop", "2", "hers")
			v.write("intranet", "1", "theirs")
			v.plant("shop", "1", test.plant(v))
			v.unreadable("shop", "1", test.why)
			if says := v.log.String(); strings.Count(says, unreadableSays[test.why]) != 1 || strings.Contains(says, "by whom") {
				t.Errorf("the log says %s", says)
			}
			v.reads("shop", "2", "hers")
			// The page that writes the session ends that.
			v.write("shop", "1", "again")
			v.reads("shop", "1", "again")
		})
	}
}

// Encryption is turned on, its key changed, and turned off again, and no session is lost.
func TestEncryptionOnRotateOff(t *testing.T) {
	v := newVault(t)
	a, b := v.key, newSealKey(t)
	keys := func(keys ...*seal.Key) []*seal.Key { return keys }
	sealedBy := func(id string) *seal.Key {
		data := v.kept("shop", id).Data
		for _, k := range keys(a, b) {
			if by, ok := seal.KeyOf(data); ok && by == k.ID() {
				return k
			}
		}
		if seal.IsSealed(data) {
			t.Fatalf("%s is sealed by an unknown key", id)
		}
		return nil
	}
	v.SetEncryption(Encryption{Seal: true}) // as it is where nobody sets anything
	v.write("shop", "old", "1")
	if sealedBy("old") != nil {
		t.Fatal("it was sealed without a key")
	}
	for _, step := range []struct {
		what  string
		e     Encryption
		seals *seal.Key
	}{
		{"all servers learn the key", Encryption{Keys: keys(a)}, nil},
		{"turned on", Encryption{Keys: keys(a), Seal: true, AcceptUnencrypted: true}, a},
		{"a new key is learnt", Encryption{Keys: keys(a, b), Seal: true, AcceptUnencrypted: true}, a},
		{"and used", Encryption{Keys: keys(b, a), Seal: true, AcceptUnencrypted: true}, b},
		{"turned off", Encryption{Keys: keys(b, a)}, nil},
	} {
		v.SetEncryption(step.e)
		v.reads("shop", "old", "1")
		v.write("shop", step.what, step.what)
		if sealedBy(step.what) != step.seals {
			t.Errorf("%s: it seals with another key than it should", step.what)
		}
		v.reads("shop", "all servers learn the key", "all servers learn the key")
		if step.what == "turned off" {
			v.reads("shop", "turned on", "turned on")
			v.reads("shop", "and used", "and used")
		}
	}
	v.SetEncryption(Encryption{Keys: keys(b), Seal: true})
	v.unreadable("shop", "turned on", UnreadableUnknownKey)
	v.unreadable("shop", "old", UnreadableUnencrypted)
	// Asked for again, with the settings put right, they are there: no session was lost.
	v.SetEncryption(Encryption{Keys: keys(b, a), Seal: true, AcceptUnencrypted: true})
	v.reads("shop", "turned on", "turned on")
	v.reads("shop", "old", "1")
	// Without any key, what is sealed is not given out as if it were an item.
	v.SetEncryption(Encryption{Seal: true})
	v.unreadable("shop", "and used", UnreadableUnknownKey)
}

func TestCountSealed(t *testing.T) {
	v := newVault(t)
	b := newSealKey(t)
	v.write("shop", "1", "1")
	v.write("intranet", "2", "2")
	v.SetEncryption(Encryption{Keys: []*seal.Key{b}, Seal: true})
	v.write("shop", "3", "3")
	v.SetEncryption(Encryption{})
	v.write("shop", "4", "4")
	v.plant("shop", "4", []byte("\xfeaspenc\x02 of a later version"))
	v.write("shop", "5", "5")
	check := func(what string, c Sealed, err error) {
		t.Helper()
		if err != nil || c.Keys[v.key.ID()] != 2 || c.Keys[b.ID()] != 1 || c.Clear != 1 || c.Unknown != 1 {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
	c, next, err := v.CountSealed(t.Context(), backends.Key{}, time.Hour)
	check("all", c, err)
	if next != (backends.Key{}) {
		t.Errorf("there is more behind %v", next)
	}
	c, err = SampleSealed(t.Context(), v.store)
	check("a sample", c, err)
	// In parts.
	if c, next, err = v.CountSealed(t.Context(), backends.Key{}, 0); err != nil || next == (backends.Key{}) {
		t.Fatalf("a part: %+v, next %v, %v", c, next, err)
	}
	if _, next, err = v.CountSealed(t.Context(), next, 0); err != nil || next != (backends.Key{}) {
		t.Errorf("behind the last one there is more behind %v, %v", next, err)
	}
}

// lends is another state server with one session.
type lends struct {
	item    backends.Item
	removed bool
}

func (l *lends) GetExclusive(context.Context, Session) (backends.Item, error) {
	if l.removed {
		return backends.Item{}, backends.ErrNotFound
	}
	return l.item, nil
}
func (l *lends) Release(context.Context, Session, backends.Cookie) error { return nil }
func (l *lends) Remove(context.Context, Session, backends.Cookie) error {
	l.removed = true
	return nil
}

func TestSessionsTakenOverAreSealed(t *testing.T) {
	v := newVault(t)
	v.TakeOver("another server", &lends{item: backends.Item{Data: []byte("taken over"), Timeout: 20 * time.Minute, LockCookie: 2}})
	v.reads("shop", "1", "taken over")
	if data := v.kept("shop", "1").Data; !seal.IsSealed(data) || bytes.Contains(data, []byte("taken")) {
		t.Errorf("the store holds %q", data)
	}
}

// A session that comes under another application's name is sealed for that.
func TestAliasSealsAnew(t *testing.T) {
	v := newVault(t)
	v.write("/lm/w3svc/1/root", "1", "mine")
	v.write("/lm/w3svc/1/root", "2", "planted")
	v.plant("/lm/w3svc/1/root", "2", v.kept("/lm/w3svc/1/root", "1").Data)
	if err := v.SetAliases(t.Context(), []Alias{{"shop", []string{"/lm/w3svc/1/root", "/lm/w3svc/7/root"}}}); err != nil {
		t.Fatal(err)
	}
	v.reads("/lm/w3svc/7/root", "1", "mine")
	if _, err := seal.Open([]*seal.Key{v.key}, "shop/", "1", v.kept("shop/", "1").Data); err != nil {
		t.Errorf("it is not sealed for the application that has it now: %v", err)
	}
	// What cannot be opened stays where it is, unlocked, and its page fails at once.
	tries := v.Metrics.asked()
	if _, err := v.Get(t.Context(), now(), v.session("/lm/w3svc/7/root", "2")); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a planted session: %v", err)
	}
	if n := v.Metrics.asked() - tries; n != 1 {
		t.Errorf("it took %d tries", n)
	}
	if found := v.kept("/lm/w3svc/1/root", "2"); found.Locked || found.LockCookie != 1 {
		t.Errorf("it was locked, with cookie %d", found.LockCookie)
	}
}

// Sealed items move between stores as they are.
func TestSealedItemsMove(t *testing.T) {
	r := newMoveRig(t)
	k := newSealKey(t)
	r.SetEncryption(Encryption{Keys: []*seal.Key{k}, Seal: true})
	for _, id := range []string{"1", "2"} {
		r.set(id, "item "+id, 0)
	}
	before, err := r.stores["a"].List(t.Context(), backends.Query{Limit: 10, Data: true})
	if err != nil || len(before) != 2 {
		t.Fatalf("%+v, %v", before, err)
	}
	r.switchTo("b")
	if item, err := r.Get(t.Context(), now(), r.session("1")); err != nil || string(item.Data) != "item 1" {
		t.Errorf("on first touch it is %q, %v", item.Data, err)
	}
	r.moved()
	c := Copy{From: r.stores["b"], To: r.stores["c"], Done: func(int) {}}
	if _, err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"b", "c"} {
		after, err := r.stores[where].List(t.Context(), backends.Query{Limit: 10, Data: true})
		if err != nil || len(after) != 2 {
			t.Fatalf("%+v, %v", after, err)
		}
		for i := range after {
			if !bytes.Equal(after[i].Data, before[i].Data) {
				t.Errorf("the item of %s is another one in store %s", after[i].ID, where)
			}
		}
	}
	if item, err := r.Get(t.Context(), now(), r.session("2")); err != nil || string(item.Data) != "item 2" {
		t.Errorf("after the switch it is %q, %v", item.Data, err)
	}
}

// Who reads the state file finds nothing in it, and what is read from it opens as before.
func TestStateFileHoldsSealedItems(t *testing.T) {
	v := newVault(t)
	v.write("shop", "1", "a secret of one user")
	path := filepath.Join(t.TempDir(), "state")
	if n, err := SaveState(t.Context(), v.store, path); n != 1 || err != nil {
		t.Fatalf("saved %d sessions, %v", n, err)
	}
	data, err := os.ReadFile(path)
	if err != nil || bytes.Contains(data, []byte("secret")) || !bytes.Contains(data, v.kept("shop", "1").Data) {
		t.Errorf("the file holds %q, %v", data, err)
	}
	v.store = memory.New(0)
	v.setRoute(newRoute(v.store))
	if n, err := LoadState(t.Context(), v.store, path); n != 1 || err != nil {
		t.Fatalf("loaded %d sessions, %v", n, err)
	}
	v.reads("shop", "1", "a secret of one user")
}

// The threat model says so: what is found in a session is something that was written to it, though perhaps not the last.
func TestRollbackIsNotNoticed(t *testing.T) {
	v := newVault(t)
	v.write("shop", "1", "old")
	old := bytes.Clone(v.kept("shop", "1").Data)
	v.write("shop", "1", "new")
	v.plant("shop", "1", old)
	v.reads("shop", "1", "old")
}

// So it is without encryption, and while it is being turned on: who can write to the database chooses what web applications read.
func TestPlantedItemsInTheClear(t *testing.T) {
	for _, e := range []Encryption{{}, {Keys: []*seal.Key{newSealKey(t)}, Seal: true, AcceptUnencrypted: true}} {
		v := newVault(t)
		v.SetEncryption(e)
		v.write("shop", "1", "mine")
		v.plant("shop", "1", []byte("planted"))
		v.reads("shop", "1", "planted")
	}
}
