// Command zip packs a folder into an archive, for "make release" on machines without a zip program:
//
//	go run ./deploy/zip ARCHIVE PARENT FOLDER
package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: zip ARCHIVE PARENT FOLDER")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.DirFS(os.Args[2]), os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "zip:", err)
		os.Exit(1)
	}
}

// pack writes a folder of a file system to a new archive. Two archives of the same files are the same: they hold no dates.
func pack(archive string, from fs.FS, folder string) error {
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	w := zip.NewWriter(out)
	err = fs.WalkDir(from, path.Clean(folder), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(from, name)
		if err != nil {
			return err
		}
		to, err := w.Create(name)
		if err != nil {
			return err
		}
		_, err = to.Write(data)
		return err
	})
	return errors.Join(err, w.Close(), out.Close())
}
