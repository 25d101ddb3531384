package sqlite

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// Where it cannot be sure, the store leaves the log to SQLite; with the SQLite that it is built with it is sure.
func TestLogIsFlushedByData(t *testing.T) {
	s := newStore(t)
	inWriter(t, s, func(w *writer) error {
		if w.conn.methods == 0 {
			t.Error("SQLite flushes its log by fsync")
		}
		return nil
	})
}

// A flush that fails is a commit that fails.
func TestFlushesThatFail(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tls := libc.NewTLS()
	defer tls.Close()
	file := sqlite3.Xsqlite3_malloc(tls, 64)
	defer sqlite3.Xsqlite3_free(tls, file)
	for fd, want := range map[int32]int32{int32(f.Fd()): sqlite3.SQLITE_OK, -1: sqlite3.SQLITE_IOERR_FSYNC} {
		binary.NativeEndian.PutUint32(libc.GoBytes(file, 64)[24:], uint32(fd)) // behind three pointers
		if got := flushFile(tls, file, 0); got != want {
			t.Errorf("the flush of descriptor %d gives %d, want %d", fd, got, want)
		}
	}
	if !same(int(f.Fd()), f.Name()) || same(int(f.Fd()), t.TempDir()) || same(-1, f.Name()) {
		t.Error("a file is not told from another")
	}
}
