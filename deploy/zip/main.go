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
	"time"
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

// date is every file's.
var date = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// pack writes a folder of a file system to a new archive. Two archives of the same files are the same.
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
		to, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: date})
		if err != nil {
			return err
		}
		_, err = to.Write(data)
		return err
	})
	return errors.Join(err, w.Close(), out.Close())
}
