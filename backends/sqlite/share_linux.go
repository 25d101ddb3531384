package sqlite

import "syscall"

// networkFileSystems are those whose locks and shared memory SQLite's log cannot rely on, by the number that statfs gives.
var networkFileSystems = map[uint32]string{
	0x6969:     "NFS",
	0x517b:     "SMB",
	0xfe534d42: "SMB",
	0xff534d42: "CIFS",
	0x65735546: "FUSE", // sshfs, s3fs and others: nothing tells them from those that are local
	0x01021997: "9P",
	0x5346414f: "AFS",
	0x6b414653: "AFS",
	0x73757245: "Coda",
	0x00c36400: "Ceph",
	0x0bd00bd0: "Lustre",
	0x19830326: "BeeGFS",
	0x01161970: "GFS2",
	0x7461636f: "OCFS2",
}

// networkShare is the kind of network file system that a folder is on, or "".
func networkShare(folder string) (string, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err != nil {
		return "", err
	}
	return networkFileSystems[uint32(fs.Type)], nil
}
