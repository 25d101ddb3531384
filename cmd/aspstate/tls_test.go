package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"aspstate/server/stateserver/client"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// certify makes a certificate, an authority's own if by is nil. Its PEM file is key and certificate.
func certify(t *testing.T, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, BasicConstraintsValid: true, IsCA: by == nil,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	a := &authority{key: key}
	if by == nil {
		by = &authority{certificate: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.pem = append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	return a
}

// tlsClient is the settings of a client that trusts ca and shows the certificate of as, if there is one.
func tlsClient(t *testing.T, ca, as *authority) *tls.Config {
	t.Helper()
	settings := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "state"}
	settings.RootCAs.AddCert(ca.certificate)
	if as != nil {
		pair, err := tls.X509KeyPair(as.pem, as.pem)
		if err != nil {
			t.Fatal(err)
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	return settings
}

// The TLS listener is the state server's port behind a handshake; who has no certificate of the right authority is not let in.
func TestTLSListener(t *testing.T) {
	ca, foreign := certify(t, "ca", nil), certify(t, "other ca", nil)
	dir := t.TempDir()
	certificate, clients := filepath.Join(dir, "state.pem"), filepath.Join(dir, "clients.pem")
	write := func(path string, a *authority) {
		t.Helper()
		if err := os.WriteFile(path, a.pem, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(certificate, certify(t, "state", ca))
	write(clients, ca)
	r := start(t, "--mode=StateServer", "--lock-wait=6s", "--tls-listen=127.0.0.1:0", "--tls-certificate="+certificate, "--tls-clients="+clients)
	found := regexp.MustCompile(`"serving TLS" address=(\S+) client_certificates=true`).FindStringSubmatch(r.log.String())
	if found == nil {
		t.Fatalf("no TLS listener in the log:\n%s", r.log)
	}
	address := found[1]
	dialTLS := func(settings *tls.Config) *client.Conn {
		t.Helper()
		conn, err := tls.Dial("tcp", address, settings)
		if err != nil {
			t.Fatal(err)
		}
		c := client.New(conn)
		t.Cleanup(func() { c.Close() })
		return c
	}
	web := tlsClient(t, ca, certify(t, "web1", ca))

	// A large session, over TLS and beside it; a lock that is waited for is handed over.
	c, plain := dialTLS(web), dial(t, r)
	item := bytes.Repeat([]byte("cart"), 100_000)
	wantStatus(t, 200)(c.Set(shop, item, time.Minute, 0))
	if a := wantStatus(t, 200)(plain.Get(shop)); !bytes.Equal(a.Body, item) {
		t.Error("the session is another one without TLS")
	}
	if a := wantStatus(t, 200)(c.Get(shop)); !bytes.Equal(a.Body, item) {
		t.Error("the session is another one over TLS")
	}
	lock := wantStatus(t, 200)(plain.GetExclusive(shop))
	got := make(chan client.Answer, 1)
	go func() {
		a, _ := c.GetExclusive(shop)
		got <- a
	}()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, out, _ := aspstate(t, "status", "--admin="+adminAddress(t, r)); strings.Contains(out, "1 waiting") {
			break
		}
	}
	wantStatus(t, 200)(plain.Release(shop, lock.LockCookie))
	if a := <-got; a.Status != 200 || a.LockCookie != lock.LockCookie+1 {
		t.Errorf("the waiter has %d, cookie %d", a.Status, a.LockCookie)
	}
	// It goes on after the wait, in which it was read from, too.
	wantStatus(t, 200)(c.Set(shop, []byte("small"), time.Minute, lock.LockCookie+1))

	for name, settings := range map[string]*tls.Config{
		"no certificate":      tlsClient(t, ca, nil),
		"another authority's": tlsClient(t, ca, certify(t, "web1", foreign)),
	} {
		conn, err := tls.Dial("tcp", address, settings)
		if err == nil { // TLS 1.3 has the client hear of it later
			_, err = client.New(conn).Get(shop)
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.log.await(t, "the TLS handshake failed")
	// Without TLS nothing is said there.
	bare, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	if a, err := client.New(bare).Get(shop); err == nil {
		t.Errorf("answered %d without TLS", a.Status)
	}

	// New files count from the next connection on, those with a fault never.
	write(certificate, certify(t, "state", foreign))
	want(t, 0, nil, "reload", "--admin="+adminAddress(t, r))
	if _, err := tls.Dial("tcp", address, web); err == nil {
		t.Error("the old certificate is shown after a reload")
	}
	if err := os.WriteFile(certificate, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, 0, nil, "reload", "--admin="+adminAddress(t, r))
	r.log.await(t, "the files of the TLS listener have a fault")
	wantStatus(t, 200)(dialTLS(tlsClient(t, foreign, certify(t, "web1", ca))).Get(shop))
	wantStatus(t, 200)(c.Get(shop)) // one from before goes on
}

func TestTLSListenerWithoutItsFiles(t *testing.T) {
	want(t, 1, []string{"tls.certificate is missing, and tls.listen needs one"}, "serve", "--mode=StateServer", "--listen=127.0.0.1:0", "--admin-listen=off", "--tls-listen=127.0.0.1:0")
	want(t, 1, []string{"tls.clients: ", "nosuch"}, "serve", "--mode=StateServer", "--listen=127.0.0.1:0", "--admin-listen=off", "--tls-listen=127.0.0.1:0",
		"--tls-certificate="+pemFile(t), "--tls-clients=nosuch")
}

func pemFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.pem")
	if err := os.WriteFile(path, certify(t, "state", nil).pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A proxy that passes TLS on as it is sends its header in front of the handshake, in the clear.
func TestProxyProtocolBeforeTLS(t *testing.T) {
	ca := certify(t, "ca", nil)
	certificate, clients := pemFile(t), filepath.Join(t.TempDir(), "clients.pem")
	for path, a := range map[string]*authority{certificate: certify(t, "state", ca), clients: ca} {
		if err := os.WriteFile(path, a.pem, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := start(t, "--mode=StateServer", "--tls-listen=127.0.0.1:0", "--tls-certificate="+certificate, "--tls-clients="+clients,
		"--proxy-protocol=127.0.0.1", "--allow=192.0.2.0/24", "--log-level=debug")
	found := regexp.MustCompile(`"serving TLS" address=(\S+) `).FindStringSubmatch(r.log.String())
	if found == nil {
		t.Fatalf("no TLS listener in the log:\n%s", r.log)
	}
	web := tlsClient(t, ca, certify(t, "web1", ca))
	// visit sends a header, in front of the first bytes of TLS or by itself, and begins TLS behind it.
	visit := func(header string, together bool) (*tls.Conn, error) {
		t.Helper()
		conn, err := net.Dial("tcp", found[1])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(patience))
		if !together {
			if _, err := io.WriteString(conn, header); err != nil {
				t.Fatal(err)
			}
			header = ""
		}
		secured := tls.Client(&headed{conn, header}, web)
		return secured, secured.Handshake()
	}
	item := bytes.Repeat([]byte("cart"), 50_000)
	for _, together := range []bool{true, false} {
		conn, err := visit("PROXY TCP4 192.0.2.7 10.9.0.1 40000 42424\r\n", together)
		if err != nil {
			t.Fatalf("in one piece %t: %v", together, err)
		}
		c := client.New(conn)
		wantStatus(t, 200)(c.Set(shop, item, time.Minute, 0))
		if a := wantStatus(t, 200)(c.Get(shop)); !bytes.Equal(a.Body, item) {
			t.Errorf("in one piece %t: the session is another one", together)
		}
		// It is the client's address that the log names.
		if _, err := io.WriteString(conn, "garbage\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r.log.await(t, `msg="request refused" client=192.0.2.7:40000`)
	}
	// The allow list is about that address, too, and is asked before the handshake.
	if _, err := visit("PROXY TCP4 198.51.100.1 10.9.0.1 40000 42424\r\n", true); err == nil {
		t.Error("a client that allow does not list has made the TLS handshake")
	}
	r.log.await(t, `msg="connection refused: the address is not in the allow list" client=198.51.100.1`)
	// Without the header TLS is no good.
	if _, err := visit("", true); err == nil {
		t.Error("TLS without a header is answered")
	}
	r.log.await(t, "setting=proxyProtocol")
}

// headed sends a header in front of its first bytes.
type headed struct {
	net.Conn
	header string
}

func (h *headed) Write(p []byte) (int, error) {
	if h.header == "" {
		return h.Conn.Write(p)
	}
	_, err := h.Conn.Write(append([]byte(h.header), p...))
	h.header = ""
	return len(p), err
}
