// Package config reads the settings of aspstate from their defaults, a YAML
// file, ASPSTATE_ environment variables and flags, and says everything that is
// wrong with them at once.
package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"time"
)

// Config holds the settings. Each is listed once, here. The tags say:
//
//   - key: its name in the YAML file, from which its flag (--limits-request-line)
//     and its environment variable (ASPSTATE_LIMITS_REQUESTLINE) follow;
//   - default: its value where nobody sets it, as it would be written in the file;
//   - choices: the words it is limited to;
//   - live: it can change while the server runs (see Reload);
//   - doc: the text of its flag.
type Config struct {
	Mode                Mode             `key:"mode" default:"SQLServer" live:"true" choices:"SQLServer,StateServer" doc:"where sessions are kept: SQLServer (in the database of sqlConnectionString) or StateServer (in memory)"`
	SQLConnectionString ConnectionString `key:"sqlConnectionString" default:"sqlite:aspstate.db" live:"true" doc:"database of mode SQLServer: sqlite:PATH, or env:NAME or file:PATH to read it from there"`
	AutoMigrate         bool             `key:"autoMigrate" default:"false" live:"true" doc:"bring the database schema up to date on start; an SQLite file always is"`
	Listen              []string         `key:"listen" default:"127.0.0.1:42424" doc:"addresses to listen on, host:port"`
	Allow               []netip.Prefix   `key:"allow" default:"" live:"true" doc:"web servers that may connect, addresses or CIDR ranges; loopback always may"`
	ProxyProtocol       []netip.Prefix   `key:"proxyProtocol" default:"" live:"true" doc:"proxies whose connections begin with a PROXY header, addresses or CIDR ranges; allow then is about the clients that they name"`
	LockWait            time.Duration    `key:"lockWait" default:"1s" live:"true" doc:"how long a request waits for a locked session before it is answered 423"`
	RequestBudget       time.Duration    `key:"requestBudget" default:"8s" live:"true" doc:"time from a request's first line to its answer, lock waits and retries included"`
	TakeOver            string           `key:"takeOver" default:"" live:"true" doc:"another state server, tcpip=HOST:42424, whose sessions are taken over when they are asked for"`
	StatusLine          string           `key:"statusLine" default:"bare" choices:"bare,http" doc:"bare answers \"200 OK\" as the original does, http answers \"HTTP/1.1 200 OK\" for tools"`
	ASPNetVersion       string           `key:"aspNetVersion" default:"4.0.30319" doc:"value of the X-AspNet-Version header"`
	Limits              Limits           `key:"limits"`
	Quotas              Quotas           `key:"quotas"`
	Memory              Memory           `key:"memory"`
	Encryption          Encryption       `key:"encryption"`
	Sweep               Sweep            `key:"sweep"`
	Applications        Applications     `key:"applications" default:"" live:"true" doc:"app ids that share sessions: name=/LM/W3SVC/1/ROOT,/LM/W3SVC/7/ROOT; other=..."`
	Admin               Admin            `key:"admin"`
	TDS                 TDS              `key:"tds"`
	TLS                 TLS              `key:"tls"`
	Log                 Log              `key:"log"`

	// Warnings are remarks on settings that are allowed but likely not meant.
	Warnings []string

	sources map[string]string // where a setting's value was found, by key; defaults are absent
}

// Limits bound what clients can make the server hold.
type Limits struct {
	RequestLine    Size          `key:"requestLine" default:"8KiB" live:"true" doc:"longest request line"`
	Headers        Size          `key:"headers" default:"16KiB" live:"true" doc:"largest header block of a request"`
	Body           Size          `key:"body" default:"64MiB" live:"true" doc:"largest session"`
	BodiesInFlight Size          `key:"bodiesInFlight" default:"1GiB" live:"true" doc:"memory that sessions hold on their way in and out, over all connections; when it is used up, clients that neither send nor take theirs are cut off"`
	Connections    int           `key:"connections" default:"10000" live:"true" doc:"open connections; beyond them the one idle longest is closed"`
	Idle           time.Duration `key:"idle" default:"5m" live:"true" doc:"a connection that sends nothing for so long is closed, but for those of mode=SQLServer that have logged in"`
}

