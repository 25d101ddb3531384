package sqlite

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// flushData has the log's file flushed by fdatasync from now on, as SQLite does where it is built with HAVE_FDATASYNC; this build
// calls fsync. The log is written over and over and seldom grows, so that as a rule there is nothing but data to flush; fsync writes
// the file's times each time as well, which takes a transaction of the file system's own journal.
//
// It goes by SQLite's interface of files (sqlite3_io_methods), and by one field that is not of it, the descriptor: what is
// found there must be the log, else SQLite keeps its own way.
func (c *conn) flushData(log string) error {
	var file uintptr
	rc := c.handle(&file, func(out uintptr) int32 {
		return sqlite3.Xsqlite3_file_control(c.tls, c.db, 0, sqlite3.SQLITE_FCNTL_JOURNAL_POINTER, out)
	})
	if rc != sqlite3.SQLITE_OK {
		return c.failure(rc)
	}
	if file == 0 || !same(descriptor(file), log) {
		return nil
	}
	var methods sqlite3.Tsqlite3_io_methods
	size := int(unsafe.Sizeof(methods))
	c.methods = sqlite3.Xsqlite3_malloc(c.tls, int32(size))
	if c.methods == 0 {
		return c.failure(sqlite3.SQLITE_NOMEM)
	}
	at, table, flush := pointerAt(file), libc.GoBytes(c.methods, size), flushFile
	copy(table, libc.GoBytes(*at, size))
	*(*uintptr)(unsafe.Pointer(&table[unsafe.Offsetof(methods.FxSync)])) = *(*uintptr)(unsafe.Pointer(&flush))
	*at = c.methods

	// The first fsync of a new file would also have kept its name.
	folder, err := os.Open(filepath.Dir(log))
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// flushFile is xSync.
func flushFile(_ *libc.TLS, file uintptr, _ int32) int32 {
	for {
		switch err := syscall.Fdatasync(descriptor(file)); err {
		case nil:
			return sqlite3.SQLITE_OK
		case syscall.EINTR:
		default:
			return sqlite3.SQLITE_IOERR_FSYNC
		}
	}
}

// pointerAt is the memory of a pointer outside Go's heap, such as the one to its methods that a sqlite3_file begins with.
func pointerAt(p uintptr) *uintptr {
	return (*uintptr)(unsafe.Pointer(&libc.GoBytes(p, int(unsafe.Sizeof(p)))[0]))
}

// descriptor is the one of an open file of SQLite's "unix" VFS. In its structure it follows three pointers: methods, VFS, inode.
func descriptor(file uintptr) int {
	return int(int32(binary.NativeEndian.Uint32(libc.GoBytes(file+3*unsafe.Sizeof(file), 4))))
}

// same reports whether a descriptor is that of the file of this name.
func same(fd int, name string) bool {
	var open, named syscall.Stat_t
	return syscall.Fstat(fd, &open) == nil && syscall.Stat(name, &named) == nil && open.Dev == named.Dev && open.Ino == named.Ino
}
