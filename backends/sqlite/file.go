package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gofrs/flock"
	driver "modernc.org/sqlite"
)

// File is a database file that this process owns: no other process, and nothing else in this one,
// can open it with Open at the same time.
type File struct {
	path  string
	lock  *flock.Flock
	db    *sql.DB
	close func() error

	backups sync.Mutex // held while one is made, and for ever by Close
}

// ErrInUse says that another File, here or in another process, has the database file.
var ErrInUse = errors.New("another aspstate (serve or migrate) is using it: stop that one first")

// Open takes the file at path for this process, and makes it and its folder if they are missing. It
// fails with ErrInUse if another File, here or in another process, has it, and on a network share. The lock is on a file beside it that
// ends in "-lock" and stays there. The database need not be migrated yet.
func Open(path string) (*File, error) {
	if path == "" || path == ":memory:" {
		return nil, fmt.Errorf("sqlite: open %q: sessions need a file: name one", path)
	}
	path, err := place(path)
	if err != nil {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, err)
	}
	switch share, err := networkShare(filepath.Dir(path)); {
	case err != nil:
		return nil, fmt.Errorf("sqlite: open %s: look at its file system: %w", path, err)
	case share != "":
		return nil, fmt.Errorf("sqlite: open %s: it is on a network file system (%s), where SQLite can lose what was written: put it on a local disk, or use PostgreSQL for several servers", path, share)
	}
	// The lock comes first: to open and close a file of SQLite's besides it would drop its own
	// locks in this process.
	lock := flock.New(path + "-lock")
	if ok, err := lock.TryLock(); err != nil {
		return nil, fmt.Errorf("sqlite: open %s: lock it: %w", path, err)
	} else if !ok {
		return nil, fmt.Errorf("sqlite: open %s: %w", path, ErrInUse)
	}
	made, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would let others read it
	if err == nil {
		err = made.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sqlite: open: %w", err), lock.Close())
	}
	connector, err := driver.NewConnector(uri(path))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sqlite: open %s: %w", path, err), lock.Close())
	}
	db := sql.OpenDB(connector)
	f := &File{path: path, lock: lock, db: db}
	f.close = sync.OnceValue(func() error {
		f.backups.Lock()
		return errors.Join(db.Close(), lock.Close())
	})
	return f, nil
}

// place makes the file's folder and returns the file's one true path, so that two names of a file
// are one lock.
func place(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return path, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return path, err
	}
	target := path
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		target = filepath.Dir(path)
	}
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return path, err
	}
	if target != path {
		real = filepath.Join(real, filepath.Base(path))
	}
	return real, nil
}

// uri is the data source name for database/sql. A plain path would be cut at a question mark.
func uri(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/…
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: "_txlock=immediate"}
	for _, pragma := range filePragmas {
		u.RawQuery += "&_pragma=" + url.QueryEscape(pragma)
	}
	return u.String()
}

// filePragmas are run on every connection.
var filePragmas = []string{
	"busy_timeout = " + otherWait,
	// Freed pages can be given back bit by bit. This works only before the first table, and before
	// WAL, which writes the file's header.
	"auto_vacuum = INCREMENTAL",
	"journal_mode = WAL",
	"synchronous = FULL", // a commit is on disk when it returns
}

// Path returns the file's absolute path.
func (f *File) Path() string { return f.path }

// DB returns a handle on the database, for migrations. Close closes it.
func (f *File) DB() *sql.DB { return f.db }

// Close gives the file up. It may be called again.
func (f *File) Close() error { return f.close() }

// Backup writes the database as it is now to a new file at path, and returns when that is on disk. All that was
// acknowledged before is in it. Sessions can be read and written meanwhile; the log grows by what is written. One backup is made at a time.
func (f *File) Backup(ctx context.Context, path string) (err error) {
	if !f.backups.TryLock() {
		return fmt.Errorf("sqlite: backup: %w", ErrBackupRuns)
	}
	defer f.backups.Unlock()
	copied, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) // SQLite would let others read it
	if err != nil {
		return fmt.Errorf("sqlite: backup: %w", err)
	}
	defer func() {
		if err = errors.Join(err, copied.Close()); err != nil {
			err = fmt.Errorf("sqlite: backup to %s: %w", path, errors.Join(err, os.Remove(path)))
		}
	}()
	if _, err := f.db.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return err
	}
	return copied.Sync() // VACUUM leaves that to its caller
}

// ErrBackupRuns says that a backup is being made, or that the file is being closed.
var ErrBackupRuns = errors.New("another backup is being made, or the server is stopping: try again later")
