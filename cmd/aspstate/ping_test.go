package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// standIn accepts connections, reads a request unless answer is "", and
// answers. A trailing "…" leaves the connection open.
func standIn(t *testing.T, answer string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := make(chan struct{})
	t.Cleanup(func() { close(open); ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if answer == "" {
					return
				}
				in := bufio.NewReader(conn)
				for line := " "; strings.TrimSpace(line) != "" || line == " "; {
					if line, err = in.ReadString('\n'); err != nil {
						return
					}
				}
				text, wait := strings.CutSuffix(answer, "…")
				io.WriteString(conn, text)
				if wait {
					<-open
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func TestPing(t *testing.T) {
	const rest = "Cache-Control: private\r\nContent-Length: 0\r\n\r\n…"
	for _, test := range []struct {
		answer string
		code   int
		says   string
	}{
		{"404 Not Found\r\nX-AspNet-Version: 4.0.30319\r\n" + rest, 0, "is a state server: 127.0.0.1:"},
		{"404 Not Found\r\nX-AspNet-Version: 4.0.30319\r\n" + rest, 0, "404 Not Found as it should, X-AspNet-Version 4.0.30319, connected in "},
		{"HTTP/1.1 404 Not Found\r\nx-aspnet-version:2.0.50727\r\n" + rest, 0, "X-AspNet-Version 2.0.50727"},
		{"404 Not Found\r\nX-AspNet-Version: 1.1.4322\r\n" + rest, 1, `its X-AspNet-Version is "1.1.4322", and web servers want 2`},
		{"404 Not Found\r\n" + rest, 1, `its X-AspNet-Version is ""`},
		{"200 OK\r\nX-AspNet-Version: 4.0.30319\r\n" + rest, 1, "while its database fails"},
		{"503 Server Too Busy\r\nX-AspNet-Version: 4.0.30319\r\n" + rest, 1, `"503 Server Too Busy": it is stopping or overloaded`},
		{"400 Bad Request\r\nX-AspNet-Version: 4.0.30319\r\n" + rest, 1, "look at what listens"},
		{"220 mail.example ESMTP\r\n\r\n…", 1, "which no state server does"},
		{"SSH-2.0-OpenSSH_9.2\r\n…", 1, `it sends "SSH-2.0-OpenSSH_9.2\r\n", which is not the answer`},
		{"404 Not Found\r\nX-Asp", 1, "which is not the answer"},
		{"HTTP/1.1 404 Not Found\r\nServer: Microsoft-IIS/10.0\r\nX-AspNet-Version: 4.0.30319\r\n" + rest, 1, `a web server answers there ("HTTP/1.1 404 Not Found")`},
		{"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n" + rest, 1, "a web server answers there"},
		{"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n<title>400 The plain HTTP request was sent to HTTPS port</title>", 1, "a TLS port answers there"},
		{"\x15\x03\x01\x00\x02\x02\x46", 1, "a TLS port answers there"},
		{strings.Repeat("x", 10000), 1, "which is not the answer"},
		{"…", 1, "accepts connections and does not answer"},
		{"", 1, "closes the connection at once: this machine is not in its allow list"},
	} {
		want(t, test.code, []string{test.says}, "ping", "tcpip="+standIn(t, test.answer), "--timeout=300ms")
	}

	// Real ones of the other kinds.
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	web := httptest.NewServer(page)
	defer web.Close()
	want(t, 1, []string{"a web server answers there"}, "ping", "tcpip="+web.Listener.Addr().String())
	tls := httptest.NewUnstartedServer(page)
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	defer tls.Close()
	want(t, 1, []string{"a TLS port answers there"}, "ping", "tcpip="+tls.Listener.Addr().String())

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	want(t, 1, []string{"ping tcpip=" + closed.Addr().String() + ": the connection is refused"}, "ping", "tcpip="+closed.Addr().String())
	want(t, 1, []string{"is no stateConnectionString"}, "ping", "127.0.0.1:42424")
}

func TestDiagnoseConnect(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: &os.SyscallError{Syscall: "connect", Err: err}}
	}
	for _, test := range []struct {
		err  error
		says string
	}{
		{op(syscall.ECONNREFUSED), "the connection is refused"},
		{op(syscall.Errno(10061)), "the connection is refused"}, // on Windows
		{op(syscall.EHOSTUNREACH), "no way to the host"},
		{op(syscall.ENETUNREACH), "no way to the host"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Name: "web1", IsNotFound: true}}, "the host name is not known"},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Name: "web1", IsTimeout: true}}, "name servers"},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, "a firewall drops"},
		{op(syscall.EACCES), "permission denied"},
	} {
		if got := diagnoseConnect(test.err); !strings.Contains(got.Error(), test.says) || !errors.Is(got, test.err) {
			t.Errorf("%v is explained as %q, want %q", test.err, got, test.says)
		}
	}
}

