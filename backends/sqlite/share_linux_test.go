package sqlite

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestNetworkShareIsRefused(t *testing.T) {
	dir := t.TempDir()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	kind := uint32(fs.Type)
	if name, there := networkFileSystems[kind]; there {
		t.Skipf("the temporary folder is on %s", name)
	}
	networkFileSystems[kind] = "NFS"
	defer delete(networkFileSystems, kind)
	path := filepath.Join(dir, "sub", "x.db")
	_, err := Open(path)
	if err == nil || !strings.Contains(err.Error(), "NFS") || !strings.Contains(err.Error(), "local disk") {
		t.Errorf("a database on a network share: %v", err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 0 {
		t.Errorf("the refusal left %v, %v", files, err)
	}
}

// A link to a share is a share.
func TestFileSystemOfLinks(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skip("this machine has no second file system at /dev/shm")
	}
	networkFileSystems[0x01021994] = "tmpfs"
	defer delete(networkFileSystems, 0x01021994)
	there, err := os.MkdirTemp("/dev/shm", "aspstate")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(there)
	link := filepath.Join(t.TempDir(), "data")
	if err := os.Symlink(there, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(link, "x.db")); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("a database behind a link: %v", err)
	}
}
