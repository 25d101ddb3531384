package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// What passes between systemd and a service: sockets that it hands over (sd_listen_fds), and messages about how the
// service does (sd_notify). Without systemd none of it happens.

// firstSocket is the number of the first file that was handed over.
const firstSocket = 3

// inherited returns the sockets that systemd opened for this process, instead of those of the settings listen, tds.listen and tls.listen. They stay
// open while no process serves, so that nobody is refused during a restart.
func inherited(environ []string) (listeners []net.Listener, err error) {
	pid, _ := strconv.Atoi(variable(environ, "LISTEN_PID"))
	n, _ := strconv.Atoi(variable(environ, "LISTEN_FDS"))
	if pid != os.Getpid() {
		return nil, nil
	}
	for i := range n {
		file := os.NewFile(uintptr(firstSocket+i), "socket "+strconv.Itoa(i))
		ln, err := net.FileListener(file) // on a copy that child processes do not get
		file.Close()
		if err != nil {
			for _, ln := range listeners {
				ln.Close()
			}
			return nil, fmt.Errorf("listen: socket %d of systemd: %w: use ListenStream= in the socket unit", i, err)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

// divide finds the sockets for one of the other listeners, by the port of its setting.
func divide(listeners []net.Listener, address string) (its, others []net.Listener) {
	_, port, err := net.SplitHostPort(address)
	for _, ln := range listeners {
		if _, own, _ := net.SplitHostPort(ln.Addr().String()); err == nil && own == port {
			its = append(its, ln)
		} else {
			others = append(others, ln)
		}
	}
	return its, others
}

// variable is the value of an environment variable, "" for none.
func variable(environ []string, name string) string {
	for _, e := range environ {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// notifier tells systemd how the service does. The zero value tells nobody.
type notifier struct {
	socket   string
	watchdog time.Duration // a sign of life is due within it; 0 for never
	log      *slog.Logger
}

func newNotifier(environ []string, log *slog.Logger) notifier {
	n := notifier{socket: variable(environ, "NOTIFY_SOCKET"), log: log}
	if pid := variable(environ, "WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		micros, _ := strconv.ParseInt(variable(environ, "WATCHDOG_USEC"), 10, 64)
		n.watchdog = time.Duration(micros) * time.Microsecond
	}
	return n
}

// tell sends lines of the form NAME=VALUE.
func (n notifier) tell(lines ...string) {
	if n.socket == "" {
		return
	}
	conn, err := net.Dial("unixgram", n.socket)
	if err == nil {
		defer conn.Close()
		_, err = conn.Write([]byte(strings.Join(lines, "\n")))
	}
	if err != nil {
		n.log.Warn("systemd could not be told how the server does", "message", lines[0], "error", err)
	}
}

// watch gives a sign of life three times in the time that systemd waits for one, each after alive has returned, until
// ctx ends. A server that hangs gives none, and systemd starts it again.
func (n notifier) watch(ctx context.Context, alive func()) {
	if n.socket == "" || n.watchdog <= 0 {
		return
	}
	tick := time.NewTicker(n.watchdog / 3)
	defer tick.Stop()
	for {
		alive()
		n.tell("WATCHDOG=1")
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alive returns when the parts that serve sessions have answered, whatever they answer: a database that fails is no
// reason to end the server.
func (p *process) alive() {
	p.server.Alive()
	p.sessions.WorkLeft()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p.sessions.Store().Ping(ctx)
}
