package sqlite

import (
	"bufio"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"aspstate/backends"
)

// ownerChild is set for the process that TestAnotherProcessIsRefused starts: the file to open.
const ownerChild = "ASPSTATE_TEST_OWNER"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(ownerChild) != "":
		os.Exit(ownFile(os.Getenv(ownerChild)))
	case os.Getenv(crashChild) != "":
		os.Exit(writeUntilKilled(os.Getenv(crashChild)))
	}
	os.Exit(m.Run())
}

// ownFile opens the file, says so and keeps it until its standard input ends.
func ownFile(path string) int {
	if _, err := Open(path); err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	os.Stdout.WriteString("open\n")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func mustOpen(t *testing.T, path string) *File {
	t.Helper()
	file, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func wantInUse(t *testing.T, path, file string) {
	t.Helper()
	second, err := Open(path)
	if err == nil {
		second.Close()
		t.Fatalf("%s was opened twice", file)
	}
	for _, part := range []string{file, "another aspstate (serve or migrate) is using it"} {
		if !strings.Contains(err.Error(), part) {
			t.Fatalf("error %q does not say %q", err, part)
		}
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "a.db")
	file := mustOpen(t, path)
	if file.Path() != path {
		t.Fatalf("path is %s, want %s", file.Path(), path)
	}
	wantInUse(t, path, path)
	wantInUse(t, filepath.Join(folder, ".", "x", "..", "a.db"), path)
	t.Chdir(folder)
	wantInUse(t, "a.db", path)
	if runtime.GOOS != "windows" {
		if err := errors.Join(os.Symlink(path, filepath.Join(folder, "b.db")), os.Symlink(folder, filepath.Join(folder, "c"))); err != nil {
			t.Fatal(err)
		}
		wantInUse(t, "b.db", path)
		wantInUse(t, filepath.Join("c", "a.db"), path)
	}
	mustOpen(t, filepath.Join(folder, "other.db"))
	for range 2 {
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, path)
}

func TestStoreOwnsItsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openStore(t, path)
	wantInUse(t, path, s.file.Path())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
}

func TestAnotherProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), ownerChild+"="+path)
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "open\n" {
		t.Fatalf("the child said %q, error %v", line, err)
	}
	wantInUse(t, path, "a.db")
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
}

func TestOpenMakesWhatIsMissing(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "to", "sessions")
	openStore(t, filepath.Join(folder, "a.db"))
	if runtime.GOOS == "windows" {
		return
	}
	for _, c := range []struct {
		path string
		mode fs.FileMode
	}{
		{folder, fs.ModeDir | 0o700},
		{filepath.Join(folder, "a.db"), 0o600},
		{filepath.Join(folder, "a.db-wal"), 0o600},
		{filepath.Join(folder, "a.db-shm"), 0o600},
		{filepath.Join(folder, "a.db-lock"), 0o600},
	} {
		info, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != c.mode {
			t.Errorf("%s has mode %v, want %v: others could read sessions", c.path, info.Mode(), c.mode)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", ":memory:", folder, filepath.Join(folder, "file", "a.db")} {
		if file, err := Open(path); err == nil {
			file.Close()
			t.Errorf("%q was opened", path)
		}
	}
}

func TestOddNames(t *testing.T) {
	for _, name := range []string{"a?b.db", "a%20b.db", "a#b.db", "a b&c=d.db", "ä€😀.db", "file:x.db"} {
		if runtime.GOOS == "windows" && strings.ContainsAny(name, "?:") {
			continue
		}
		folder := t.TempDir()
		s := openStore(t, filepath.Join(folder, name))
		key := backends.Key{App: 1, ID: "session"}
		set(t, s, key, backends.Write{Data: []byte("data"), Timeout: 1})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), name) {
				t.Errorf("%q became %q", name, e.Name())
			}
		}
	}
}

func TestUnmigratedFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	file := mustOpen(t, path)
	s, err := New(file, slog.New(slog.DiscardHandler))
	if err == nil {
		s.Close()
		t.Fatal("a file without tables is served")
	}
	if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), "run: aspstate migrate up") || !strings.Contains(err.Error(), path) {
		t.Fatalf("error is %v", err)
	}
	// The file is still the caller's, and what New left in it does no harm.
	wantInUse(t, path, path)
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	wantPragmas(t, s)
}

func TestNotADatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database at all ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(mustOpen(t, path), slog.New(slog.DiscardHandler))
	if err == nil {
		s.Close()
		t.Fatal("a text file is served")
	}
	if !errors.Is(err, backends.ErrPermanent) {
		t.Fatalf("%v is not permanent", err)
	}
}

// wantPragmas checks what durability and the file's growth hang on.
func wantPragmas(t *testing.T, s *Store) {
	t.Helper()
	for pragma, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "auto_vacuum": "2", "wal_autocheckpoint": "0", "journal_size_limit": "67108864",
	} {
		var got string
		inWriter(t, s, func(w *writer) (err error) {
			got, err = w.conn.query("PRAGMA " + pragma)
			return err
		})
		if got != want {
			t.Errorf("%s is %s, want %s", pragma, got, want)
		}
	}
}

func TestPragmas(t *testing.T) { wantPragmas(t, newStore(t)) }
