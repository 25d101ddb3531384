package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"aspstate/config"
)

// The listener for web servers that come through a TLS tunnel.

// listenTLS returns the listeners: those that systemd has opened, or else its own; none where there is to be none.
func (p *process) listenTLS(ctx context.Context, handedOver []net.Listener) ([]net.Listener, error) {
	t := p.config.TLS
	if t.Listen == "" {
		return nil, nil
	}
	settings, err := tlsSettings(t)
	if err != nil {
		return handedOver, err
	}
	p.tls.Store(settings)
	if len(handedOver) > 0 {
		return handedOver, nil
	}
	listeners, err := listen(ctx, []string{t.Listen})
	if err != nil {
		return nil, fmt.Errorf("tls.listen: %w", err)
	}
	return listeners, nil
}

// configureTLS puts the files that are there now into force. Those with a fault change nothing.
func (p *process) configureTLS() {
	if p.tls.Load() == nil { // no listener
		return
	}
	settings, err := tlsSettings(p.config.TLS)
	if err != nil {
		p.log.Error("the files of the TLS listener have a fault, the old ones stay", "error", err)
		return
	}
	p.tls.Store(settings)
}

// tlsNow has every connection take the settings in force when it begins.
func (p *process) tlsNow() *tls.Config {
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return p.tls.Load(), nil }}
}

func tlsSettings(t config.TLS) (*tls.Config, error) {
	if t.Certificate == "" {
		return nil, errors.New("tls.certificate is missing, and tls.listen needs one: write the path of a PEM file, or leave tls.listen empty")
	}
	key := t.Key
	if key == "" {
		key = t.Certificate
	}
	pair, err := tls.LoadX509KeyPair(t.Certificate, key)
	if err != nil {
		return nil, fmt.Errorf("tls.certificate: %w", err)
	}
	settings := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if t.Clients == "" {
		return settings, nil
	}
	authorities, err := os.ReadFile(t.Clients)
	if err == nil {
		settings.ClientCAs = x509.NewCertPool()
		if !settings.ClientCAs.AppendCertsFromPEM(authorities) {
			err = errors.New("there is no certificate in " + t.Clients)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("tls.clients: %w", err)
	}
	settings.ClientAuth = tls.RequireAndVerifyClientCert
	return settings, nil
}
