package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Backend is the kind of database that a connection string leads to.
type Backend string

const (
	SQLite    Backend = "sqlite"
	Postgres  Backend = "postgres"
	SQLServer Backend = "sqlserver"
)

// served reports whether this version has the backend. The others are
// recognised so that the fault can say what is the matter.
func (b Backend) served() bool { return b == SQLite || b == Postgres || b == SQLServer }

// ConnectionString says in which database sessions are kept. It may hold a
// password: whatever prints it shows a form without.
type ConnectionString struct {
	Backend Backend // "" where the form is not known, which only mode StateServer lets pass
	Path    string  // SQLite: the absolute path of the file
	text    string
	from    string // env:NAME or file:PATH, where the text was read
}

// ShowConnectionString returns a connection string without its password, or where it is to be read from.
func ShowConnectionString(text string) string {
	if elsewhere(text) {
		return text
	}
	c, err := recognize(text, "")
	if err != nil {
		return "…"
	}
	return c.String()
}

// Text returns the whole connection string, password included, for opening the
// database and nothing else.
func (c ConnectionString) Text() string { return c.text }

// String returns the connection string without its password.
func (c ConnectionString) String() string {
	s := redact(c)
	if c.from != "" {
		s = strings.TrimSpace(c.from + " " + s)
	}
	return s
}

// GoString is String, so that %#v shows no password either.
func (c ConnectionString) GoString() string { return c.String() }

// LogValue is String.
func (c ConnectionString) LogValue() slog.Value { return slog.StringValue(c.String()) }

// databaseURL matches a URL whose parts can be told apart for certain: user
// name, password, host, database, parameters. Other text shows nothing but its
// scheme, since a password with an unescaped / ? # or @ could stand anywhere.
var databaseURL = regexp.MustCompile(`^(?i:(postgres|postgresql|sqlserver)://)(?:([^:/?#@\s]*)(:[^/?#@\s]*)?@)?([^/?#@\s]*)(/[^?#@\s]*)?(\?[^#@\s]*)?$`)

var passwordParameter = regexp.MustCompile(`(?i)[?&](password|pwd)=[^&]`)

func redact(c ConnectionString) string {
	if c.Backend == SQLite {
		return "sqlite:" + c.Path
	}
	if scheme, _, ok := strings.Cut(c.text, "://"); ok && isDatabaseScheme(scheme) {
		m := databaseURL.FindStringSubmatch(c.text)
		if m == nil {
			return strings.ToLower(scheme) + "://…"
		}
		user := ""
		if m[2] != "" {
			user = m[2] + "@"
		}
		return strings.ToLower(m[1]) + "://" + user + m[4] + m[5]
	}
	if pairs, err := parseADO(c.text); err == nil {
		if server := pairs.get(serverKeys); server != "" {
			return fmt.Sprintf("Data Source=%s;Initial Catalog=%s", server, pairs.get(catalogKeys))
		}
	}
	return ""
}

func isDatabaseScheme(s string) bool {
	return strings.EqualFold(s, "postgres") || strings.EqualFold(s, "postgresql") || strings.EqualFold(s, "sqlserver")
}

