//go:build unix

// Package pgtest runs private PostgreSQL servers for tests. It needs the PostgreSQL programs
// (Debian, Ubuntu: apt-get install postgresql) and fails the test that asks for a server where
// they are missing. As root it runs them as another user, because PostgreSQL refuses root.
//
// A package that uses Shared ends its tests with Main:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
package pgtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a PostgreSQL server with a data folder of its own. It listens on 127.0.0.1.
type Server struct {
	Port int

	bin      string // folder of the programs
	dir      string // everything of this server
	settings []string
	guard    *exec.Cmd // ends the server with this process
	alive    io.Closer // its closing is what the guard waits for
	server   *exec.Cmd
	exited   chan struct{} // closed when server has ended
	database atomic.Int64
}

var shared struct {
	sync.Mutex
	server *Server
}

// Shared returns the server that all tests of this process share. It syncs nothing, so it is
// not for tests that crash it.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		s, err := create("fsync=off", "full_page_writes=off", "synchronous_commit=on")
		if err == nil {
			err = s.Start()
		}
		if err != nil {
			tb.Fatal(err)
		}
		shared.server = s
	}
	return shared.server
}

// Main runs the tests, ends the shared server and returns the exit status.
func Main(m *testing.M) int {
	status := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		shared.server.remove()
	}
	return status
}

// New returns a new running server with these settings ("name=value"), durable unless they say
// otherwise. It ends with the test.
func New(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := create(settings...)
	if err == nil {
		tb.Cleanup(s.remove)
		err = s.Start()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Standby returns a new server that streams from s, under the application name "standby". It ends with
// the test.
func (s *Server) Standby(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	standby, err := prepare(s.bin, settings)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(standby.remove)
	from := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres application_name=standby", s.Port)
	if err := standby.program("pg_basebackup", "-d", from, "-D", standby.data(), "-R", "-X", "stream", "-c", "fast"); err != nil {
		tb.Fatal(err)
	}
	if err := standby.Start(); err != nil {
		tb.Fatal(err)
	}
	return standby
}

// Promote makes a standby the primary.
func (s *Server) Promote(tb testing.TB) {
	tb.Helper()
	if err := s.program("pg_ctl", "promote", "-w", "-D", s.data()); err != nil {
		tb.Fatal(err)
	}
}

// Programs finds the folder of the PostgreSQL programs: the newest of Debian's, or that of a
// postgres in PATH.
func Programs() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return "", fmt.Errorf("the PostgreSQL programs are missing, which these tests need: apt-get install postgresql")
	}
	return filepath.Dir(found[0]), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

func create(settings ...string) (*Server, error) {
	bin, err := Programs()
	if err != nil {
		return nil, err
	}
	s, err := prepare(bin, settings)
	if err != nil {
		return nil, err
	}
	if err := s.program("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
		s.remove()
		return nil, err
	}
	return s, nil
}

// prepare makes the server's folder and the guard, which ends the server and
// removes the folder when this process ends, whatever its end.
func prepare(bin string, settings []string) (*Server, error) {
	dir, err := os.MkdirTemp("", "pgtest")
	if err != nil {
		return nil, err
	}
	s := &Server{Port: FreePort(), bin: bin, dir: dir, settings: settings}
	if c := Credential(); c != nil {
		if err := os.Chown(dir, int(c.Uid), int(c.Gid)); err != nil {
			return nil, err
		}
	}
	s.guard = exec.Command("/bin/sh", "-c",
		`cat >/dev/null; pid=$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null) && kill -CONT $pid; kill -QUIT $pid 2>/dev/null; rm -rf "$0"`, dir)
	s.guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this process
	if s.alive, err = s.guard.StdinPipe(); err != nil {
		return nil, err
	}
	return s, s.guard.Start()
}

// Credential is whom servers run as: nil if that is this user.
func Credential() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return nil
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on.
func FreePort() int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: Credential()}
	return cmd
}

func (s *Server) program(name string, args ...string) error {
	out, err := s.command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// Start starts a stopped server and returns when it accepts connections.
func (s *Server) Start() error {
	if err := s.Launch(); err != nil {
		return err
	}
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		cancel()
		if err == nil {
			conn.Close(context.Background())
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("the PostgreSQL server ended at once:\n%s", s.Log())
		default:
		}
		if time.Since(begun) > time.Minute {
			return fmt.Errorf("the PostgreSQL server does not start: %w\n%s", err, s.Log())
		}
	}
}

// Launch starts a stopped server and does not wait.
func (s *Server) Launch() error {
	args := []string{"-D", s.data(), "-k", s.dir, "-p", strconv.Itoa(s.Port), "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.server = s.command("postgres", args...)
	s.server.Stdout, s.server.Stderr = log, log
	if err := s.server.Start(); err != nil {
		return err
	}
	server, exited := s.server, make(chan struct{})
	s.exited = exited
	go func() {
		server.Wait()
		close(exited)
	}()
	return nil
}

// Stop stops the server fast: it ends all connections and finishes its files.
func (s *Server) Stop() { s.stop(syscall.SIGINT) }

// StopImmediately stops the server as a crash does.
func (s *Server) StopImmediately() { s.stop(syscall.SIGQUIT) }

func (s *Server) stop(how syscall.Signal) {
	if s.server == nil {
		return
	}
	s.server.Process.Signal(how)
	<-s.exited
	s.server = nil
}

// Freeze stops all processes of the server where they are.
func (s *Server) Freeze(tb testing.TB) {
	tb.Helper()
	s.server.Process.Signal(syscall.SIGSTOP) // first, so that it has no more children
	for _, pid := range s.children() {
		syscall.Kill(pid, syscall.SIGSTOP)
	}
}

// Thaw lets a frozen server go on.
func (s *Server) Thaw(tb testing.TB) {
	tb.Helper()
	for _, pid := range s.children() {
		syscall.Kill(pid, syscall.SIGCONT)
	}
	s.server.Process.Signal(syscall.SIGCONT)
}

func (s *Server) children() (pids []int) {
	parent := strconv.Itoa(s.server.Process.Pid)
	out, _ := exec.Command("ps", "-o", "pid=", "--ppid", parent).Output()
	for _, field := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// remove ends the server and removes its folder.
func (s *Server) remove() {
	s.stop(syscall.SIGQUIT)
	s.alive.Close()
	s.guard.Wait()
}

// Log returns what the server has logged.
func (s *Server) Log() string {
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return string(log)
}

// URL returns the connection string of a database, for the superuser.
func (s *Server) URL(database string) string { return s.URLAs("postgres", database) }

// URLAs returns the connection string of a database for a role.
func (s *Server) URLAs(role, database string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", role, s.Port, database)
}

// Database makes an empty database and returns its connection string. It is dropped after the test.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	name := fmt.Sprintf("test%d", s.database.Add(1))
	s.Exec(tb, s.URL("postgres"), "CREATE DATABASE "+name)
	tb.Cleanup(func() {
		if s.server != nil {
			s.Exec(tb, s.URL("postgres"), "DROP DATABASE "+name+" WITH (FORCE)")
		}
	})
	return s.URL(name)
}

// Exec runs statements on a connection of its own.
func (s *Server) Exec(tb testing.TB, url string, statements string) {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.PgConn().Exec(context.Background(), statements).ReadAll(); err != nil {
		tb.Fatalf("%s: %v", statements, err)
	}
}

// Query runs a query with one row on a connection of its own and scans the row.
func (s *Server) Query(tb testing.TB, url string, query string, to ...any) {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), query).Scan(to...); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}
