package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// aspstate runs the program to its end.
func aspstate(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return aspstateUntil(t.Context(), args)
}

// withoutWaiting runs a command that else waits for a database to start, which here never does.
func withoutWaiting(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	return aspstateUntil(ctx, args)
}

func aspstateUntil(ctx context.Context, args []string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, &out, &errs, nil)
	return code, out.String(), errs.String()
}

// progress is what "copy" says once a second on standard error; on a busy machine it takes seconds.
var progress = regexp.MustCompile(`(?m)^\d+ of \d+ sessions, .* left\n`)

// want runs the program, and wants this exit code and these parts in what it
// prints: on standard output if it is 0, else on standard error.
func want(t *testing.T, code int, parts []string, args ...string) {
	t.Helper()
	got, stdout, stderr := aspstate(t, args...)
	text, silent := stdout, progress.ReplaceAllString(stderr, "")
	if code != 0 {
		text, silent = stderr, ""
	}
	ok := got == code && silent == ""
	for _, part := range parts {
		ok = ok && strings.Contains(text, part)
	}
	if !ok {
		t.Errorf("aspstate %s: exit code %d, stdout:\n%s\nstderr:\n%s\nwant exit code %d and %q", strings.Join(args, " "), got, stdout, stderr, code, parts)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help"}} {
		want(t, 0, []string{"serve ", "check ", "migrate ", "ping ", "version "}, args...)
	}
	want(t, 0, []string{"--limits-body size", "--config file", "SIGHUP"}, "serve", "--help")
	want(t, 0, []string{"up ", "down ", "status ", "version ", "force "}, "migrate")
	want(t, 1, []string{`aspstate: unknown command "srve"`, "serve"}, "srve")
	want(t, 1, []string{"migrate sideways is no command"}, "migrate", "sideways")
	want(t, 1, []string{"unknown flag: --prot"}, "serve", "--prot", "1")
	want(t, 1, []string{"unknown command"}, "serve", "now")
}

func TestVersion(t *testing.T) {
	want(t, 0, []string{"aspstate dev (go1.", "/"}, "version")
	version = "v1.2.3"
	defer func() { version = "" }()
	want(t, 0, []string{"aspstate v1.2.3 (go1."}, "version")
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "aspstate.yaml")
	write(t, file, "limits: {body: 1MiB}\nsqlConnectionString: sqlite:sub/x.db\n")
	path := filepath.Join(dir, "sub", "x.db")
	want(t, 0, []string{"limits.body                   1MiB", "(aspstate.yaml line 1)", "sqlite:" + path, "(--log-level)", "(default)"}, "check", "--config", file, "--log-level=debug")
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("check left %v, %v", files, err)
	}
	want(t, 1, []string{"sqlConnectionString: ", "aspstate.yaml", "not a directory"}, "check", "--sql-connection-string=sqlite:"+file+"/x.db")
	want(t, 1, []string{"aspstate: 2 faults\n  mode (--mode): ", "\n  sweep.batch (--sweep-batch): "}, "check", "--mode=InProc", "--sweep-batch=0")
	want(t, 1, []string{"is not a file"}, "check", "--sql-connection-string", "sqlite:"+dir)
	want(t, 1, []string{"aspstate: --config: ", "no such file"}, "check", "--config", filepath.Join(dir, "none.yaml"))
	want(t, 0, []string{"StateServer"}, "check", "--mode=StateServer", "--sql-connection-string", "sqlite:/dev/null/x.db")

	code, stdout, stderr := aspstate(t, "check", "--request-budget=20s", "--sql-connection-string", "sqlite:"+path)
	if code != 0 || !strings.HasPrefix(stderr, "warning: requestBudget is 20s") || !strings.Contains(stdout, "requestBudget") {
		t.Errorf("exit code %d, stdout:\n%s\nstderr:\n%s\nwant a warning of requestBudget", code, stdout, stderr)
	}
}