func TestParseStateConnectionString(t *testing.T) {
	for text, want := range map[string]string{
		"tcpip=127.0.0.1:42424":    "127.0.0.1:42424",
		"tcpip=loopback:42424":     "loopback:42424",
		"tcpip=[::1]:42424":        "[::1]:42424",
		"tcpip=[fe80::1%3]:42424":  "[fe80::1%3]:42424",
		"tcpip=web1.example:65535": "web1.example:65535",
	} {
		if got, err := parseStateConnectionString(text); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %s", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		"":                          "tcpip=",
		"127.0.0.1:42424":           "does not begin with tcpip=",
		"TCPIP=127.0.0.1:42424":     "does not begin with tcpip=",
		"tcpip=web1":                "port is missing",
		"tcpip=web1:":               "number from 1 to 65535",
		"tcpip=web1:0":              "number from 1 to 65535",
		"tcpip=web1:65536":          "number from 1 to 65535",
		"tcpip=:42424":              "host is missing",
		"tcpip=::1:42424":           "in brackets",
		"tcpip=[::1]":               "port is missing",
		"tcpip=[127.0.0.1]:42424":   "no IPv6 address",
		"tcpip=[web1]:42424":        "no IPv6 address",
		"tcpip=wéb:42424":           "ASCII",
		"tcpip=web1 :42424":         "ASCII",
		"tcpip=http://web1:42424":   "in brackets",
		"tcpip=web1:42424\r\n":      "number from 1",
		"tcpip=web1\r\nX: y\r\n:42": "in brackets",
	} {
		if got, err := parseStateConnectionString(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q gives %q, %v; want … %s", text, got, err, says)
		}
	}
}

// An operator pastes what web.config holds; the answer comes from whatever
// listens there.
func FuzzPing(f *testing.F) {
	f.Add("tcpip=127.0.0.1:42424", "404 Not Found\r\nX-AspNet-Version: 4.0.30319\r\n\r\n")
	f.Add("tcpip=[::1]:1", "HTTP/1.1 400 Bad Request\r\n\r\nHTTPS")
	f.Add("tcpip=a:b:c", "\x15\x03\x01")
	f.Fuzz(func(t *testing.T, target, answer string) {
		if address, err := parseStateConnectionString(target); err == nil {
			host, port, err := net.SplitHostPort(address)
			if err != nil || host == "" || port == "" {
				t.Fatalf("%q gives %q", target, address)
			}
		}
		head, err := readHead(strings.NewReader(answer))
		if version, err := judge(head, err); err == nil && (version == "" || !strings.Contains(head, "404")) {
			t.Fatalf("%q is taken for a state server of version %q", answer, version)
		}
	})
}

// flood is a peer that never stops sending.
type flood struct{ sent int }

func (f *flood) Read(p []byte) (int, error) {
	f.sent += len(p)
	if f.sent > 1<<20 {
		return 0, errors.New("too much was read")
	}
	return copy(p, bytes.Repeat([]byte("x"), len(p))), nil
}

func TestPingReadsNoFlood(t *testing.T) {
	if head, err := readHead(new(flood)); err != io.EOF || len(head) > 4096 {
		t.Errorf("read %d bytes, %v", len(head), err)
	}
}

func TestPingGivesUpInTime(t *testing.T) {
	begun := time.Now()
	want(t, 1, []string{"does not answer"}, "ping", "tcpip="+standIn(t, "…"), "--timeout=50ms")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("--timeout=50ms took %v", took)
	}
}
