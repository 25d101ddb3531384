package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"aspstate/config"
)

// operators is a client of a running server's API for operators (package server/admin).
type operators struct {
	base   string // http://HOST:PORT
	token  string
	client http.Client
	config *config.Config // of the settings that led here, nil for none
}

// addOperators gives a command the flags that lead to a running server, and returns what makes a client of them.
func addOperators(cmd *cobra.Command, environ []string) func() (*operators, error) {
	address := cmd.Flags().String("admin", "", "`address` of the server's listener for operators, host:port or https://host:port; without it the one of the settings")
	file := cmd.Flags().String("config", "", "the server's `file` with settings, for admin.listen, admin.token and admin.certificate")
	tokenFile := cmd.Flags().String("token-file", "", "`file` with the token (admin.token); or set ASPSTATE_ADMIN_TOKEN")
	caFile := cmd.Flags().String("ca-file", "", "PEM `file` with the certificates to trust, where the system's do not do")
	return func() (*operators, error) {
		o := &operators{client: http.Client{
			Timeout:       time.Minute,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
		transport := &http.Transport{TLSClientConfig: &tls.Config{}}
		o.client.Transport = transport
		c, err := config.Load(*file, environ, nil)
		switch {
		case err == nil:
			o.config, o.token = c, c.Admin.Token.Text()
		case *address == "" || *file != "":
			return nil, fmt.Errorf("the settings cannot be read, and without --admin nothing else says where the server is: %s", explain(err))
		}
		if o.base, err = baseURL(*address, c); err != nil {
			return nil, err
		}
		if *tokenFile != "" {
			data, err := os.ReadFile(*tokenFile)
			if err != nil {
				return nil, fmt.Errorf("--token-file: %w", err)
			}
			o.token = strings.TrimSpace(string(data))
		}
		trust := *caFile
		if trust == "" && *address == "" {
			trust = c.Admin.Certificate
		}
		if trust == "" {
			return o, nil
		}
		name, pool, err := trustFile(trust)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.RootCAs = pool
		if *caFile == "" { // the server's own certificate, whichever name it is for
			transport.TLSClientConfig.ServerName = name
		}
		return o, nil
	}
}

// baseURL is where the server's listener for operators is: at the address given, else where the settings say.
func baseURL(address string, c *config.Config) (string, error) {
	if address == "" {
		if !c.Admin.On() {
			return "", errors.New("admin.listen is off: set it to 127.0.0.1:42480 and restart the server, or give --admin where another one listens")
		}
		scheme := "http://"
		if c.Admin.Certificate != "" {
			scheme = "https://"
		}
		host, port, _ := net.SplitHostPort(c.Admin.Listen)
		if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
			host = "127.0.0.1"
			if ip.Is6() {
				host = "::1"
			}
		}
		return scheme + net.JoinHostPort(host, port), nil
	}
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return "", errors.New("--admin is not host:port or https://host:port")
	}
	return u.Scheme + "://" + u.Host, nil
}

// trustFile reads certificates, and the name that the first is for.
func trustFile(path string) (name string, pool *x509.CertPool, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", nil, fmt.Errorf("certificate to trust: %w", err)
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return "", nil, fmt.Errorf("certificate to trust: %s has no certificate in PEM form", path)
	}
	block, rest := pem.Decode(data)
	for block != nil && block.Type != "CERTIFICATE" {
		block, rest = pem.Decode(rest)
	}
	leaf, err := x509.ParseCertificate(block.Bytes) // there is one, or the pool would have none
	if err != nil {
		return "", nil, fmt.Errorf("certificate to trust: %w", err)
	}
	switch {
	case len(leaf.DNSNames) > 0:
		name = leaf.DNSNames[0]
	case len(leaf.IPAddresses) > 0:
		name = leaf.IPAddresses[0].String()
	}
	return name, pool, nil
}

// get asks for a path, with parameters, and decodes the answer.
func (o *operators) get(ctx context.Context, path string, query url.Values, into any) error {
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return o.do(ctx, http.MethodGet, path, nil, into)
}

// do sends a request, with a body unless that is nil, and decodes the answer.
func (o *operators) do(ctx context.Context, method, path string, body, into any) error {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, o.base+path, content)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if o.token != "" {
		req.Header.Set("Authorization", "Bearer "+o.token)
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return o.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 300 && isJSON(resp) {
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			return fmt.Errorf("the answer of %s: %w", o.base, err)
		}
		return nil
	}
	return o.refused(resp)
}

func isJSON(resp *http.Response) bool {
	return strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json")
}

// refused is the error that an answer stands for.
func (o *operators) refused(resp *http.Response) error {
	var fault struct {
		Error  string   `json:"error"`
		Faults []string `json:"faults"`
	}
	if !isJSON(resp) || json.NewDecoder(resp.Body).Decode(&fault) != nil || fault.Error == "" {
		return fmt.Errorf("%s answers %s, which aspstate's listener for operators does not: give the address of admin.listen with --admin", o.base, resp.Status)
	}
	refused := &refusal{status: resp.StatusCode, text: fault.Error}
	if resp.StatusCode == http.StatusUnauthorized {
		refused.text = "the token is missing or wrong: give the server's admin.token with --token-file or in ASPSTATE_ADMIN_TOKEN"
	}
	if len(fault.Faults) > 1 {
		refused.text += "\n  " + strings.Join(fault.Faults, "\n  ")
	}
	return refused
}

// refusal is an answer that says why not.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// unreachable explains why there is no answer.
func (o *operators) unreachable(err error) error {
	why := "see that the server runs, and that --admin (or admin.listen in --config) is right"
	switch {
	case isErrno(err, syscall.ECONNREFUSED, 10061):
		why = "nothing listens there: start the server, or give its admin.listen with --admin"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		why = "it has no TLS: write http:// in --admin"
	case strings.Contains(err.Error(), "malformed HTTP response"):
		why = "it wants TLS: write https:// in --admin"
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		why = "its certificate is not trusted here: give it with --ca-file"
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return fmt.Errorf("no answer from %s: %s (%w)", o.base, why, err)
}
