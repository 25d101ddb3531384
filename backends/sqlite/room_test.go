package sqlite

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"
	"time"
)

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// fill stores sessions from first on, in few commits.
func fill(t *testing.T, s *Store, first, n int, data []byte) {
	t.Helper()
	var writers sync.WaitGroup
	for part := range 16 {
		writers.Go(func() {
			for i := part; i < n; i += 16 {
				if err := s.Set(t.Context(), key(first+i), newToken(), write(data)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
}

const megabyte = 1 << 20

// A file that has grown shrinks when the sessions in it have gone, and keeps some room; those that remain stay whole.
func TestRoomIsGivenBack(t *testing.T) {
	s := newStore(t)
	path := s.file.Path()
	item := make([]byte, 20_000) // of 5 pages
	fill(t, s, 0, 4000, item)
	fill(t, s, 4000, 500, item)
	if _, err := s.file.DB().ExecContext(t.Context(), `UPDATE sessions SET expires = 1 WHERE CAST(substr(session_id, 8) AS INTEGER) < 4000`); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err != nil { // and have the log written back
		t.Fatal(err)
	}
	execute(t, s, writeBack)
	grown := sizeOf(t, path)
	if grown < 80*megabyte {
		t.Fatalf("the file has %d MB", grown/megabyte)
	}
	deleted := 0
	for range 10 { // sweeps, some of which meet requests
		n, err := s.DeleteExpired(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		deleted += n
	}
	execute(t, s, writeBack)
	swept := sizeOf(t, path)
	t.Logf("%d sessions deleted: %d MB, then %d MB, log %d MB", deleted, grown/megabyte, swept/megabyte, sizeOf(t, path+"-wal")/megabyte)
	if deleted != 4000 || swept > 20*megabyte || swept < 500*5*4096+keepPages*4096 {
		t.Errorf("%d sessions deleted, the file has %d bytes", deleted, swept)
	}
	for i := 4000; i < 4500; i++ {
		holds(t, s, key(i), item, 1)
	}
	// What is kept is used again.
	fill(t, s, 5000, 150, item)
	execute(t, s, writeBack)
	if again := sizeOf(t, path); again != swept {
		t.Errorf("with %d bytes to spare, the file grows from %d to %d", keepPages*4096, swept, again)
	}
}

func execute(t *testing.T, s *Store, statement string) {
	t.Helper()
	if _, err := s.file.DB().ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// look begins to read the file as it is now; the returned function ends that.
func look(t *testing.T, s *Store) (end func()) {
	conn, err := s.file.DB().Conn(t.Context())
	if err == nil {
		_, err = conn.ExecContext(t.Context(), "BEGIN DEFERRED")
	}
	sessions := 0
	if err == nil {
		err = conn.QueryRowContext(t.Context(), "SELECT count(*) FROM sessions").Scan(&sessions)
	}
	if err != nil {
		t.Error(err)
		return func() {}
	}
	return func() {
		if _, err := conn.ExecContext(context.WithoutCancel(t.Context()), "ROLLBACK"); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
}

// The log stays within its bound under load, though there is always somebody who reads. It grows only while somebody goes
// on looking at old pages, and shrinks then.
func TestLogIsBounded(t *testing.T) {
	s := newStore(t)
	wal := s.file.Path() + "-wal"
	rewrite := func(content, megabytes int) {
		for i := range megabytes / 8 { // pages that stay the same are not written
			fill(t, s, 0, 64, bytes.Repeat([]byte{byte(content + i)}, megabyte/8))
		}
	}
	one, other := look(t, s), look(t, s) // opened now: later they would wait for a writer that is never idle
	one()
	other()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		end := look(t, s)
		for {
			next := look(t, s) // before the one before ends
			end()
			end = next
			select {
			case <-stop:
				end()
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	largest := int64(0)
	for i := range 20 { // 160 MB
		rewrite(i, 8)
		largest = max(largest, sizeOf(t, wal))
	}
	close(stop)
	<-stopped
	if bound := int64(longestLog+longerLog+writeBackWait+1000) * 4120; largest > bound {
		t.Errorf("under load the log grows to %d MB", largest/megabyte)
	}

	end := look(t, s)
	rewrite(100, 120)
	pinned := sizeOf(t, wal)
	if pinned < 100*megabyte {
		t.Errorf("the log has %d MB though somebody looks at old pages: this test proves nothing", pinned/megabyte)
	}
	end()
	for i := 0; sizeOf(t, wal) > 64*megabyte; i++ {
		if i == 10 {
			t.Fatalf("the log keeps %d MB", sizeOf(t, wal)/megabyte)
		}
		rewrite(200+i, 8)
	}
	t.Logf("log: %d MB under load, %d MB while somebody looks, %d MB after", largest/megabyte, pinned/megabyte, sizeOf(t, wal)/megabyte)
}
