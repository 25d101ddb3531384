//go:build linux

package harness

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
)

// inNamespace is set for a test that has been started again in a user namespace of its own, where it may mount.
const inNamespace = "ASPSTATE_HARNESS_NAMESPACE"

// TestFullDisk fills the disk under an SQLite file while the server works.
func TestFullDisk(t *testing.T) {
	seed := rand.Uint64()
	t.Run(fmt.Sprint(seed), func(t *testing.T) { fullDisk(t, newRand(seed)) })
}

// smallDisk mounts a file system of this size.
func smallDisk(t *testing.T, size string) (folder string, ok bool) {
	t.Helper()
	folder = t.TempDir()
	err := syscall.Mount("tmpfs", folder, "tmpfs", 0, "size="+size)
	switch {
	case err == nil:
		t.Cleanup(func() { syscall.Unmount(folder, syscall.MNT_DETACH) })
		return folder, true
	case os.Getenv(inNamespace) != "":
		t.Fatalf("mount a tmpfs in a user namespace: %v: this test needs root, or user namespaces in which a tmpfs can be mounted", err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a user namespace, since a tmpfs cannot be mounted here: %v (without root this test needs user namespaces)\n%s", err, out)
	}
	t.Logf("in a user namespace:\n%s", out)
	return "", false
}

// fill writes a file until there is no space left at all.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 64<<10); err == nil || len(chunk) > 1; {
		if err != nil {
			chunk = chunk[:len(chunk)/2]
		}
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// disk is a server on a disk that gets full, and what it has acknowledged.
type disk struct {
	t      *testing.T
	server *process
	kept   map[string]int // by target, the newest acknowledged content
	last   int
}

// content is a new one, of about 9 KB.
func (d *disk) content() int {
	for d.last++; len(data(d.last)) < 8500; d.last++ {
	}
	return d.last
}

// with lets f use a connection of its own.
func (d *disk) with(f func(c *client.Conn) (client.Answer, error)) (client.Answer, error) {
	d.t.Helper()
	c, err := client.Dial(d.server.address)
	if err != nil {
		d.t.Fatalf("the server does not serve any more: %v", err)
	}
	defer c.Close()
	tally.operations.Add(1)
	return f(c)
}

// set writes new content. Only 200 counts as written, and a closed connection as refused.
func (d *disk) set(target string, cookie int64) (stored bool) {
	d.t.Helper()
	n := d.content()
	a, err := d.with(func(c *client.Conn) (client.Answer, error) { return c.Set(target, data(n), time.Hour, cookie) })
	if err != nil {
		return false
	}
	if a.Status != 200 {
		d.t.Errorf("Set was answered %q", a.StatusLine)
		return false
	}
	d.kept[target] = n
	return true
}

func (d *disk) lock(target string) (cookie int64) {
	d.t.Helper()
	a, err := d.with(func(c *client.Conn) (client.Answer, error) { return c.GetExclusive(target) })
	if err != nil || a.Status != 200 {
		d.t.Fatalf("GetExclusive was answered %q, %v", a.StatusLine, err)
	}
	return a.LockCookie
}

func (d *disk) get(target string) client.Answer {
	d.t.Helper()
	a, err := d.with(func(c *client.Conn) (client.Answer, error) { return c.Get(target) })
	if err != nil {
		d.t.Fatalf("Get: %v", err)
	}
	return a
}

// unlocked waits until nobody has the session's lock.
func (d *disk) unlocked(target string) {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); d.get(target).Status == 423; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatal("with space again: the lock of a Set that was refused is not released")
		}
	}
}

// holds checks every session: some are locked, of some the lock may have been released, and all others are
// unlocked.
func (d *disk) holds(when string, locked, maybe map[string]int64) {
	d.t.Helper()
	for target, n := range d.kept {
		a := d.get(target)
		cookie, isLocked := locked[target]
		if c, ok := maybe[target]; ok && a.Status == 423 {
			cookie, isLocked = c, true
		}
		switch {
		case isLocked && (a.Status != 423 || a.LockCookie != cookie):
			tally.violations.Add(1)
			d.t.Errorf("%s: a session locked with cookie %d is answered %q, cookie %d", when, cookie, a.StatusLine, a.LockCookie)
		case !isLocked && a.Status != 200:
			tally.violations.Add(1)
			d.t.Errorf("%s: a session with #%d is answered %q", when, n, a.StatusLine)
		case !isLocked && content(d.t, a.Body) != n:
			tally.violations.Add(1)
			d.t.Errorf("%s: a session holds #%d, acknowledged was #%d", when, content(d.t, a.Body), n)
		}
	}
}

func fullDisk(t *testing.T, rng *rand.Rand) {
	folder, ok := smallDisk(t, fmt.Sprintf("%dk", 3000+rng.IntN(5000)))
	if !ok {
		return
	}
	flags := []string{"--sql-connection-string=sqlite:" + filepath.Join(folder, "aspstate.db"), "--request-budget=3s", "--lock-wait=0s"}
	d := &disk{t: t, server: serve(t, program, flags...), kept: map[string]int{}}
	newTarget := func() string { return client.Target(appID, transcript.NewID()) }

	// Sessions that will be written under their lock, and some whose lock is just held.
	var targets []string
	cookies, held := map[string]int64{}, map[string]int64{}
	for range 20 {
		target := newTarget()
		if !d.set(target, 0) {
			t.Fatal("a Set was refused on a disk with space")
		}
		cookies[target] = d.lock(target)
		targets = append(targets, target)
	}
	for range 5 {
		target := newTarget()
		d.set(target, 0)
		held[target] = d.lock(target)
	}

	ballast := filepath.Join(folder, "ballast")
	fill(t, ballast)
	tally.faults.add("disk filled")
	refused := 0
	for i := 0; refused < 3; i++ { // the log may have room yet
		if i > 2000 {
			t.Fatal("the disk does not get full")
		}
		if !d.set(newTarget(), 0) {
			refused++
		}
	}
	toRelease := map[string]int64{}
	for _, target := range targets {
		if !d.set(target, cookies[target]) {
			toRelease[target] = cookies[target]
		}
	}
	if len(toRelease) < len(targets)/2 {
		t.Errorf("only %d of %d Sets were refused on a full disk", len(toRelease), len(targets))
	}
	// A lock that cannot be released without space is released when there is space.
	d.holds("on a full disk", held, toRelease)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.server.ended:
		t.Fatal("the server has ended")
	default:
	}
	for target := range toRelease {
		d.unlocked(target)
	}
	d.holds("with space again", held, nil)
	for _, target := range targets {
		if cookie := d.lock(target); cookie <= cookies[target] {
			t.Errorf("with space again: the lock after %d is %d", cookies[target], cookie)
		} else if !d.set(target, cookie) {
			t.Error("with space again: a Set is refused")
		}
	}
	for target, cookie := range held {
		if !d.set(target, cookie) {
			t.Error("with space again: the Set of a lock's owner is refused")
		}
	}
	d.holds("with space again", nil, nil)

	// What was acknowledged, on a full disk too, outlives the process.
	d.server.kill()
	d.server = serve(t, program, flags...)
	d.holds("after a kill", nil, nil)
}
