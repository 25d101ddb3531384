package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func pingCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ping [tcpip=HOST:PORT]",
		Short: "Ask a state server for a sign of life, as a web server would",
		Long: "ping asks the state server of a stateConnectionString (tcpip=127.0.0.1:42424 if none is given) for a session\n" +
			"that cannot exist, and says what it found. Run it on the web server. It works with Microsoft's state service too.",
		Args: cobra.MaximumNArgs(1),
	}
	// stateNetworkTimeout's default
	timeout := cmd.Flags().Duration("timeout", 10*time.Second, "how long to wait")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target := "tcpip=127.0.0.1:42424"
		if len(args) > 0 {
			target = args[0]
		}
		address, err := parseStateConnectionString(target)
		if err != nil {
			return err
		}
		found, err := ping(cmd.Context(), address, *timeout)
		if err != nil {
			return fmt.Errorf("ping %s: %w", target, err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is a state server: %s\n", target, found)
		return err
	}
	return cmd
}

// parseStateConnectionString takes the host:port out of a stateConnectionString
// as ASP.NET does: tcpip=host:port or tcpip=[IPv6 address]:port, in lower case, the host in
// ASCII.
func parseStateConnectionString(text string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%q is no stateConnectionString: %s; write tcpip=HOST:42424, or tcpip=[ADDRESS]:42424 for IPv6", text, why)
	}
	address, ok := strings.CutPrefix(text, "tcpip=")
	if !ok {
		return bad("it does not begin with tcpip=")
	}
	host, port, ok := strings.Cut(address, ":")
	if strings.HasPrefix(address, "[") {
		host, port, ok = strings.Cut(address[1:], "]:")
		if ip, err := netip.ParseAddr(host); ok && (err != nil || !ip.Is6()) {
			return bad("no IPv6 address stands in the brackets")
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case !ok:
		return bad("the port is missing")
	case strings.Contains(port, ":"):
		return bad("an IPv6 address stands in brackets")
	case host == "":
		return bad("the host is missing")
	case err != nil || n == 0:
		return bad("the port is not a number from 1 to 65535")
	}
	for _, c := range []byte(host) {
		if c <= ' ' || c > '~' {
			return bad("web servers take only ASCII host names")
		}
	}
	return net.JoinHostPort(host, port), nil
}

// ping sends a ResetTimeout (HEAD, MS-ASP 2.2.5.11) for a session that cannot exist,
// which changes nothing, and describes the state server that answers it as
// the original would. Errors name the likely cause and the remedy.
func ping(ctx context.Context, address string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	begun := time.Now()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", diagnoseConnect(err)
	}
	defer conn.Close()
	connected := time.Now()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	host, _, _ := net.SplitHostPort(address)
	_, err = fmt.Fprintf(conn, "HEAD %%2faspstate-ping-%s HTTP/1.1\r\nHost: %s\r\n\r\n", rand.Text(), host)
	if err != nil {
		return "", diagnoseAnswer(nil, err)
	}
	answer, err := readHead(conn)
	version, err := judge(answer, err)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%v answers 404 Not Found as it should, X-AspNet-Version %s, connected in %v, answered in %v", conn.RemoteAddr(), version,
		connected.Sub(begun).Round(10*time.Microsecond), time.Since(connected).Round(10*time.Microsecond)), nil
}

// readHead reads up to a blank line, and what came with it. What was read before a
// failure is returned with the failure.
func readHead(r io.Reader) (string, error) {
	const most = 4096
	var head strings.Builder
	in := bufio.NewReader(io.LimitReader(r, most))
	for {
		line, err := in.ReadString('\n')
		head.WriteString(line)
		if err != nil {
			return head.String(), err
		}
		if strings.Trim(line, "\r\n") == "" {
			more, _ := in.Peek(in.Buffered())
			return head.String() + string(more), nil
		}
	}
}