func TestCheckUnwritable(t *testing.T) {
	if os.Geteuid() <= 0 {
		t.Skip("file modes do not bind this user")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	write(t, path, "")
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	want(t, 1, []string{"write access to it"}, "check", "--sql-connection-string", "sqlite:"+path)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	want(t, 1, []string{"a folder where the user"}, "check", "--sql-connection-string", "sqlite:"+path+"2")
}

// Secrets come in through the environment and stay there.
func TestCheckHidesSecrets(t *testing.T) {
	const secret = "s3cretS3cret"
	for _, env := range []string{
		"ASPSTATE_SQLCONNECTIONSTRING=Data Source=db;User ID=sa;Password=" + secret,
		"ASPSTATE_SQLCONNECTIONSTRING=postgres://u:" + secret + "@h/d",
		"ASPSTATE_SQLCONNECTIONSTRING=" + secret,
	} {
		for _, mode := range []string{"SQLServer", "StateServer"} {
			var out bytes.Buffer
			code := run(t.Context(), []string{"check", "--mode", mode}, &out, &out, []string{env})
			if (code == 0) != (mode == "StateServer") || out.Len() == 0 || strings.Contains(out.String(), secret) {
				t.Errorf("%s in mode %s: exit code %d\n%s", env, mode, code, &out)
			}
		}
	}
}

func TestMigrate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db := "--sql-connection-string=sqlite:" + path
	for _, args := range [][]string{{"status"}, {"version"}, {"down", "--yes"}, {"force", "1"}} {
		want(t, 1, []string{"there is no database yet", "aspstate migrate up creates it"}, append([]string{"migrate", db}, args...)...)
	}
	if _, err := os.Stat(path); err == nil {
		t.Fatal("the database was created")
	}
	want(t, 0, []string{"up to date"}, "migrate", "up", db)
	want(t, 0, []string{"up to date: version "}, "migrate", "status", db)
	_, latest, _ := aspstate(t, "migrate", "version", db)
	if strings.TrimSpace(latest) == "0" || latest == "" {
		t.Errorf("migrate version prints %q", latest)
	}
	want(t, 1, []string{"deletes all sessions in " + path, "--yes"}, "migrate", "down", db)
	want(t, 0, []string{latest}, "migrate", "version", db)
	want(t, 0, []string{"removed"}, "migrate", "down", "--yes", db)
	want(t, 0, []string{"0\n"}, "migrate", "version", db)
	want(t, 1, []string{"version 0", "run: aspstate migrate up"}, "migrate", "status", db)
	want(t, 0, []string{"up to date"}, "migrate", "up", db)
	want(t, 0, []string{"version 0 is noted"}, "migrate", "force", "0", db)
	want(t, 0, []string{"0\n"}, "migrate", "version", db)
	want(t, 1, []string{`"x" is no version`}, "migrate", "force", "x", db)
	want(t, 1, []string{"knows versions 0 to"}, "migrate", "force", "99", db)
	want(t, 1, []string{"keeps sessions in memory"}, "migrate", "up", "--config", write(t, filepath.Join(t.TempDir(), "a.yaml"), "mode: StateServer"))
}

func write(t *testing.T, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestImports keeps the direction of imports: cmd -> server/* -> backends <-
// backends/*; config and migrations import nothing of ours; only cmd sees everything.
func TestImports(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	list.Dir = filepath.Join("..", "..")
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], "aspstate/")
		for _, imported := range fields[1:] {
			seen++
			if problem := forbidden(pkg, imported); problem != "" {
				t.Errorf("%s imports %s: %s", pkg, imported, problem)
			}
		}
	}
	if seen < 50 {
		t.Errorf("go list shows only %d imports", seen)
	}
}

// forbidden says why a package of ours must not import another package.
func forbidden(pkg, imported string) string {
	ours, isOurs := strings.CutPrefix(imported, "aspstate/")
	below := func(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }
	switch {
	case below(pkg, "cmd"), below(pkg, "harness"): // the harness is for tests only
		return ""
	case slices.Contains([]string{"os/signal", "flag", "github.com/spf13/cobra"}, imported):
		return "flags and signals are cmd's"
	case pkg == "backends":
		if first, _, _ := strings.Cut(imported, "/"); isOurs || strings.Contains(first, ".") {
			return "the contract imports the standard library only"
		}
	case below(ours, "harness"):
		return "the harness is for tests only"
	case !isOurs:
	case below(pkg, "config"), below(pkg, "migrations"):
		return "it imports nothing of ours"
	case below(pkg, "backends"):
		if ours != "backends" && !below(ours, "backends/backendtest") {
			return "a store knows the contract only"
		}
	case pkg == "server/seal":
		return "it knows nothing of sessions"
	case pkg == "server" && ours == "server/seal":
	case below(pkg, "server"):
		if ours != "backends" && !below(ours, "server") {
			return "front ends know the contract only, not the stores and settings"
		}
		if pkg == "server" && ours != "backends" {
			return "what front ends share knows none of them"
		}
	default:
		return fmt.Sprintf("%s is in no rule: add one", pkg)
	}
	return ""
}

func TestForbidden(t *testing.T) {
	for _, bad := range [][2]string{
		{"backends", "aspstate/config"}, {"backends", "golang.org/x/sync/errgroup"}, {"backends/memory", "aspstate/backends/sqlite"},
		{"backends/sqlite", "aspstate/migrations"}, {"config", "aspstate/backends"}, {"migrations", "aspstate/config"}, {"server", "aspstate/server/stateserver"},
		{"server/stateserver", "aspstate/backends/memory"}, {"server/stateserver", "aspstate/config"}, {"server", "os/signal"}, {"server", "aspstate/harness"}, {"server/seal", "aspstate/server"}, {"util", "aspstate/config"},
	} {
		if forbidden(bad[0], bad[1]) == "" {
			t.Errorf("%s may import %s", bad[0], bad[1])
		}
	}
	for _, good := range [][2]string{
		{"cmd/aspstate", "aspstate/backends/sqlite"}, {"backends", "time"}, {"backends/sqlite", "aspstate/backends"}, {"backends/sqlite", "modernc.org/sqlite"},
		{"server", "aspstate/backends"}, {"server", "aspstate/server/seal"}, {"server/stateserver", "aspstate/server"}, {"server/stateserver/transcript", "aspstate/server/stateserver/client"}, {"config", "github.com/spf13/viper"},
	} {
		if problem := forbidden(good[0], good[1]); problem != "" {
			t.Errorf("%s must not import %s: %s", good[0], good[1], problem)
		}
	}
}
