package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"aspstate/backends"
)

// A state file keeps the sessions of mode StateServer over a planned restart: their data and what is left of their
// time, during which the server's absence does not count. It is a heading, a gob of each session, and the SHA-256 of all before.

const stateHeading = "aspstate sessions 1\n"

// savedSession is a session in a state file. A record without a session ID is the last.
type savedSession struct {
	Application string
	Session     backends.Session
}

// SaveState writes all sessions of a store into a file that only its owner can read, and returns how many. Nobody may use the
// store meanwhile. A file of that name is replaced when the new one is whole.
func SaveState(ctx context.Context, store backends.Inspector, path string) (n int, err error) {
	apps, err := backends.Names(ctx, store)
	if err != nil {
		return 0, err
	}
	names := make(map[backends.AppID]string, len(apps))
	for _, app := range apps {
		names[app.ID] = app.Name
	}
	file, err := os.CreateTemp(filepath.Dir(path), ".aspstate-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	buffered := bufio.NewWriterSize(file, 1<<20)
	sum := sha256.New()
	out := io.MultiWriter(buffered, sum)
	io.WriteString(out, stateHeading)
	enc := gob.NewEncoder(out)
	for after := (backends.Key{}); ; {
		page, err := store.List(ctx, backends.Query{After: after, Limit: copyKeys, Data: true})
		if err != nil {
			return n, err
		}
		for _, session := range page {
			if err := enc.Encode(savedSession{names[session.App], session}); err != nil {
				return n, err
			}
			after = session.Key
			n++
		}
		if len(page) < copyKeys {
			break
		}
	}
	if err := enc.Encode(savedSession{}); err != nil {
		return n, err
	}
	if _, err := buffered.Write(sum.Sum(nil)); err != nil {
		return n, err
	}
	if err := errors.Join(buffered.Flush(), file.Sync(), file.Close()); err != nil {
		return n, err
	}
	return n, os.Rename(file.Name(), path)
}

// ErrDamagedState says that a state file is not what SaveState wrote.
var ErrDamagedState = errors.New("the file is damaged")

// LoadState reads a state file into an empty store, removes it, and returns how many sessions it had. Without a file there are
// none. A file that is damaged is set aside whole, and none of it is loaded.
func LoadState(ctx context.Context, store interface {
	backends.Store
	backends.Movable
}, path string) (n int, err error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if err := checkState(file); errors.Is(err, ErrDamagedState) {
		aside := path + time.Now().UTC().Format(".damaged-20060102T150405")
		if err2 := os.Rename(path, aside); err2 != nil {
			return 0, errors.Join(err, err2)
		}
		return 0, fmt.Errorf("%w: it was set aside as %s and its sessions are lost", err, aside)
	} else if err != nil {
		return 0, err
	}
	if _, err := file.Seek(int64(len(stateHeading)), io.SeekStart); err != nil {
		return 0, err
	}
	dec := gob.NewDecoder(bufio.NewReaderSize(file, 1<<20))
	for {
		var saved savedSession
		if err := dec.Decode(&saved); err != nil {
			return n, err
		}
		if saved.Session.ID == "" {
			break
		}
		if saved.Session.App, err = store.Application(ctx, saved.Application, true); err != nil {
			return n, err
		}
		if _, err := store.Import(ctx, "", []backends.Session{saved.Session}); err != nil {
			return n, err
		}
		n++
	}
	return n, os.Remove(path)
}

// checkState reads a whole state file without keeping anything.
func checkState(file io.Reader) error {
	sum := &trailing{hash: sha256.New()}
	in := io.TeeReader(bufio.NewReaderSize(file, 1<<20), sum)
	heading := make([]byte, len(stateHeading))
	if _, err := io.ReadFull(in, heading); err != nil || string(heading) != stateHeading {
		return fmt.Errorf("%w: it does not begin as a state file", ErrDamagedState)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if !bytes.Equal(sum.hash.Sum(nil), sum.last) {
		return fmt.Errorf("%w: its checksum is wrong", ErrDamagedState)
	}
	return nil
}

// trailing hashes all but the last bytes that are written to it, which a checksum is made of.
type trailing struct {
	hash hash.Hash
	last []byte
}

func (t *trailing) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if n := len(t.last) - sha256.Size; n > 0 {
		t.hash.Write(t.last[:n])
		t.last = append(t.last[:0], t.last[n:]...)
	}
	return len(p), nil
}
