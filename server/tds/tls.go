package tds

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"time"
)

// wrapped is a connection during the TLS handshake, which travels inside PRELOGIN packets (MS-TDS 3.2.5.1). Behind it
// TLS has the connection for itself.
type wrapped struct {
	net.Conn
	over bool // the handshake is
	left int  // bytes of the packet that is being read
}

// errNoTLS says that a client did not go on with the handshake.
var errNoTLS = errors.New("the client sent something other than a TLS handshake")

func (w *wrapped) Read(p []byte) (int, error) {
	if w.over {
		return w.Conn.Read(p)
	}
	for w.left == 0 {
		var b [packetHeader]byte
		if _, err := io.ReadFull(w.Conn, b[:]); err != nil {
			return 0, err
		}
		h, err := parseHeader(b[:])
		if err != nil || h.kind != packetPrelogin {
			return 0, errNoTLS
		}
		w.left = h.length - packetHeader
	}
	n, err := w.Conn.Read(p[:min(len(p), w.left)])
	w.left -= n
	return n, err
}

func (w *wrapped) Write(p []byte) (int, error) {
	if w.over {
		return w.Conn.Write(p)
	}
	if _, err := w.Conn.Write(appendMessage(nil, packetPrelogin, defaultPacket, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Certificate reads a certificate and its key from PEM files; the key may be in the certificate's file.
// Without files it makes a self-signed one, as SQL Server does, which is enough to keep a login secret from those
// who only listen.
func Certificate(certificate, key string) (tls.Certificate, error) {
	if certificate == "" {
		return selfSigned()
	}
	if key == "" {
		key = certificate
	}
	c, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return c, fmt.Errorf("read the certificate for TDS: %w", err)
	}
	switch c.PrivateKey.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
		return c, nil
	default:
		return c, errors.New("read the certificate for TDS: its key is neither RSA nor ECDSA, which is all that TLS 1.2 clients know")
	}
}

// selfSigned makes a certificate for ten years. RSA, because the oldest clients know nothing else.
func selfSigned() (tls.Certificate, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = serverName
	}
	begun := time.Now().Add(-time.Hour) // for clients whose clock is slow
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: host},
		DNSNames:     []string{host},
		NotBefore:    begun, NotAfter: begun.AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// tlsConfig is how TLS is spoken inside TDS, whose clients know nothing above TLS 1.2. A session ticket would
// have the client send the last message of the handshake.
func tlsConfig(certificate tls.Certificate, least uint16) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{certificate},
		MinVersion:   least, MaxVersion: tls.VersionTLS12,
		SessionTicketsDisabled: true,
	}
}
