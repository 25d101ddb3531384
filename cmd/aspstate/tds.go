package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"aspstate/config"
	"aspstate/server/tds"
)

// The listener for web applications with mode="SQLServer", and who may log in there.

// listenTDS returns the listeners for web applications with mode="SQLServer": those that systemd has opened, or else
// its own; none where there is to be none.
func (p *process) listenTDS(ctx context.Context, handedOver []net.Listener) ([]net.Listener, error) {
	c := p.config.TDS
	if c.Listen == "" {
		return nil, nil
	}
	p.tds = tds.New(p.sessions, p.log)
	settings, err := p.tdsSettings(p.config)
	if err != nil {
		return handedOver, err
	}
	p.tds.Configure(settings)
	if len(handedOver) > 0 {
		return handedOver, nil
	}
	listeners, err := listen(ctx, []string{c.Listen})
	if err != nil {
		return nil, fmt.Errorf("tds.listen: %w", err)
	}
	return listeners, nil
}

// configureTDS puts the listener's settings into force. Those with a fault change nothing.
func (p *process) configureTDS() {
	if p.tds == nil {
		return
	}
	settings, err := p.tdsSettings(p.config)
	if err != nil {
		p.log.Error("the settings of the listener for mode=\"SQLServer\" have a fault, the old ones stay", "error", err)
		return
	}
	p.tds.Configure(settings)
}

func (p *process) tdsSettings(c *config.Config) (s tds.Settings, err error) {
	s = tds.DefaultSettings()
	s.Body = int64(c.Limits.Body)
	s.Databases = c.TDS.Databases
	s.RequireTLS = c.TDS.Encryption == "required"
	if c.TDS.OldTLS {
		s.LeastTLS = tls.VersionTLS10
	}
	for i := range c.TDS.Users {
		name, text := c.TDS.Users.User(i)
		hash, err := tds.ParsePasswordHash(text)
		if err != nil {
			return s, fmt.Errorf("tds.users: the hash of %s: %w", name, err)
		}
		s.Users = append(s.Users, tds.User{Name: name, Hash: hash})
	}
	if c.TDS.Certificate != "" {
		s.Certificate, err = tds.Certificate(c.TDS.Certificate, c.TDS.Key)
		return s, err
	}
	if p.ownCertificate.PrivateKey == nil {
		p.ownCertificate, err = tds.Certificate("", "")
	}
	s.Certificate = p.ownCertificate
	return s, err
}

// dataSource is an address as sqlConnectionString has it.
func dataSource(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host + "," + port
}

// sayReadyTDS prints what to paste into web.config.
func (p *process) sayReadyTDS(stdout io.Writer, ln net.Listener) {
	fmt.Fprintln(stdout, sqlServerElement(p.config, reachable(ln.Addr())))
}

// sqlConnectionString is what a web application with mode="SQLServer" writes; custom says that it needs
// allowCustomSqlDatabase, because the database has another name than ASPState.
func sqlConnectionString(c *config.Config, address string) (text string, custom bool) {
	user, password := "USER", "..."
	if len(c.TDS.Users) > 0 {
		user, _ = c.TDS.Users.User(0)
	}
	text = "Data Source=" + dataSource(address) + ";User ID=" + user + ";Password=" + password
	for _, name := range c.TDS.Databases {
		if strings.EqualFold(name, "ASPState") {
			return text, false
		}
	}
	return text + ";Initial Catalog=" + c.TDS.Databases[0], true
}

// sqlServerElement is the <sessionState> element for the front end of mode="SQLServer".
func sqlServerElement(c *config.Config, address string) string {
	text, custom := sqlConnectionString(c, address)
	allow := ""
	if custom {
		allow = `allowCustomSqlDatabase="true" `
	}
	return fmt.Sprintf(`<sessionState mode="SQLServer" %ssqlConnectionString="%s" />`, allow, attribute(text))
}

func hashPasswordCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "hash-password",
		Short: "Hash a password for tds.users",
		Long: "hash-password reads a password, the first line of its standard input, and prints the hash to write\n" +
			"behind a user's name in tds.users.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			password, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("hash-password: read the password: %w", err)
			}
			if password = strings.TrimRight(password, "\r\n"); password == "" {
				return errors.New("hash-password: there is no password on standard input")
			}
			hash, err := tds.HashPassword(password)
			if err != nil {
				return fmt.Errorf("hash-password: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), hash)
			return nil
		},
	}
}