// Memory is about the sessions of mode StateServer.
type Memory struct {
	MaxBytes  Size   `key:"maxBytes" default:"0" doc:"memory for sessions in mode StateServer, 0 for no limit; beyond it writes are refused"`
	StateFile string `key:"stateFile" default:"" live:"true" doc:"file that keeps the sessions of mode StateServer over a planned restart, none if empty"`
}

// Sweep is about deleting expired sessions. They are never served, swept or not.
type Sweep struct {
	Interval time.Duration `key:"interval" default:"60s" live:"true" doc:"time between two sweeps for expired sessions"`
	Batch    int           `key:"batch" default:"1000" live:"true" doc:"expired sessions deleted in one go"`
}

// Admin is about the listener for operators.
type Admin struct {
	Listen      string `key:"listen" default:"127.0.0.1:42480" doc:"address of health, metrics and the operators' API and page; off for none"`
	Token       Secret `key:"token" default:"" live:"true" doc:"what operators show to be let in, as env:NAME or file:PATH; needed where listen is not loopback"`
	Certificate string `key:"certificate" default:"" live:"true" doc:"PEM file with the certificate for TLS"`
	Key         string `key:"key" default:"" live:"true" doc:"PEM file with the certificate's key, if that is not in the certificate's file"`
	PProf       bool   `key:"pprof" default:"false" live:"true" doc:"serve /debug/pprof"`
}

// On reports whether there is a listener for operators.
func (a Admin) On() bool { return a.Listen != "" && !strings.EqualFold(a.Listen, "off") }

// TDS is about the listener for web applications with mode="SQLServer".
type TDS struct {
	Listen      string   `key:"listen" default:"" doc:"address for web applications with mode=\"SQLServer\", such as 127.0.0.1:1433; none if empty"`
	Databases   []string `key:"databases" default:"ASPState" live:"true" doc:"names that those applications may give the database"`
	Users       Users    `key:"users" default:"" live:"true" doc:"who may log in there, NAME:HASH; aspstate hash-password makes the hash"`
	Encryption  string   `key:"encryption" default:"login" live:"true" choices:"login,required" doc:"login encrypts at least the login, of clients that can; required encrypts all, and refuses other clients"`
	OldTLS      bool     `key:"oldTLS" default:"false" live:"true" doc:"let clients use TLS 1.0 and 1.1 there, as old Windows does"`
	Certificate string   `key:"certificate" default:"" live:"true" doc:"PEM file with the certificate for TLS there; one is made up if empty"`
	Key         string   `key:"key" default:"" live:"true" doc:"PEM file with the certificate's key, if that is not in the certificate's file"`
}

// TLS is about the listener for web servers that come through a TLS tunnel: ASP.NET itself has no TLS for port 42424.
type TLS struct {
	Listen      string `key:"listen" default:"" doc:"address for web servers that come through a TLS tunnel (stunnel), such as 10.1.2.10:42425; none if empty"`
	Certificate string `key:"certificate" default:"" live:"true" doc:"PEM file with the certificate for it"`
	Key         string `key:"key" default:"" live:"true" doc:"PEM file with the certificate's key, if that is not in the certificate's file"`
	Clients     string `key:"clients" default:"" live:"true" doc:"PEM file with the authorities whose certificates clients have to show; they show none if empty"`
}

// Users are those who may log in, each as NAME:HASH.
type Users []string

// User takes an element of Users apart. Names have no colon.
func (u Users) User(i int) (name, hash string) {
	name, hash, _ = strings.Cut(u[i], ":")
	return name, hash
}

// String is their names, which is all that may be shown.
func (u Users) String() string {
	names := make([]string, len(u))
	for i := range u {
		names[i], _ = u.User(i)
	}
	return "[" + strings.Join(names, ", ") + "]"
}

// Secret is a text that is never shown.
type Secret struct {
	text string
	from string // where it was read from, env:NAME or file:PATH; else ""
}

// Text is the secret itself.
func (s Secret) Text() string { return s.text }

// String is what may be shown.
func (s Secret) String() string {
	if s.from == "" && s.text != "" {
		return "(hidden)"
	}
	return s.from
}