// recognize tells the backend by the form of the text. Relative SQLite paths are
// made absolute from dir. Errors never hold the text, which may hold a password.
func recognize(text, dir string) (ConnectionString, error) {
	if rest, ok := cutPrefixFold(text, "sqlite:"); ok {
		path, err := sqlitePath(rest, dir)
		return ConnectionString{Backend: SQLite, Path: path, text: "sqlite:" + path}, err
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok && isDatabaseScheme(scheme) {
		if strings.EqualFold(scheme, "sqlserver") {
			return ConnectionString{Backend: SQLServer, text: verifiedURL(text, "encrypt", "true")}, nil
		}
		if os.Getenv("PGSSLMODE") == "" { // which the driver reads, too
			text = verifiedURL(text, "sslmode", "verify-full")
		}
		return ConnectionString{Backend: Postgres, text: text}, nil
	}
	pairs, err := parseADO(text)
	if err != nil || pairs.get(serverKeys) == "" {
		return ConnectionString{}, errors.New("it has no form that aspstate knows (its text is not shown, it may hold a password)")
	}
	add := func(key, value string) {
		if strings.ContainsAny(text, `'"`) {
			pairs[strings.ToLower(key)] = value
		} else {
			text = strings.TrimRight(text, "; ") + ";" + key + "=" + value
		}
	}
	if pairs.get(catalogKeys) == "" {
		add("Initial Catalog", "ASPState") // as in web.config
	}
	if pairs["encrypt"] == "" && !isThisMachine(pairs.get(serverKeys)) {
		add("Encrypt", "true")
	}
	if runtime.GOOS != "windows" && pairs.integrated() {
		add("Authenticator", "krb5") // as .NET does; the driver would log in with no name
	}
	if strings.ContainsAny(text, `'"`) {
		text = pairs.text()
	}
	return ConnectionString{Backend: SQLServer, text: text}, nil
}

// verifiedURL adds the parameter that has the database's certificate verified, where the URL leads to another
// machine and does not say whether it should be: the drivers' own defaults trust whoever answers.
func verifiedURL(text, parameter, value string) string {
	m := databaseURL.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	query, err := url.ParseQuery(strings.TrimPrefix(m[6], "?"))
	if err != nil {
		return text
	}
	hosts := m[4]
	for name, values := range query {
		switch {
		case strings.EqualFold(name, parameter):
			return text
		case name == "host":
			hosts = values[0]
		}
	}
	elsewhere := slices.ContainsFunc(strings.Split(hosts, ","), func(host string) bool { return !isThisMachine(host) })
	if !elsewhere {
		return text
	}
	separator := "?"
	if m[6] != "" {
		separator = "&"
	}
	return text + separator + parameter + "=" + value
}

// isThisMachine reports whether a server named in a connection string is on this machine, without asking anybody.
func isThisMachine(server string) bool {
	server = strings.ToLower(server)
	for _, protocol := range []string{"tcp:", "lpc:", "np:", "admin:"} {
		server = strings.TrimPrefix(server, protocol)
	}
	server, _, _ = strings.Cut(server, `\`) // an instance
	server, _, _ = strings.Cut(server, ",") // a port
	if strings.HasPrefix(server, "/") || strings.HasPrefix(server, "@") || slices.Contains([]string{"", ".", "(local)", "(localdb)"}, server) {
		return true
	}
	if host, _, err := net.SplitHostPort(server); err == nil {
		server = host
	}
	return isLoopback(strings.Trim(server, "[]"))
}

func sqlitePath(path, dir string) (string, error) {
	switch {
	case path == "":
		return "", errors.New("the path after sqlite: is missing")
	case strings.HasPrefix(path, ":memory:"):
		return "", errors.New("an SQLite database in memory would lose every session; mode StateServer keeps sessions in memory")
	case strings.HasPrefix(path, "//") && !strings.HasPrefix(path, "///"):
		return "", errors.New("it is a file, not a URL: leave out the // of sqlite://")
	case strings.ContainsAny(path, "?\x00"):
		return "", errors.New("the path must not contain ? or NUL; parameters of SQLite are not taken")
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	}
	return filepath.Abs(filepath.Join(dir, path))
}

// hasPassword reports whether the text holds a password, or may.
func hasPassword(text string) bool {
	if _, ok := cutPrefixFold(text, "sqlite:"); ok {
		return false
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok && isDatabaseScheme(scheme) {
		m := databaseURL.FindStringSubmatch(text)
		return m == nil || len(m[3]) > 1 || passwordParameter.MatchString(m[6])
	}
	if pairs, err := parseADO(text); err == nil && pairs.get(serverKeys) != "" {
		return pairs.get([]string{"password", "pwd"}) != ""
	}
	text = strings.ToLower(text)
	return strings.Contains(text, "password") || strings.Contains(text, "pwd")
}

// ado are the settings of an ADO.NET connection string, by lower-case key.
type ado map[string]string

// Synonyms that SqlConnection knows.
var (
	serverKeys  = []string{"data source", "server", "address", "addr", "network address"}
	catalogKeys = []string{"initial catalog", "database"}
)

func (a ado) get(keys []string) string {
	for _, k := range keys {
		if a[k] != "" {
			return a[k]
		}
	}
	return ""
}

// integrated reports whether the settings ask for the process's own account: by their names for it, and without a login.
func (a ado) integrated() bool {
	asked := strings.ToLower(a.get([]string{"integrated security", "trusted_connection"}))
	login := a.get([]string{"user id", "uid", "user"}) != "" && a.get([]string{"password", "pwd"}) != ""
	return slices.Contains([]string{"sspi", "true", "yes"}, asked) && !login && a["authenticator"] == ""
}

// text writes the settings as go-mssqldb reads them. It knows no single quotes, and takes double ones
// inside a value for the beginning of a quoted one.
func (a ado) text() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(a)) {
		if b.Len() > 0 {
			b.WriteByte(';')
		}
		value := a[key]
		if strings.ContainsAny(value, `;"'`) || value != strings.TrimSpace(value) {
			value = `"` + strings.ReplaceAll(value, `"`, `""`) + `"`
		}
		b.WriteString(key + "=" + value)
	}
	return b.String()
}

var errADO = errors.New("not an ADO.NET connection string")

// parseADO splits key=value;key=value. Values may be in single or double
// quotes, which are doubled inside.
func parseADO(text string) (ado, error) {
	pairs := ado{}
	for rest := text; ; {
		rest = strings.TrimLeft(rest, "; \t\r\n")
		if rest == "" {
			return pairs, nil
		}
		key, after, ok := strings.Cut(rest, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok || key == "" || strings.Contains(key, ";") {
			return nil, errADO
		}
		after = strings.TrimLeft(after, " \t\r\n")
		var value string
		if after != "" && (after[0] == '"' || after[0] == '\'') {
			value, rest, ok = cutQuoted(after)
			if !ok {
				return nil, errADO
			}
		} else {
			value, rest, _ = strings.Cut(after, ";")
			value = strings.TrimSpace(value)
		}
		pairs[key] = value
	}
}

// cutQuoted takes a quoted value and the semicolon after it off the text.
func cutQuoted(text string) (value, rest string, ok bool) {
	quote := text[:1]
	var b strings.Builder
	for rest = text[1:]; ; {
		part, after, found := strings.Cut(rest, quote)
		if !found {
			return "", "", false
		}
		b.WriteString(part)
		if !strings.HasPrefix(after, quote) {
			after = strings.TrimLeft(after, " \t\r\n")
			if after != "" && after[0] != ';' {
				return "", "", false
			}
			return b.String(), after, true
		}
		b.WriteString(quote)
		rest = after[1:]
	}
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
