package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// header2 is a header of version 2, from its command, its family and what follows its length.
func header2(command, family byte, rest string) string {
	data, err := hex.DecodeString(strings.ReplaceAll(rest, " ", ""))
	if err != nil {
		panic(err)
	}
	return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{command, family, byte(len(data) >> 8), byte(len(data))}) + string(data)
}

// proxyPeer is the address of the proxy in these tests.
var proxyPeer = &net.TCPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 5555}

// headers are what a proxy may begin a connection with, and who the client is then: "" where it is closed.
var headers = []struct{ name, header, client string }{
	{"1, IPv4", "PROXY TCP4 192.0.2.7 10.9.0.1 40000 42424\r\n", "192.0.2.7:40000"},
	{"1, IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 40000 42424\r\n", "[2001:db8::7]:40000"},
	{"1, unknown", "PROXY UNKNOWN\r\n", "10.9.0.1:5555"},
	{"1, unknown with addresses", "PROXY UNKNOWN 192.0.2.7 10.9.0.1 40000 42424\r\n", "10.9.0.1:5555"},
	{"1, on the proxy's machine", "PROXY TCP4 127.0.0.1 127.0.0.1 40000 42424\r\n", "10.9.0.1:5555"},
	{"1, on the proxy's machine, IPv6", "PROXY TCP6 ::1 ::1 40000 42424\r\n", "10.9.0.1:5555"},
	{"1, on the proxy's machine, IPv4 in IPv6", "PROXY TCP6 ::ffff:127.0.0.1 ::1 40000 42424\r\n", "10.9.0.1:5555"},
	{"2, IPv4", header2(0x21, 0x11, "c0000207 0a090001 9c40 a5b8"), "192.0.2.7:40000"},
	{"2, IPv4, TLVs", header2(0x21, 0x11, "c0000207 0a090001 9c40 a5b8 030004 01020304 040000"), "192.0.2.7:40000"},
	{"2, IPv6", header2(0x21, 0x21, "20010db8000000000000000000000007 20010db8000000000000000000000001 9c40 a5b8"), "[2001:db8::7]:40000"},
	{"2, own", header2(0x20, 0x00, ""), "10.9.0.1:5555"},
	{"2, own, with an address", header2(0x20, 0x11, "c0000207 0a090001 9c40 a5b8"), "10.9.0.1:5555"},
	{"2, own, TLVs", header2(0x20, 0x00, "030004 01020304"), "10.9.0.1:5555"},
	{"2, on the proxy's machine", header2(0x21, 0x11, "7f000001 7f000001 9c40 a5b8"), "10.9.0.1:5555"},
	{"2, over a Unix socket of the proxy", header2(0x21, 0x31, strings.Repeat("2f", 216)), "10.9.0.1:5555"},

	{"none", "GET %2fLM(x)%2fid HTTP/1.1\r\nHost: x\r\n\r\n", ""},
	{"TDS", "\x12\x01\x00\x2f\x00\x00\x01\x00", ""},
	{"1, no line end", "PROXY TCP4 192.0.2.7 10.9.0.1 40000 42424", ""},
	{"1, too long", "PROXY UNKNOWN " + strings.Repeat("x", 100) + "\r\n", ""},
	{"1, another family", "PROXY TCP4 2001:db8::7 10.9.0.1 40000 42424\r\n", ""},
	{"1, no port", "PROXY TCP4 192.0.2.7 10.9.0.1 65536 42424\r\n", ""},
	{"1, name", "PROXY TCP4 web1 10.9.0.1 40000 42424\r\n", ""},
	{"1, zone", "PROXY TCP6 fe80::1%eth0 ::1 40000 42424\r\n", ""},
	{"2, version 3", header2(0x31, 0x11, "c0000207 0a090001 9c40 a5b8"), ""},
	{"2, command 2", header2(0x22, 0x11, "c0000207 0a090001 9c40 a5b8"), ""},
	{"2, UDP", header2(0x21, 0x12, "c0000207 0a090001 9c40 a5b8"), ""},
	{"2, nobody's", header2(0x21, 0x00, ""), ""},
	{"2, too short", header2(0x21, 0x11, "c0000207 0a090001 9c40"), ""},
	{"2, cut off", header2(0x21, 0x11, "c0000207 0a090001 9c40 a5b8")[:20], ""},
	{"2, too long", header2(0x21, 0x11, strings.Repeat("c0000207 0a090001 9c40 a5b8", 400)), ""},
}