// judge tells the answer of a state server from everything else, and returns
// its X-AspNet-Version.
func judge(head string, readErr error) (version string, err error) {
	status, rest, _ := strings.Cut(head, "\n")
	status = strings.TrimRight(status, "\r")
	header, _ := textproto.NewReader(bufio.NewReader(strings.NewReader(rest + "\r\n\r\n"))).ReadMIMEHeader()
	version = header.Get("X-AspNet-Version")

	if isTLS(head) {
		return "", errors.New("a TLS port answers there; the state server protocol has no TLS: use the port of the state server")
	}
	bare, prefixed := strings.CutPrefix(status, "HTTP/1.1 ") // aspstate's statusLine: http
	if strings.HasPrefix(status, "HTTP/") && (!prefixed || version == "" || header.Get("Server") != "" || header.Get("Date") != "" || header.Get("Content-Type") != "") {
		return "", fmt.Errorf("a web server answers there (%q), not a state server: use the port of the state server, 42424 unless changed", status)
	}
	if readErr != nil {
		return "", diagnoseAnswer([]byte(head), readErr)
	}
	code, _, _ := strings.Cut(bare, " ")
	major, _, _ := strings.Cut(version, ".")
	switch code {
	case "404":
	case "200":
		return "", errors.New("it answers 200 OK for a session that cannot exist, as aspstate does while its database fails: see its log")
	case "503":
		return "", fmt.Errorf("it answers %q: it is stopping or overloaded; start it again, or look at the load of its machine", bare)
	case "400":
		return "", fmt.Errorf("it answers %q to a request that every state server of version 2 or later understands: look at what listens on this port", bare)
	default:
		return "", fmt.Errorf("it answers %q, which no state server does: look at what listens on this port", truncate(bare))
	}
	if n, err := strconv.Atoi(major); err != nil || n < 2 {
		return "", fmt.Errorf("its X-AspNet-Version is %q, and web servers want 2 or more: use a newer state server, or set aspNetVersion", truncate(version))
	}
	return version, nil
}

// isTLS recognises a TLS alert, and the complaint in plain text of common web
// servers about a request without TLS.
func isTLS(head string) bool {
	return strings.HasPrefix(head, "\x15\x03") ||
		strings.HasPrefix(head, "HTTP/") && strings.Contains(head, "HTTPS")
}

func truncate(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

// diagnoseConnect explains why there is no connection.
func diagnoseConnect(err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return fmt.Errorf("the host name is not known: check its spelling, or use an address (%w)", err)
		}
		return fmt.Errorf("the host name cannot be looked up: check the name servers of this machine, or use an address (%w)", err)
	}
	switch {
	case isErrno(err, syscall.ECONNREFUSED, 10061):
		return fmt.Errorf("the connection is refused, so the host is there and nothing listens on this port: start the state server, and check its listen setting and the port (%w)", err)
	case isErrno(err, syscall.EHOSTUNREACH, 10065), isErrno(err, syscall.ENETUNREACH, 10051):
		return fmt.Errorf("there is no way to the host: check the address, and the network between the machines (%w)", err)
	case isTimeout(err):
		return fmt.Errorf("nobody answers: a firewall drops the connection, or the host is down (%w)", err)
	}
	return err
}

// diagnoseAnswer explains why there is no whole answer on a connection.
func diagnoseAnswer(head []byte, err error) error {
	switch {
	case isTimeout(err) && len(head) == 0:
		return fmt.Errorf("it accepts connections and does not answer: it hangs, or it is not a state server (%w)", err)
	case len(head) > 0:
		return fmt.Errorf("it sends %q, which is not the answer of a state server: look at what listens on this port (%w)", truncate(string(head)), err)
	case errors.Is(err, io.EOF), isErrno(err, syscall.ECONNRESET, 10054), isErrno(err, syscall.ECONNABORTED, 10053), isErrno(err, syscall.EPIPE, 10058):
		return fmt.Errorf("it closes the connection at once: this machine is not in its allow list (of Microsoft's state service: AllowRemoteConnection is not 1), all its connections are busy, or it is not a state server (%w)", err)
	}
	return err
}

// isErrno reports whether err is this system error. Windows has numbers of its own for sockets.
func isErrno(err error, unix, windows syscall.Errno) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && (errno == unix || errno == windows)
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}
