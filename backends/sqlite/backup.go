package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"aspstate/backends"
)

// Backup copies the sessions as they are now into a file beside the database, and returns its path; the caller removes it.
// What was acknowledged before is in it; a session that is written meanwhile is in it as it was. The error is ErrBackupRuns while
// another one is made, and ErrMoved for a store that was left.
func (s *Store) Backup(ctx context.Context) (path string, err error) {
	switch m := s.moves.Load(); {
	case m.Left():
		return "", movedError("backup")
	case m.Into.Stage == backends.Moving:
		return "", errors.New("sqlite: backup: sessions are being moved to this file: try again when that is over")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.closing:
			cancel(errClosed)
		case <-ctx.Done():
		}
	}()
	path = s.file.path + "-backup"
	err = s.file.Backup(ctx, path)
	if errors.Is(err, fs.ErrExist) { // its caller still reads it
		err = ErrBackupRuns
	}
	if err != nil {
		return "", err
	}
	return path, nil
}

// removeLeftBackup removes what a process that ended meanwhile has left.
func removeLeftBackup(path string) error {
	if err := os.Remove(path + "-backup"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what is left of a backup: %w", err)
	}
	return nil
}
