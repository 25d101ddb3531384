//go:build unix

package harness

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
)

// folder is for what a run of the tests needs once. It is gone at the end.
var folder string

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if folder, err = os.MkdirTemp("", "aspstate-harness-*"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := pgtest.Main(m)
	os.RemoveAll(folder)
	os.Exit(code)
}

// The programs under test: with the race detector if the tests have it, and without, at full speed.
var (
	program     = sync.OnceValues(func() (string, error) { return build("aspstate", raceDetector()...) })
	fastProgram = sync.OnceValues(func() (string, error) { return build("aspstate-fast") })
)

// build builds aspstate and returns its path.
func build(name string, flags ...string) (string, error) {
	path := filepath.Join(folder, name)
	args := slices.Concat([]string{"build", "-o", path}, flags, []string{"aspstate/cmd/aspstate"})
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build aspstate: %w\n%s", err, out)
	}
	return path, nil
}

func raceDetector() (flags []string) {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" && s.Value == "true" {
			flags = append(flags, "-race")
		}
	}
	return flags
}

// process is a running aspstate.
type process struct {
	address string
	tds     string // where it answers mode="SQLServer", if it does
	cmd     *exec.Cmd
	log     logBuffer
	ended   chan struct{}
	killed  bool
}

// logBuffer keeps the beginning of a log.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.text.Len() < 1<<20 {
		b.text.Write(p)
	}
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

var (
	ready    = regexp.MustCompile(`stateConnectionString="tcpip=([^"]+)"`)
	readyTDS = regexp.MustCompile(`sqlConnectionString="Data Source=([^,]+),([0-9]+);`)
)

// serve starts a program on a free port and waits until it serves. It is stopped at the end of the test, in
// good order unless it was killed.
func serve(t testing.TB, program func() (string, error), flags ...string) *process {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(path, append([]string{"serve", "--listen=127.0.0.1:0"}, flags...)...), ended: make(chan struct{})}
	p.cmd.Stderr = &p.log
	p.cmd.Dir = t.TempDir()
	stdout, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop(t) })
	lines := bufio.NewScanner(stdout)
	for p.address == "" && lines.Scan() {
		if found := readyTDS.FindStringSubmatch(lines.Text()); found != nil {
			p.tds = net.JoinHostPort(found[1], found[2])
		}
		if found := ready.FindStringSubmatch(lines.Text()); found != nil {
			p.address = found[1]
		}
	}
	go func() {
		io.Copy(io.Discard, stdout)
		p.cmd.Wait()
		close(p.ended)
	}()
	if p.address == "" {
		t.Fatalf("aspstate %s ended without serving:\n%s", strings.Join(flags, " "), &p.log)
	}
	return p
}

// kill ends the process as it stands (SIGKILL).
func (p *process) kill() {
	p.killed = true
	p.cmd.Process.Kill()
	<-p.ended
}

// stop ends the process in good order and looks at what it leaves.
func (p *process) stop(t testing.TB) {
	if !p.killed {
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
			if code := p.cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("aspstate ended with exit code %d", code)
			}
		case <-time.After(30 * time.Second):
			t.Error("aspstate does not end within 30 s of SIGTERM")
			p.kill()
		}
	}
	log := p.log.String()
	for _, bad := range []string{"DATA RACE", "panic", "goroutine "} {
		if strings.Contains(log, bad) {
			t.Errorf("the log of aspstate says %q", bad)
		}
	}
	if t.Failed() {
		t.Logf("log of aspstate:\n%s", log)
	}
}

// runProgram runs a program to its end, which is to be a failure, and returns what it says.
func runProgram(t testing.TB, program func() (string, error), args ...string) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Errorf("%v ended with %v, want a failure", args, err)
	}
	return string(out)
}