func TestProxyHeaders(t *testing.T) {
	for _, h := range headers {
		in := bufio.NewReader(strings.NewReader(h.header + "behind"))
		client, err := clientOf(in, proxyPeer)
		if h.client == "" {
			if err == nil || errors.Is(err, errLook) {
				t.Errorf("%s: client %v, %v", h.name, client, err)
			}
			continue
		}
		if err != nil || client.String() != h.client {
			t.Errorf("%s: client %v, %v, want %s", h.name, client, err, h.client)
			continue
		}
		if rest, _ := io.ReadAll(in); string(rest) != "behind" {
			t.Errorf("%s: %q is left", h.name, rest)
		}
	}
	if _, err := clientOf(bufio.NewReader(strings.NewReader("")), proxyPeer); !errors.Is(err, errLook) {
		t.Errorf("a look at the port: %v", err)
	}
}

// A panic here ends one connection. A header understood wrongly lets somebody in who is not in the allow list.
func FuzzProxyHeader(f *testing.F) {
	for _, h := range headers {
		f.Add([]byte(h.header + "behind"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(data), headerBuffer)
		client, err := clientOf(in, proxyPeer)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(in)
		header, whole := bytes.CutSuffix(data, rest)
		if !whole || !bytes.HasPrefix(header, []byte("PROXY ")) && !bytes.HasPrefix(header, []byte("\r\n\r\n\x00\r\nQUIT\n")) {
			t.Fatalf("%q is taken for a header of %q", header, data)
		}
		ip := plain(client)
		if !ip.IsValid() || ip.IsLoopback() {
			t.Fatalf("%q makes somebody %v", header, client)
		}
		if ip == plain(proxyPeer) {
			return
		}
		// The address stands in the header.
		raw := ip.AsSlice()
		said := bytes.Contains(header, raw)
		for word := range strings.FieldsSeq(string(header)) {
			a, err := netip.ParseAddr(word)
			said = said || err == nil && a.Unmap() == ip
		}
		if !said {
			t.Fatalf("%q makes somebody %v", header, client)
		}
	})
}

