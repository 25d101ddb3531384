package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What settings say of other places: secrets read from there, and paths made absolute.

// resolve reads a connection string that stands elsewhere, and tells its backend.
func (l *loader) resolve(c *Config, dir string) {
	const key = "sqlConnectionString"
	cs := &c.SQLConnectionString
	text := cs.text
	if file := &c.Memory.StateFile; *file != "" && !filepath.IsAbs(*file) {
		*file = filepath.Join(dir, *file)
	}
	if elsewhere(text) {
		cs.from, cs.text = text, ""
		if c.Mode == ModeStateServer {
			return // not needed, so it need not be there
		}
		var ok bool
		if text, ok = l.fetch(key, text, dir, "the connection string"); !ok {
			return
		}
	} else if strings.HasPrefix(l.source[key], "--") && hasPassword(text) {
		l.fault(key, "a password on the command line can be read by every user of this machine",
			"put the connection string into a file or an environment variable and write file:PATH or env:NAME")
	}
	found, err := recognize(text, dir)
	if err == nil {
		found.from = cs.from
		*cs = found
	}
	if c.Mode == ModeStateServer {
		return // kept for the day the mode is switched
	}
	if err != nil {
		l.fault(key, err.Error(), "write sqlite:PATH, such as sqlite:/var/lib/aspstate/aspstate.db, or postgres://USER@HOST/DATABASE")
	} else if !found.Backend.served() {
		l.fault(key, "this version of aspstate cannot keep sessions in "+string(found.Backend)+" yet", "write sqlite:PATH, such as sqlite:/var/lib/aspstate/aspstate.db, or postgres://USER@HOST/DATABASE")
	}
}

// resolveAdmin reads a token that stands elsewhere.
func (l *loader) resolveAdmin(c *Config, dir string) {
	const key = "admin.token"
	token := &c.Admin.Token
	switch {
	case elsewhere(token.text):
		token.from, token.text = token.text, ""
		if c.Admin.On() {
			token.text, _ = l.fetch(key, token.from, dir, "the token")
		}
	case strings.HasPrefix(l.source[key], "--") && token.text != "":
		l.fault(key, "a token on the command line can be read by every user of this machine",
			"put it into a file or an environment variable and write file:PATH or env:NAME")
	}
}

// resolveFiles finds the files of certificates.
func (l *loader) resolveFiles(c *Config, dir string) {
	for _, path := range []*string{&c.Admin.Certificate, &c.Admin.Key, &c.TDS.Certificate, &c.TDS.Key, &c.TLS.Certificate, &c.TLS.Key, &c.TLS.Clients} {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
}

// elsewhere reports whether a secret's text says where to find it.
func elsewhere(text string) bool {
	_, env := cutPrefixFold(text, "env:")
	_, file := cutPrefixFold(text, "file:")
	return env || file
}

// fetch reads a secret from where its text says. A fault names it as what.
func (l *loader) fetch(key, text, dir, what string) (secret string, ok bool) {
	if name, env := cutPrefixFold(text, "env:"); env {
		if secret = strings.TrimSpace(l.env[name]); secret == "" {
			l.fault(key, "the environment variable "+name+" is not set", "set it to "+what)
		}
		return secret, secret != ""
	}
	path, _ := cutPrefixFold(text, "file:")
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	data, err := os.ReadFile(path)
	if secret = strings.TrimSpace(string(data)); err == nil && secret == "" {
		err = errors.New("the file " + path + " is empty")
	}
	if err != nil {
		l.fault(key, err.Error(), "write "+what+" into a file that the server can read")
	}
	return secret, err == nil
}

// readFrom reports whether a secret was read from there.
func (c *Config) readFrom(place string) bool {
	return c.SQLConnectionString.from == place || c.Admin.Token.from == place ||
		slices.ContainsFunc(c.Encryption.Keys, func(k EncryptionKey) bool { return k.From == place })
}
