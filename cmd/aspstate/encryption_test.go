package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"aspstate/backends"
	"aspstate/config"
	"aspstate/server/seal"
	"aspstate/server/stateserver/client"
)

// keyFile makes a key, and returns what the settings call it and its ID.
func keyFile(t *testing.T) (from, id string) {
	t.Helper()
	secret := make([]byte, seal.KeySize)
	rand.Read(secret)
	k, err := seal.NewKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return "file:" + write(t, filepath.Join(t.TempDir(), "key"), base64.StdEncoding.EncodeToString(secret)+"\n"), k.ID().String()
}

func secretOf(t *testing.T, from string) string {
	t.Helper()
	data, err := os.ReadFile(strings.TrimPrefix(from, "file:"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// setItem and getItem use a session that nobody locks.
func setItem(t *testing.T, r *running, id, data string) {
	t.Helper()
	wantStatus(t, 200)(dial(t, r).Set(client.Target(shopApp, id), []byte(data), 20*time.Minute, 0))
}

func getItem(t *testing.T, r *running, id, data string) {
	t.Helper()
	if a := wantStatus(t, 200)(dial(t, r).Get(client.Target(shopApp, id))); string(a.Body) != data {
		t.Errorf("session %s is %q, want %q", id, a.Body, data)
	}
}

// refused wants the connection closed without an answer.
func refused(t *testing.T, r *running, id string) {
	t.Helper()
	if a, err := dial(t, r).Get(client.Target(shopApp, id)); err == nil {
		t.Errorf("session %s is answered: %d, %q", id, a.Status, a.Body)
	}
}

const creditCard = "4929-1293-5583-8471 is a number of a credit card, and long enough for no coincidence"

// Who reads the files of the database finds nothing of what web applications keep there.
func TestDatabaseReadersSeeNothing(t *testing.T) {
	key, _ := keyFile(t)
	visible := func(dir string) bool {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no files in %s: %v", dir, err)
		}
		found := false
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(data, []byte(creditCard[:12]))
		}
		return found
	}
	for _, encrypted := range []bool{false, true} {
		dir := t.TempDir()
		args := []string{"--sql-connection-string=sqlite:" + filepath.Join(dir, "a.db")}
		if encrypted {
			args = append(args, "--encryption-keys="+key)
		}
		r := start(t, args...)
		setItem(t, r, "1", creditCard)
		getItem(t, r, "1", creditCard)
		if got := visible(dir); got == encrypted { // with its journal
			t.Errorf("encrypted %t: readable while the server runs: %t", encrypted, got)
		}
		r.stop()
		r.ended(t, 0)
		if got := visible(dir); got == encrypted {
			t.Errorf("encrypted %t: readable when it has ended: %t", encrypted, got)
		}
	}
}

// A key that is missing is found when the server starts, not by the pages that fail.
func TestUnknownKeyIsFoundAtStart(t *testing.T) {
	database := "--sql-connection-string=sqlite:" + filepath.Join(t.TempDir(), "a.db")
	key, id := keyFile(t)
	other, otherID := keyFile(t)
	r := start(t, database, "--encryption-keys="+key)
	setItem(t, r, "1", "mine")
	r.stop()
	r.ended(t, 0)
	for _, args := range [][]string{{}, {"--encryption-keys=" + other}} {
		args = append([]string{"serve", "--listen=127.0.0.1:0", "--admin-listen=off", database}, args...)
		want(t, 1, []string{"encrypted with key " + id, "encryption.keys"}, args...)
	}
	_, _, stderr := aspstate(t, "serve", "--listen=127.0.0.1:0", "--admin-listen=off", database, "--encryption-keys="+other)
	if !strings.Contains(stderr, other+" is "+otherID) {
		t.Errorf("the error does not say which keys there are: %s", stderr)
	}
	_, _, stderr = aspstate(t, "check", database, "--encryption-keys="+key)
	if !strings.Contains(stderr, "the key in "+key+" is "+id) {
		t.Errorf("check does not say the ID of the key: %s", stderr)
	}
	r = start(t, database, "--encryption-keys="+other, "--encryption-keys="+key)
	getItem(t, r, "1", "mine")
}

// Turned on, with another key, and off again, by reloads of the settings and without losing a session.
func TestEncryptionByReload(t *testing.T) {
	dir := t.TempDir()
	a, idA := keyFile(t)
	b, idB := keyFile(t)
	file := write(t, filepath.Join(dir, "aspstate.yaml"), "sqlConnectionString: sqlite:a.db\n")
	r := start(t, "--config="+file)
	at := "--admin=" + adminAddress(t, r)
	reload := func(encryption string) {
		t.Helper()
		write(t, file, "sqlConnectionString: sqlite:a.db\nencryption: {"+encryption+"}\n")
		want(t, 0, nil, "reload", at)
	}
	setItem(t, r, "1", "in the clear")
	reload("keys: ['" + a + "']")
	refused(t, r, "1") // too early; nothing is lost
	r.log.await(t, "not encrypted")
	reload("keys: ['" + a + "'], acceptUnencrypted: true")
	r.log.await(t, "can plant sessions")
	getItem(t, r, "1", "in the clear")
	setItem(t, r, "2", "by a")
	reload("keys: ['" + b + "', '" + a + "'], acceptUnencrypted: true")
	setItem(t, r, "3", "by b")
	getItem(t, r, "2", "by a")
	want(t, 0, []string{idA, idB, "(none)"}, "sessions", "keys", at)

	// A key that is still needed cannot be taken away.
	write(t, file, "sqlConnectionString: sqlite:a.db\nencryption: {keys: ['"+b+"']}\n")
	want(t, 1, []string{"encrypted with key " + idA}, "reload", at)
	getItem(t, r, "2", "by a")

	reload("keys: ['" + b + "', '" + a + "'], seal: false")
	setItem(t, r, "4", "in the clear")
	for id, data := range map[string]string{"1": "in the clear", "2": "by a", "3": "by b", "4": "in the clear"} {
		getItem(t, r, id, data)
	}
}

// The keys are in nothing that the server tells.
func TestKeysAreNowhereToBeRead(t *testing.T) {
	key, _ := keyFile(t)
	secret := secretOf(t, key)
	raw, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, "--mode=StateServer", "--encryption-keys="+key)
	at := "http://" + adminAddress(t, r)
	setItem(t, r, "1", "mine")
	var told bytes.Buffer
	for _, path := range []string{"/", "/metrics", "/api/status", "/api/keys", "/api/session?application=" + strings.ToLower(shopApp) + "&id=1&values=true"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
		}
		told.Write(body)
	}
	for _, args := range [][]string{{"check", "--mode=StateServer", "--encryption-keys=" + key}, {"check", "--encryption-keys=" + secret}, {"doctor", "--admin=" + at}} {
		_, stdout, stderr := aspstate(t, args...)
		told.WriteString(stdout + stderr)
	}
	r.stop()
	r.ended(t, 0)
	told.WriteString(r.log.String())
	for _, hidden := range []string{secret, secret[:20], string(raw), string(raw[:8])} {
		if strings.Contains(told.String(), hidden) {
			t.Errorf("a key can be read in\n%s", told.String())
		}
	}
}

