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

func TestFUSE(t *testing.T) {
	const mounts = `22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
90 27 0:50 / /mnt/far rw,nosuid shared:9 master:2 - fuse.sshfs web@far:/srv rw,user_id=0
91 27 0:51 / /mnt/bucket rw - fuse.s3fs s3fs rw
92 27 0:52 / /mnt/other rw - fuse.newthing x rw
93 27 0:53 / /mnt/plain rw - fuse x rw
94 27 0:55 / /mnt/host rw - virtiofs share rw
95 27 8:17 / /mnt/with\040-\040dash rw - fuseblk /dev/sdb1 rw,blksize=4096
96 27 0:54 / /data rw - fuse.fuse-overlayfs fuse-overlayfs rw
97 96 0:54 /sub /elsewhere rw - fuse.fuse-overlayfs fuse-overlayfs rw
98 27 0:56 / /mnt/image rw - fuse.ext4 /image rw
`
	for device, want := range map[string]string{
		"0:50": "fuse.sshfs", "0:51": "fuse.s3fs", "0:52": "fuse.newthing", "0:53": "fuse", "0:55": "virtiofs",
		"8:17": "", "0:54": "", "0:56": "",
		"0:5": "FUSE", // not in the list: nobody can say
	} {
		if got, err := fuseShare(strings.NewReader(mounts), device); got != want || err != nil {
			t.Errorf("device %s is %q, %v, want %q", device, got, err, want)
		}
	}
}
