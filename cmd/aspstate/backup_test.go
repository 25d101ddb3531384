package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	db := "--sql-connection-string=sqlite:" + path
	at := func(name string) string { return filepath.Join(dir, name) }
	want(t, 1, []string{"there is no database"}, "backup", db, at("none"))
	want(t, 1, []string{"only an SQLite file"}, "backup", "--sql-connection-string=postgres://u@h/d", at("none"))

	r := start(t, db)
	wantStatus(t, 200)(dial(t, r).Set(shop, []byte("cart"), 20*time.Minute, 0))
	operators := regexp.MustCompile(`serving operators" address=(\S+)`).FindStringSubmatch(r.log.String())
	if operators == nil {
		t.Fatalf("no listener for operators:\n%s", r.log)
	}
	want(t, 0, []string{at("serving") + " has all sessions"}, "backup", "--admin", operators[1], at("serving"))
	want(t, 1, []string{"is there already"}, "backup", "--admin", operators[1], at("serving"))
	want(t, 1, []string{"backup: "}, "backup", "--admin", operators[1], at("no/such/folder"))
	wantStatus(t, 200)(dial(t, r).Set(shop, []byte("more"), 20*time.Minute, 0))
	r.stop()
	r.ended(t, 0)
	want(t, 0, []string{at("resting")}, "backup", db, at("resting"))

	for name, holds := range map[string]string{"serving": "cart", "resting": "more"} {
		r := start(t, "--sql-connection-string=sqlite:"+at(name))
		if a := wantStatus(t, 200)(dial(t, r).Get(shop)); string(a.Body) != holds {
			t.Errorf("the backup %s holds %q", name, a.Body)
		}
		r.stop()
		r.ended(t, 0)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Name(), ".part") || strings.HasSuffix(f.Name(), "-backup") {
			t.Errorf("%s is left", f.Name())
		}
	}

	r = start(t, "--mode=StateServer")
	operators = regexp.MustCompile(`serving operators" address=(\S+)`).FindStringSubmatch(r.log.String())
	want(t, 1, []string{"only an SQLite file"}, "backup", "--admin", operators[1], at("memory"))
	r.stop()
	r.ended(t, 0)
}