// inUse is a store whose database web applications use directly.
type inUse struct {
	backends.Store
	err error
}

func (s inUse) InDirectUse(context.Context) error { return s.err }

func TestDirectReadersExcludeEncryption(t *testing.T) {
	key, _ := keyFile(t)
	for _, test := range []struct {
		store   backends.Store
		args    []string
		refused bool
	}{
		{inUse{err: backends.ErrPermanent}, []string{"--encryption-keys=" + key}, true},
		{inUse{err: backends.ErrPermanent}, []string{"--encryption-keys=" + key, "--encryption-seal=false"}, false},
		{inUse{err: backends.ErrPermanent}, nil, false},
		{inUse{}, []string{"--encryption-keys=" + key}, false},
	} {
		c := load(t, test.args...)
		if err := checkDirectUse(t.Context(), test.store, c); (err != nil) != test.refused {
			t.Errorf("%v: %v", test.args, err)
		}
	}
	const note = `note: web applications in mode="SQLServer" that use the database directly cannot read encrypted sessions`
	nowhere := "--sql-connection-string=sqlserver://127.0.0.1:1?encrypt=disable"
	if _, _, stderr := withoutWaiting(t, "check", nowhere, "--encryption-keys="+key); !strings.Contains(stderr, note) {
		t.Errorf("check says %s", stderr)
	}
	if _, _, stderr := withoutWaiting(t, "check", nowhere); strings.Contains(stderr, note) {
		t.Errorf("without encryption check says %s", stderr)
	}
}

func load(t *testing.T, args ...string) *config.Config {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load("", nil, flags)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
