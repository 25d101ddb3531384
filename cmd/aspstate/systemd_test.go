//go:build unix

package main

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is a socket that hears what systemd would.
type manager struct{ *net.UnixConn }

func listenAsManager(t *testing.T) (manager, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return manager{conn}, "NOTIFY_SOCKET=" + path
}

// hear waits for a message with this line, over those of the watchdog.
func (m manager) hear(t *testing.T, line string) {
	t.Helper()
	m.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := m.Read(buf)
		if err != nil {
			t.Fatalf("no %s: %v", line, err)
		}
		lines := strings.Split(string(buf[:n]), "\n")
		if slices.Contains(lines, line) {
			return
		}
		if lines[0] != "WATCHDOG=1" {
			t.Fatalf("systemd hears %q, want %s", lines, line)
		}
	}
}

func TestSystemdHears(t *testing.T) {
	m, socket := listenAsManager(t)
	file := write(t, filepath.Join(t.TempDir(), "a.yaml"), "mode: StateServer\nlisten: 127.0.0.1:0\nadmin: {listen: off}\n")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	exit := make(chan int, 1)
	log := new(logBuffer)
	go func() {
		exit <- run(ctx, []string{"serve", "--config", file}, log, log, []string{socket, "WATCHDOG_USEC=30000", "WATCHDOG_PID="})
	}()
	m.hear(t, "READY=1")
	for range 3 {
		m.hear(t, "WATCHDOG=1")
	}
	write(t, file, "mode: [broken")
	signalSelf(t, syscall.SIGHUP)
	m.hear(t, "RELOADING=1")
	m.hear(t, "READY=1") // with the settings that it had
	stop()
	m.hear(t, "STOPPING=1")
	if code := <-exit; code != 0 {
		t.Errorf("exit code %d:\n%s", code, log)
	}
}

func TestWatchdogOfAnotherProcess(t *testing.T) {
	if n := newNotifier([]string{"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1000", "WATCHDOG_PID=1"}, slog.Default()); n.watchdog != 0 {
		t.Errorf("watchdog %v", n.watchdog)
	}
}

// A server that hangs gives no sign of life.
func TestWatchdogOfAHungServer(t *testing.T) {
	m, socket := listenAsManager(t)
	n := newNotifier([]string{socket, "WATCHDOG_USEC=3000"}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	calls, hang, over := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		n.watch(ctx, func() {
			if calls++; calls > 2 {
				<-hang
			}
		})
	}()
	m.hear(t, "WATCHDOG=1")
	m.hear(t, "WATCHDOG=1")
	m.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if got, err := m.Read(make([]byte, 64)); err == nil {
		t.Errorf("%d bytes from a server that hangs", got)
	}
	cancel()
	close(hang)
	<-over
}

func TestInheritedSockets(t *testing.T) {
	for _, environ := range [][]string{nil, {"LISTEN_PID=1", "LISTEN_FDS=1"}, {"LISTEN_FDS=1"}} {
		if got, err := inherited(environ); got != nil || err != nil {
			t.Errorf("%q gives %v, %v", environ, got, err)
		}
	}
}

func TestSocketsByPort(t *testing.T) {
	listeners, err := listen(t.Context(), []string{"127.0.0.1:0", "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(listeners)
	_, port, _ := net.SplitHostPort(listeners[1].Addr().String())
	for address, want := range map[string]int{"10.1.2.3:" + port: 1, "[::]:" + port: 1, "": 0, "10.1.2.3:1": 0} {
		its, others := divide(listeners, address)
		if len(its) != want || len(others) != 2-want || want == 1 && its[0] != listeners[1] {
			t.Errorf("for %q: %d sockets, and %d others", address, len(its), len(others))
		}
	}
}