// Log is about the server's log on standard error.
type Log struct {
	Level  slog.Level    `key:"level" default:"info" live:"true" choices:"debug,info,warn,error" doc:"least level that is logged"`
	Format string        `key:"format" default:"text" choices:"text,json" doc:"format of the log lines"`
	Slow   time.Duration `key:"slow" default:"1s" live:"true" doc:"operations of the store that take longer are logged, 0s for none"`
}

// Mode says where sessions are kept, in the words of web.config.
type Mode string

const (
	ModeStateServer Mode = "StateServer" // in this process's memory
	ModeSQLServer   Mode = "SQLServer"   // in a SQL database
)

// setting is what Config's tags say about one key.
type setting struct {
	key, flag, env, def, doc string
	choices                  []string
	live                     bool
	index                    []int // of the field in Config
}

// settings are all keys in the order of Config.
var settings = listSettings(reflect.TypeFor[Config](), "", nil)

func listSettings(t reflect.Type, prefix string, index []int) []setting {
	var list []setting
	for i := range t.NumField() {
		f := t.Field(i)
		key, ok := f.Tag.Lookup("key")
		if !ok {
			continue
		}
		key = prefix + key
		at := append(index[:len(index):len(index)], i)
		def, leaf := f.Tag.Lookup("default")
		if !leaf {
			list = append(list, listSettings(f.Type, key+".", at)...)
			continue
		}
		s := setting{
			key: key, flag: kebab(key), env: envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_")),
			def: def, doc: f.Tag.Get("doc"), live: f.Tag.Get("live") == "true", index: at,
		}
		if c := f.Tag.Get("choices"); c != "" {
			s.choices = strings.Split(c, ",")
		}
		list = append(list, s)
	}
	return list
}

// kebab turns limits.requestLine into limits-request-line.
func kebab(key string) string {
	var b strings.Builder
	for _, r := range key {
		switch {
		case r == '.':
			b.WriteByte('-')
		case 'A' <= r && r <= 'Z':
			b.WriteByte('-')
			b.WriteRune(r + 'a' - 'A')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func (s setting) of(c *Config) reflect.Value {
	return reflect.ValueOf(c).Elem().FieldByIndex(s.index)
}

// IsDefault reports whether nobody has set the setting.
func (c *Config) IsDefault(key string) bool { return c.sources[key] == "" }

// Setting is one setting in force, for display.
type Setting struct {
	Key    string
	Value  string // as it would be written in the file; passwords are hidden
	Source string // where the value was found, "" for a default
}

// Settings returns all settings in force in the order of the example file.
func (c *Config) Settings() []Setting {
	list := make([]Setting, len(settings))
	for i, s := range settings {
		list[i] = Setting{Key: s.key, Value: display(s.of(c)), Source: c.sources[s.key]}
	}
	return list
}

func display(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case []string:
		return "[" + strings.Join(x, ", ") + "]"
	case []netip.Prefix:
		texts := make([]string, len(x))
		for i, p := range x {
			texts[i] = p.String()
		}
		return "[" + strings.Join(texts, ", ") + "]"
	case slog.Level:
		return strings.ToLower(x.String())
	case time.Duration:
		return formatDuration(x)
	default:
		if text := fmt.Sprint(x); text != "" {
			return text
		}
		return `""`
	}
}

// formatDuration writes 5m where Duration.String writes 5m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Reload returns the settings to go on with when next has been read while the
// server runs on c: next's for those that can change while it runs, c's for the
// others. applied and restart are the keys that differ, of the one kind and of the
// other.
//
// What decides on which addresses the server listens and how it talks (listen, statusLine, aspNetVersion,
// admin.listen, tds.listen, tls.listen, log.format), and memory.maxBytes, needs a restart; the rest can change. Where mode or
// sqlConnectionString does, the sessions move.
func (c *Config) Reload(next *Config) (merged *Config, applied, restart []string) {
	m := *next
	for _, s := range settings {
		if reflect.DeepEqual(s.of(c).Interface(), s.of(next).Interface()) {
			continue
		}
		if s.live {
			applied = append(applied, s.key)
		} else {
			restart = append(restart, s.key)
			s.of(&m).Set(s.of(c))
		}
	}
	return &m, applied, restart
}