// startBehindProxy is a front end that answers each line with the address of its client, for connections from proxies.
func startBehindProxy(t *testing.T, log io.Writer, proxies ...string) *echo {
	logger := slog.New(slog.NewTextHandler(log, nil))
	e := &echo{Server: &Server{Access: NewAccessList(logger), Log: logger, Handle: func(_ context.Context, c *Conn) {
		in := bufio.NewReader(c)
		for c.Idle(time.Now()) {
			if _, err := in.ReadString('\n'); err != nil || !c.Busy() {
				return
			}
			fmt.Fprintln(c, c.RemoteAddr())
		}
	}}}
	var list []netip.Prefix
	for _, p := range proxies {
		list = append(list, netip.MustParsePrefix(p))
	}
	e.TrustProxies(list)
	e.Access.Allow([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")})
	e.start(t)
	return e
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// ask sends a connection's first bytes and returns its first answer, "" for none.
func ask(t *testing.T, e *echo, first string) string {
	t.Helper()
	c := e.dial(t)
	io.WriteString(c, first)
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line)
}

func TestClientsBehindAProxy(t *testing.T) {
	var log syncBuffer
	e := startBehindProxy(t, &log, "127.0.0.1/32")
	c := e.dial(t)
	in := bufio.NewReader(c)
	io.WriteString(c, "PROXY TCP4 192.0.2.7 10.9.0.1 40000 42424\r\nhello\nand ") // the header and the first request at once
	for _, more := range []string{"again\n", "hello\n", "PROXY TCP4 192.0.2.8 10.9.0.1 40000 42424\r\n"} {
		if line, err := in.ReadString('\n'); line != "192.0.2.7:40000\n" {
			t.Fatalf("the client is %q, %v", line, err)
		}
		io.WriteString(c, more)
	}
	for _, h := range headers {
		want := h.client
		if want == proxyPeer.String() || want == "" {
			continue
		}
		if got := ask(t, e, h.header+"hello\n"); got != want {
			t.Errorf("%s: the client is %q", h.name, got)
		}
	}
	if got := ask(t, e, header2(0x20, 0, "")+"hello\n"); !strings.HasPrefix(got, "127.0.0.1:") {
		t.Errorf("the proxy itself is %q", got)
	}

	// The allow list is about the client that the header names.
	if got := ask(t, e, "PROXY TCP4 198.51.100.9 10.9.0.1 40000 42424\r\nhello\n"); got != "" {
		t.Errorf("%q is answered, whom allow does not list", got)
	}
	if got := ask(t, e, "PROXY TCP6 2001:dead::9 ::1 40000 42424\r\nhello\n"); got != "" {
		t.Errorf("%q is answered, whom allow does not list", got)
	}
	for _, address := range []string{"198.51.100.9", "2001:dead::9"} {
		if text := log.String(); !strings.Contains(text, "not in the allow list\" client="+address) {
			t.Errorf("the log does not tell of %s:\n%s", address, text)
		}
	}
	if got := e.Access.Refusals(); got != 2 {
		t.Errorf("%d refusals by the allow list", got)
	}
	if got := e.Traffic().BadHeaders.Load(); got != 0 {
		t.Errorf("%d bad headers", got)
	}

	// Without a header nobody is answered, from a proxy's address.
	for range 5 {
		if got := ask(t, e, "hello\n"); got != "" {
			t.Errorf("without a header the answer is %q", got)
		}
	}
	e.dial(t).Close() // a look at the port
	if got := e.Traffic().BadHeaders.Load(); got != 5 {
		t.Errorf("%d bad headers, want 5", got)
	}
	if got := strings.Count(log.String(), "setting=proxyProtocol"); got != 1 {
		t.Errorf("they are logged %d times:\n%s", got, &log)
	}
}

// Who is no proxy is whom its address says.
func TestHeadersOfOthers(t *testing.T) {
	for _, proxies := range [][]string{nil, {"10.9.0.0/16", "::/96"}} {
		e := startBehindProxy(t, io.Discard, proxies...)
		c := e.dial(t)
		io.WriteString(c, "PROXY TCP4 192.0.2.7 10.9.0.1 40000 42424\r\nhello\n")
		in := bufio.NewReader(c)
		for range 2 { // both lines are requests
			if line, err := in.ReadString('\n'); !strings.HasPrefix(line, "127.0.0.1:") {
				t.Errorf("with proxies %v the client is %q, %v", proxies, line, err)
			}
		}
	}
}

// A proxy that says nothing holds a connection for a while only; it makes room before, and does not hold up a shutdown.
func TestProxyThatSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		s := &Server{Log: slog.New(slog.NewTextHandler(&log, nil)), Access: NewAccessList(slog.New(slog.DiscardHandler))}
		far, near := net.Pipe()
		defer far.Close()
		c := &Conn{Conn: fromProxy{near}, srv: s}
		begun := time.Now()
		if s.introduce(c) {
			t.Error("it is let in")
		}
		if took := time.Since(begun); took != introduceBy || !strings.Contains(log.String(), "nothing came within 5s") || s.traffic.BadHeaders.Load() != 1 {
			t.Errorf("after %v: %s", took, &log)
		}
	})
	e := startBehindProxy(t, io.Discard, "127.0.0.1/32")
	e.LimitConnections(1)
	silent := e.dial(t)
	e.idle(t, 1)
	if got := ask(t, e, headers[0].header+"hello\n"); got != headers[0].client {
		t.Errorf("with a silent one for company, the client is %q", got)
	}
	if n, err := silent.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Error("the silent one is still there")
	}
	e.LimitConnections(0)
	e.dial(t)
	eventually(t, func() bool { return e.Connections() > 0 })
	if err := e.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := e.Traffic().BadHeaders.Load(); got != 0 {
		t.Errorf("%d bad headers", got)
	}
}

// fromProxy is a connection from the proxy's address.
type fromProxy struct{ net.Conn }

func (fromProxy) RemoteAddr() net.Addr { return proxyPeer }

func TestProxiesAreReplaced(t *testing.T) {
	s := new(Server)
	if s.isProxy(proxyPeer) {
		t.Error("at first there are proxies")
	}
	s.TrustProxies([]netip.Prefix{netip.MustParsePrefix("::ffff:10.9.0.0/112")})
	mapped := &net.TCPAddr{IP: slices.Concat(make([]byte, 10), []byte{255, 255, 10, 9, 0, 1})}
	if !s.isProxy(proxyPeer) || !s.isProxy(mapped) || s.isProxy(&net.TCPAddr{IP: net.IPv4(10, 8, 0, 1)}) || s.isProxy(&net.UnixAddr{Name: "x"}) {
		t.Error("a list of one range has others in it, or not its own")
	}
	s.TrustProxies(nil)
	if s.isProxy(proxyPeer) {
		t.Error("an old list stays")
	}
}
