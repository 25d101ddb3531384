package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// backupWithin is how long a backup may take, its way to the client included.
const backupWithin = time.Hour

// backup answers with a copy of the database, made while the server serves.
func (s *Server) backup(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, err error) {
		s.log.Warn("no backup was made", "error", err)
		answer(w, status, problem{Text: err.Error()})
	}
	store, ok := s.sessions.Store().(interface {
		Backup(ctx context.Context) (path string, err error)
	})
	if !ok {
		refuse(http.StatusNotImplemented, errors.New("only an SQLite file is backed up by its server: use the tools of the database"))
		return
	}
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(backupWithin))
	ctx, cancel := context.WithTimeout(r.Context(), backupWithin)
	defer cancel()
	begun := time.Now()
	path, err := store.Backup(ctx)
	if err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	defer os.Remove(path)
	file, err := os.Open(path)
	if err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	defer file.Close() // before it is removed, for Windows
	info, err := file.Stat()
	if err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.sqlite3")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
	if _, err := io.Copy(w, file); err != nil {
		s.log.Warn("a backup did not reach who asked for it", "error", err)
		return
	}
	s.log.Info("a backup was made", "bytes", info.Size(), "took", time.Since(begun).Round(time.Millisecond))
}
