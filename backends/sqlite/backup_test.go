package sqlite

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// A backup under load holds everything that was acknowledged before it began, nothing that was sent after it ended, and each
// session whole.
func TestBackupUnderLoad(t *testing.T) {
	const clients = 8
	s := newStore(t)
	fill(t, s, 1000, 2000, make([]byte, 20_000))
	var acknowledged, sent [clients]atomic.Uint64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for i := range clients {
		load.Go(func() {
			for n := uint64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				item := make([]byte, 5000) // the same number all over
				for at := 0; at < len(item); at += 8 {
					binary.BigEndian.PutUint64(item[at:], n)
				}
				sent[i].Store(n)
				if err := s.Set(t.Context(), key(i), newToken(), write(item)); err != nil {
					t.Error(err)
					return
				}
				acknowledged[i].Store(n)
			}
		})
	}
	for i := range clients {
		for acknowledged[i].Load() < 20 && !t.Failed() {
		}
	}
	var least, most [clients]uint64
	for i := range clients {
		least[i] = acknowledged[i].Load()
	}
	path, err := s.Backup(t.Context())
	for i := range clients {
		most[i] = sent[i].Load()
	}
	close(stop)
	load.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := s.Backup(t.Context()); !errors.Is(err, ErrBackupRuns) {
		t.Errorf("a second one, while the first is read: %v", err)
	}

	restored := filepath.Join(t.TempDir(), "restored.db")
	if err := os.Rename(path, restored); err != nil {
		t.Fatal(err)
	}
	b := openStore(t, restored)
	var fault string
	if err := b.file.DB().QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&fault); err != nil || fault != "ok" {
		t.Errorf("integrity: %s, %v", fault, err)
	}
	grew := false
	for i := range clients {
		item, err := b.Get(t.Context(), key(i), newToken())
		if err != nil || len(item.Data) != 5000 {
			t.Fatalf("client %d: %d bytes, %v", i, len(item.Data), err)
		}
		n := binary.BigEndian.Uint64(item.Data)
		if n < least[i] || n > most[i] {
			t.Errorf("client %d: the backup has write %d; %d was acknowledged before, %d sent by its end", i, n, least[i], most[i])
		}
		for at := 0; at < len(item.Data); at += 8 {
			if got := binary.BigEndian.Uint64(item.Data[at:]); got != n {
				t.Fatalf("client %d: the item mixes writes %d and %d", i, n, got)
			}
		}
		grew = grew || most[i] > least[i]+1
	}
	if !grew {
		t.Error("nothing was written during the backup: this test proves nothing")
	}
	for _, i := range []int{1000, 2999} {
		holds(t, b, key(i), make([]byte, 20_000), 1)
	}
}

func TestBackupLeavesNothingBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := openStore(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Backup(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled backup: %v", err)
	}
	if _, err := os.Stat(path + "-backup"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it leaves a file: %v", err)
	}
	if _, err := s.Backup(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	openStore(t, path) // of a process that did not come to remove it
	if _, err := os.Stat(path + "-backup"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next start leaves it: %v", err)
	}
	if _, err := s.Backup(t.Context()); err == nil {
		t.Error("a closed store makes a backup")
	}
}
