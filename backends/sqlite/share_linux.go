package sqlite

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// networkFileSystems are those whose locks and shared memory SQLite's log cannot rely on, by the number that statfs gives.
var networkFileSystems = map[uint32]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xfe534d42: "SMB",
	0xff534d42: "CIFS",
	fuse:       "FUSE",
	0x01021997: "9P, which is how WSL and virtual machines see the files of their host",
	0x5346414f: "AFS",
	0x6b414653: "AFS",
	0x73757245: "Coda",
	0x00c36400: "Ceph",
	0x0bd00bd0: "Lustre",
	0x19830326: "BeeGFS",
	0x01161970: "GFS2",
	0x7461636f: "OCFS2",
}

// fuse is the number of everything that a program serves: sshfs and s3fs, but local disks, too.
const fuse = 0x65735546

// localFUSE are the types of FUSE file systems known to be on a local disk. Of others nobody can say, so they count as shares.
var localFUSE = map[string]bool{
	"fuseblk":   true, // NTFS, exFAT
	"fuse.ext2": true, "fuse.ext3": true, "fuse.ext4": true, "fuse.fuse2fs": true,
	"fuse.ntfs-3g": true, "fuse.exfat": true,
	"fuse.fuse-overlayfs": true, // of containers without root
}

// networkShare is the kind of network file system that a folder is on, or "".
func networkShare(folder string) (string, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err != nil {
		return "", err
	}
	kind := networkFileSystems[uint32(fs.Type)]
	if uint32(fs.Type) != fuse {
		return kind, nil
	}
	var info syscall.Stat_t
	if err := syscall.Stat(folder, &info); err != nil {
		return "", err
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer mounts.Close()
	return fuseShare(mounts, fmt.Sprintf("%d:%d", unix.Major(info.Dev), unix.Minor(info.Dev)))
}

// fuseShare finds a FUSE file system by its device number in /proc/self/mountinfo, and returns its type unless that is known to be local.
func fuseShare(mounts io.Reader, device string) (string, error) {
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		mount, source, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if kind, _, _ := strings.Cut(source, " "); len(fields) > 2 && fields[2] == device {
			if localFUSE[kind] {
				return "", nil
			}
			return kind, nil
		}
	}
	return "FUSE", lines.Err()
}
