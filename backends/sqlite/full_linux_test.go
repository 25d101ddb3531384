package sqlite

import (
	"bytes"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"aspstate/backends"
)

// TestFullDisk fills a file system of a few megabytes. (At a few sizes of the ballast the last write ends just so that the
// log cannot be written back either; then the release fails too.)
func TestFullDisk(t *testing.T) {
	folder := smallDisk(t)
	ballast := filepath.Join(folder, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20+4096), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, filepath.Join(folder, "a.db"))
	blob := func(n int) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8), 1}, 10_000) }
	set(t, s, key(0), write(blob(0)))
	locked, err := s.GetExclusive(t.Context(), key(0), newToken())
	if err != nil {
		t.Fatal(err)
	}
	n := 1
	for ; err == nil; n++ {
		if n > 1000 {
			t.Fatal("the file system does not get full")
		}
		err = s.Set(t.Context(), key(n), newToken(), write(blob(n)))
	}
	n-- // was refused
	wantIs(t, err, backends.ErrFull)

	// What was there is there, what was refused is not, and an owner that was refused can still
	// unlock.
	w := write(bytes.Repeat(blob(1), 10))
	w.LockCookie = locked.LockCookie
	wantIs(t, s.Set(t.Context(), key(0), newToken(), w), backends.ErrFull)
	if _, err := s.Release(t.Context(), key(0), newToken(), locked.LockCookie, backends.IfUnlocked); err != nil {
		t.Fatalf("the lock cannot be released on a full disk: %v", err)
	}
	holds(t, s, key(0), blob(0), locked.LockCookie)
	for i := 1; i < n; i++ {
		holds(t, s, key(i), blob(i), 1)
	}
	_, err = s.Get(t.Context(), key(n), newToken())
	wantIs(t, err, backends.ErrNotFound)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	set(t, s, key(n), write(blob(n)))
	holds(t, s, key(n), blob(n), 1)
}

// TestFullDiskReusesTheLog has not a byte left, and changes that need none beyond the log's.
func TestFullDiskReusesTheLog(t *testing.T) {
	folder := smallDisk(t)
	path := filepath.Join(folder, "a.db")
	s := openStore(t, path)
	for i := range 20 {
		set(t, s, key(i), write(bytes.Repeat([]byte("x"), 3000)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	fillUp(t, folder)
	before := logSize(t, s)
	for i := range 100 {
		item, err := s.GetExclusive(t.Context(), key(i%20), newToken())
		if err == nil {
			_, err = s.Release(t.Context(), key(i%20), newToken(), item.LockCookie, backends.IfUnlocked)
		}
		if err != nil {
			t.Fatalf("cycle %d, with a log of %d bytes, %d before: %v", i, logSize(t, s), before, err)
		}
	}
}

// smallDisk is a folder on a file system of 4 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("a small file system needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(folder, syscall.MNT_DETACH) })
	return folder
}

// fillUp leaves a few pages.
func fillUp(t *testing.T, folder string) (ballast string) {
	t.Helper()
	f, err := os.Create(filepath.Join(folder, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return f.Name()
}

// TestWriteErrors has the system refuse to write, with an error that is not for want of space.
func TestWriteErrors(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	t.Cleanup(func() { signal.Reset(syscall.SIGXFSZ) })
	s := newStore(t)
	set(t, s, key(1), write(data(1)))
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(max uint64) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: max, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { limit(old.Cur) })
	limit(uint64(logSize(t, s)))
	tok := newToken()
	_, err := s.GetExclusive(t.Context(), key(1), tok)
	setErr := s.Set(t.Context(), key(1), newToken(), write(data(2)))
	limit(old.Cur)

	for _, err := range []error{err, setErr} {
		if err == nil || backends.IsAnswer(err) || errors.Is(err, backends.ErrPermanent) {
			t.Errorf("a call that could not write returned %v", err)
		}
		// The transaction failed in its COMMIT: whether a crash now would bring it back nobody
		// knows.
		if errors.Is(err, backends.ErrNotApplied) {
			t.Errorf("%v claims to know the outcome", err)
		}
	}
	holds(t, s, key(1), data(1), 1)
	if item, err := s.GetExclusive(t.Context(), key(1), tok); err != nil || item.LockCookie != 2 {
		t.Fatalf("cookie %d, error %v", item.LockCookie, err)
	}
}
