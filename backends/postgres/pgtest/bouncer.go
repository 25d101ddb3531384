//go:build unix

package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bouncer starts a PgBouncer in front of the server, with pool_mode=transaction, default_pool_size=2 and no prepared
// statements, and returns its port. It ends with the test.
func (s *Server) Bouncer(tb testing.TB) int {
	tb.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program = "/usr/sbin/pgbouncer"; exec.Command(program, "--version").Run() != nil {
			tb.Fatal("PgBouncer is missing, which this test needs: apt-get install pgbouncer")
		}
	}
	port := FreePort()
	file := filepath.Join(s.dir, fmt.Sprintf("pgbouncer%d.ini", port))
	text := fmt.Sprintf(`[databases]
* = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
logfile = %s.log
`, s.Port, port, file)
	var minor int
	version, _ := exec.Command(program, "--version").Output()
	if fmt.Sscanf(string(version), "PgBouncer 1.%d", &minor); minor >= 21 { // older ones have none, and refuse the name
		text += "max_prepared_statements = 0\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(program, file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: Credential()}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := pgx.Connect(context.Background(), fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable&default_query_exec_mode=exec", port))
		if err == nil {
			conn.Close(context.Background())
			return port
		}
		if time.Since(begun) > 10*time.Second {
			log, _ := os.ReadFile(file + ".log")
			tb.Fatalf("PgBouncer does not start: %v\n%s", err, log)
		}
	}
}
