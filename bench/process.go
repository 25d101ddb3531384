package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
)

// server is a process that is measured.
type server struct {
	name    string
	address string
	admin   string // of aspstate
	cmd     *exec.Cmd
	log     *bytes.Buffer
	others  func() []int // further processes that work for it: a database's
	disk    func() int64 // bytes of its store's files, without the log of writes; nil where there are none
}

// start starts a program. It ends with this process, at the latest.
func start(name, address, program string, args ...string) (*server, error) {
	s := &server{name: name, address: address, cmd: exec.Command(program, args...), log: new(bytes.Buffer), others: noProcesses}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return s, nil
		}
		if time.Since(begun) > 30*time.Second {
			s.stop()
			return nil, fmt.Errorf("%s does not answer on %s: %w\n%s", name, address, err, s.log)
		}
	}
}

func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		s.cmd.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		s.cmd.Process.Kill()
		<-ended
	}
}

// freeAddress is a TCP address of this machine that nobody listens on.
func freeAddress() string { return fmt.Sprintf("127.0.0.1:%d", pgtest.FreePort()) }

// startAspstate starts the program with a store: "memory", or a connection string.
func startAspstate(program, name, store string, more ...string) (*server, error) {
	address, admin := freeAddress(), freeAddress()
	args := []string{"serve", "--listen", address, "--admin-listen", admin, "--admin-pprof", "--log-level", "warn", "--limits-connections", "20000"}
	if store == "memory" {
		args = append(args, "--mode", "StateServer")
	} else {
		args = append(args, "--sql-connection-string", store, "--auto-migrate")
	}
	s, err := start(name, address, program, append(args, more...)...)
	if err != nil {
		return nil, err
	}
	s.admin = admin
	return s, nil
}

// collect has aspstate collect its garbage, and waits until what was freed has gone back to the system.
func (s *server) collect() error {
	for range 2 { // the second one finds what finalizers have freed
		answer, err := http.Get("http://" + s.admin + "/debug/pprof/heap?gc=1")
		if err != nil {
			return err
		}
		io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if answer.StatusCode != 200 {
			return fmt.Errorf("collect: %s", answer.Status)
		}
	}
	for last, same := s.rss(), 0; same < 4; {
		time.Sleep(500 * time.Millisecond)
		now := s.rss()
		if same++; now < last-last/200 {
			same = 0
		}
		last = now
	}
	return nil
}

// startFloor starts this program as the floor.
func startFloor(size int) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	address := freeAddress()
	return start("floor", address, self, "floor", "-addr", address, "-size", strconv.Itoa(size))
}

// startRedis starts a Redis in memory, or one that has every write on disk before it answers.
func startRedis(dir string, durable bool) (*server, error) {
	address := freeAddress()
	_, port, _ := net.SplitHostPort(address)
	name, onlyFile := "Redis, in memory", "no"
	if durable {
		name, onlyFile = "Redis, appendfsync always", "yes"
	}
	dir, err := os.MkdirTemp(dir, "redis")
	if err != nil {
		return nil, err
	}
	return start(name, address, "redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", dir,
		"--save", "", "--appendonly", onlyFile, "--appendfsync", "always", "--maxclients", "10000", "--daemonize", "no")
}

// host lets a pgtest server live as long as a command.
type host struct {
	testing.TB
	ends []func()
}

func (h *host) Helper()          {}
func (h *host) Cleanup(f func()) { h.ends = append(h.ends, f) }
func (h *host) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}
func (h *host) Fatalf(format string, args ...any) { h.Fatal(fmt.Sprintf(format, args...)) }

func (h *host) close() {
	for i := len(h.ends) - 1; i >= 0; i-- {
		h.ends[i]()
	}
}

// postgresSettings are those of the cluster that all comparisons share; every other one is PostgreSQL's default, so that
// each commit is on disk before it is answered.
var postgresSettings = []string{"max_connections=400", "shared_buffers=1GB", "max_wal_size=4GB", "synchronous_commit=on"}

// postgresProcesses are the processes of the cluster on this port.
func postgresProcesses(port int) []int {
	for _, pid := range processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(string(line), "\x00")
		for i := range len(args) - 1 {
			if filepath.Base(args[0]) == "postgres" && args[i] == "-p" && args[i+1] == strconv.Itoa(port) {
				return append(children(pid), pid)
			}
		}
	}
	return nil
}

func processes() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		if pid, err := strconv.Atoi(filepath.Base(name)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func children(parent int) (pids []int) {
	for _, pid := range processes() {
		if fields, err := stat(pid); err == nil && fields[1] == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stat are the fields of /proc/PID/stat behind the program's name: state, parent and so on.
func stat(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return nil, errors.New("the stat file of a process is too short")
	}
	return fields, nil
}

// own is the server's process.
func (s *server) own() []int { return []int{s.cmd.Process.Pid} }

// tick is what the kernel counts processor time in: USER_HZ is 100 on every Linux of today.
const tick = 10 * time.Millisecond

// cpu returns what tells the processor time that the processes have taken since. What a process has used that ends in between is lost.
func cpu(pids func() []int) func() time.Duration {
	used := func() map[int]time.Duration {
		m := map[int]time.Duration{}
		for _, pid := range pids() {
			if fields, err := stat(pid); err == nil {
				user, _ := strconv.ParseInt(fields[11], 10, 64)
				system, _ := strconv.ParseInt(fields[12], 10, 64)
				m[pid] = time.Duration(user+system) * tick
			}
		}
		return m
	}
	before := used()
	return func() (sum time.Duration) {
		for pid, d := range used() {
			sum += d - before[pid]
		}
		return sum
	}
}

// rss is the memory of the server and its database that is in RAM, in bytes. Pages that several processes share count once.
func (s *server) rss() int64 { return memory(s.own()) + memory(s.others()) }

func memory(pids []int) (sum int64) {
	for _, pid := range pids {
		sum += memoryOf(pid, "smaps_rollup", "Pss:")
	}
	return sum
}

// measured sends a load with this server under the meter, and notes the memory at its end.
func (s *server) measured(l Load, d dialect) (Result, error) {
	r, err := l.send(s.address, d, metered(s.own, s.others), nil)
	if err != nil {
		s.stop() // so that its log is there
		return r, fmt.Errorf("%w; its log:\n%s", err, s.log)
	}
	r.DatabaseRSS = memory(s.others())
	r.ServerRSS = memory(s.own()) + r.DatabaseRSS
	return r, nil
}

// memoryOf is a figure in kB of a file in /proc/PID, in bytes.
func memoryOf(pid int, file, name string) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// output is what a program prints first.
func output(program string, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, program, args...).Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
