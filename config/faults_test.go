package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// faultsOf takes Load's error apart.
func faultsOf(t *testing.T, err error) []Fault {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%v is no list of faults", err)
	}
	var list []Fault
	for _, e := range joined.Unwrap() {
		f, ok := errors.AsType[Fault](e)
		if !ok {
			t.Fatalf("%v is no Fault", e)
		}
		if f.Key == "" || f.Problem == "" || f.Remedy == "" {
			t.Errorf("incomplete: %#v", f)
		}
		list = append(list, f)
	}
	return list
}

// sampleHash is a password's hash, as aspstate hash-password prints it.
const sampleHash = "pbkdf2-sha256$600000$AHVzLJyhHKoIvTt6EtxUJg$gR5XnLKfHnPNzEWS5VhkQsjXCN/hNExkLUX7OVHcfJQ"

// sampleKey is the key in testdata/key.
const sampleKey = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="

func TestFaults(t *testing.T) {
	const sqlite = "sqlConnectionString: "
	for _, test := range []struct {
		yaml string
		key  string // of the only fault
		says string
	}{
		{"lisen: 127.0.0.1:1", "lisen", "unknown key; the keys here are mode, sqlConnectionString"},
		{"limits: {bdy: 1}", "limits.bdy", "the keys here are requestLine, headers"},
		{"requestLine: 8KiB", "requestLine", "did you mean limits.requestLine?"},
		{"limits.body: 8KiB", "limits.body", "unknown key"},
		{"takeOver: 'tcpip=127.0.0.1'", "takeOver", "this server listens on 127.0.0.1:42424 itself"},
		{"takeOver: 'tcpip=:1'", "takeOver", "not the address of a state server"},
		{"applications: {a: b}", "applications", "not a list"},
		{"applications: [a]", "applications", "something other than applications"},
		{"applications: [{name: a, id: b}]", "applications", `no "id"`},
		{"applications: [{ids: [a]}]", "applications", "has no name"},
		{"applications: [{name: a}]", "applications", "a has no ids"},
		{"applications: [{name: a/b, ids: [a]}]", "applications", "cannot be a name"},
		{"applications: [{name: a, ids: [/x]}, {name: b, ids: [/X]}]", "applications", "/X is there twice, in a and b"},
		{"applications: [{name: a, ids: [/x]}, {name: a, ids: [/y]}]", "applications", "is there twice"},
		{"encryption: {keys: [" + sampleKey + "]}", "encryption.keys", "key 1 stands in the settings"},
		{"encryption: {keys: [env:NO_SUCH]}", "encryption.keys", "NO_SUCH is not set; set it to the key"},
		{"encryption: {keys: file:/no/such/file}", "encryption.keys", "/no/such/file"},
		{"encryption: {keys: [file:testdata/token]}", "encryption.keys", "file:testdata/token has 18 bytes, not 32; make one with: openssl rand -base64 32"},
		{"encryption: {keys: [file:faults_test.go]}", "encryption.keys", "file:faults_test.go is not base64"},
		{"encryption: {keys: [file:testdata/key, 'file:./testdata/key']}", "encryption.keys", "the same key as another one"},
		{"encryption: {keys: {a: b}}", "encryption.keys", "neither text nor a list"},
		{"quotas: {item: 1GiB}", "quotas.item", "write at most 512MiB"},
		{"quotas: {sessions: -1}", "quotas.sessions", "write 0 for any number"},
		{"quotas: {applications: {a: b}}", "quotas.applications", "not a list"},
		{"quotas: {applications: [a]}", "quotas.applications", "something other than quotas"},
		{"quotas: {applications: [{sessions: 1}]}", "quotas.applications", "has no name"},
		{"quotas: {applications: [{name: a, size: 1}]}", "quotas.applications", `no "size"`},
		{"quotas: {applications: [{name: a, item: [1]}]}", "quotas.applications", `"item" of a quota is not one value`},
		{"quotas: {applications: [{name: a, item: 1MB}]}", "quotas.applications", `"1MB" is no value for item`},
		{"quotas: {applications: [{name: a, sessions: -5}]}", "quotas.applications", "-5 is no number of sessions"},
		{"applications: [{name: s, ids: [/x]}]\nquotas: {applications: [{name: /X, sessions: 1}]}", "quotas.applications", "write a quota for s"},
		{"quotas: {applications: [{name: /a, sessions: 1}, {name: /A, sessions: 1}]}", "quotas.applications", `"/A" is there twice`},
		{"tds: {listen: 127.0.0.1, users: [a:" + sampleHash + "]}", "tds.listen", "is not host:port"},
		{"tds: {listen: '*:1433', users: [a:" + sampleHash + "]}", "tds.listen", "is not an address"},
		{"tds: {listen: 127.0.0.1:42424, users: [a:" + sampleHash + "]}", "tds.listen", "another listener's address"},
		{"tds: {listen: 127.0.0.1:42480, users: [a:" + sampleHash + "]}", "tds.listen", "another listener's address"},
		{"tls: {listen: 0.0.0.0:42425, certificate: x}", "tls.listen", "allow is empty"},
		{"tls: {listen: 127.0.0.1, certificate: x}", "tls.listen", "is not host:port"},
		{"tls: {listen: 127.0.0.1:42424, certificate: x}", "tls.listen", "another listener's address"},
		{"tls: {listen: 127.0.0.1:1, certificate: x}\ntds: {listen: 127.0.0.1:1, users: [a:" + sampleHash + "]}", "tls.listen", "another listener's address"},
		{"tds: {listen: 0.0.0.0:1433, users: [a:" + sampleHash + "]}", "tds.listen", "allow is empty"},
		{"tds: {listen: 127.0.0.1:1433, databases: [], users: [a:" + sampleHash + "]}", "tds.databases", "no name for the database"},
		{"tds: {users: [a:" + sampleHash + ", A:" + sampleHash + "]}", "tds.users", `"A" is there twice`},
		{"tds: {users: ['a:secret']}", "tds.users", `"a" has no password hash`},
		{"tds: {users: [':" + sampleHash + "']}", "tds.users", "no name of 1 to 128"},
		{"sweep: &s {batch: 5}\nlimits: *s", "limits.batch", "unknown key"},
		{"\"a\\x1b[31m\": 1", `"a\x1b[31m"`, "unknown key"},
		{"limits: 5", "limits", "a group of settings"},
		{"mode: {a: b}", "mode", "one value"},
		{"mode: [StateServer]", "mode", "one value"},
		{"mode: SQLServer\nMode: StateServer", "Mode", "there twice"},
		{"mode: SQLServer\n---\nmode: StateServer", "aspstate.yaml", "more than one YAML document"},
		{"? [a]\n: b", "", "cannot be read as YAML"},
		{"mode: InProc", "mode", `"InProc" is not one of its values; write SQLServer or StateServer`},
		{"statusLine: full", "statusLine", "write bare or http"},
		{"log: {level: verbose}", "log.level", "write debug or info or warn or error"},
		{"autoMigrate: maybe", "autoMigrate", "write true or false"},
		{"aspNetVersion: 4.0", "aspNetVersion", "three numbers"},
		{"aspNetVersion: 1.1.4322", "aspNetVersion", "below version 2"},
		{"aspNetVersion: 4.0.30319.1", "aspNetVersion", "three numbers"},

		{"requestBudget: 8", "requestBudget", "a number and its unit"},
		{"requestBudget: 1s", "requestBudget", "out of range; write between 2s and 1m50s"},
		{"requestBudget: 2m", "requestBudget", "out of range"},
		{"lockWait: -1s", "lockWait", "negative"},
		{"requestBudget: 2s", "lockWait", "1s leaves less than 2s of requestBudget (2s)"},
		{"limits: {requestLine: 1KiB}", "limits.requestLine", "write at least 2KiB"},
		{"limits: {requestLine: 2MiB}", "limits.requestLine", "write at most 1MiB"},
		{"limits: {headers: 0}", "limits.headers", "write at least 1KiB"},
		{"limits: {body: 0}", "limits.body", "write at least 1KiB"},
		{"limits: {body: 1GiB}", "limits.body", "write at most 512MiB"},
		{"limits: {body: -5}", "limits.body", "cannot be read"},
		{"limits: {body: 64MB}", "limits.body", "KiB, MiB"},
		{"limits: {body: 64MiB, bodiesInFlight: 32MiB}", "limits.bodiesInFlight", "less than limits.body (64MiB)"},
		{"limits: {connections: 0}", "limits.connections", "between 1 and"},
		{"limits: {connections: many}", "limits.connections", "a whole number, such as 10000"},
		{"limits: {idle: 0s}", "limits.idle", "write between 1s and 24h"},
		{"sweep: {interval: 0s}", "sweep.interval", "write between 1s"},
		{"sweep: {batch: 0}", "sweep.batch", "write between 1 and"},

		{"admin: {listen: 127.0.0.1}", "admin.listen", "not host:port"},
		{"admin: {listen: '127.0.0.1:x'}", "admin.listen", "not host:port"},
		{"admin: {listen: '*:1'}", "admin.listen", "0.0.0.0:1"},
		{"admin: {listen: '127.0.0.1:42424'}", "admin.listen", "also in listen"},
		{"admin: {listen: '0.0.0.0:42480'}", "admin.listen", "admin.token is empty"},
		{"admin: {listen: ':42480'}", "admin.listen", "admin.token is empty"},
		{"admin: {token: abc}", "admin.token", "shorter than 16"},
		{"admin: {token: 'abcdefgh ijklmnopq'}", "admin.token", "HTTP headers"},
		{"admin: {token: env:NO_SUCH}", "admin.token", "NO_SUCH is not set; set it to the token"},
		{"admin: {listen: '0.0.0.0:1', token: env:NO_SUCH}", "admin.token", "NO_SUCH is not set"},
		{"admin: {token: file:/no/such/file}", "admin.token", "/no/such/file"},
		{"log: {slow: -1s}", "log.slow", "negative"},

		{"listen: []", "listen", "no address"},
		{"listen: 127.0.0.1", "listen", "not host:port"},
		{"listen: 127.0.0.1:http", "listen", "no valid port"},
		{"listen: 127.0.0.1:65536", "listen", "no valid port"},
		{"listen: [127.0.0.1:1, 127.0.0.1:1]", "listen", "there twice"},
		{"listen: [[127.0.0.1:1]]", "listen", "something other than text"},
		{"listen: {a: b}", "listen", "neither text nor a list"},
		{"listen: '*:42424'", "listen", "0.0.0.0:42424"},
		{"listen: 0.0.0.0:42424", "listen", "can run code on them; list your web servers in allow"},
		{"listen: ':42424'", "listen", "can run code on them"},
		{"listen: '[::]:42424'", "listen", "can run code on them"},
		{"listen: web1:42424", "listen", "can run code on them"},
		{"listen: [127.0.0.1:42424, 10.0.0.1:42424]", "listen", "can reach 10.0.0.1:42424 and allow is empty"},
		{"listen: 10.0.0.1:42424\nallow: [web1]", "allow", "neither an address nor a CIDR range"},
		{"allow: 10.0.0.5/8", "allow", "write 10.0.0.5 for the address or 10.0.0.0/8 for the range"},
		{"proxyProtocol: lb1\nallow: 10.1.2.3", "proxyProtocol", "neither an address nor a CIDR range"},
		{"allow: fe80::1%eth0", "allow", "neither an address"},

		{sqlite + "Server", "sqlConnectionString", "no form that aspstate knows"},
		{sqlite + "''", "sqlConnectionString", "no form"},
		{sqlite + "'sqlite:'", "sqlConnectionString", "missing"},
		{sqlite + "'sqlite::memory:'", "sqlConnectionString", "StateServer"},
		{sqlite + "sqlite://x.db", "sqlConnectionString", "leave out the //"},
		{sqlite + "sqlite:x.db?_pragma=foo", "sqlConnectionString", "must not contain ?"},
		{sqlite + "env:NO_SUCH", "sqlConnectionString", "NO_SUCH is not set"},
		{sqlite + "file:/no/such/file", "sqlConnectionString", "/no/such/file"},
	} {
		_, err := loadText(t, test.yaml, nil)
		faults := faultsOf(t, err)
		if len(faults) != 1 || !strings.Contains(faults[0].Error(), test.says) || test.key != "" && faults[0].Key != test.key {
			t.Errorf("%s\ngives: %v\nwant one fault of %s: … %s", test.yaml, err, test.key, test.says)
		}
	}
}

func TestAllowed(t *testing.T) {
	for _, text := range []string{
		"listen: localhost:42424",
		"listen: ['127.9.9.9:0', '127.9.9.9:0', '[::1]:42424', '[::ffff:127.0.0.1]:1']",
		"listen: 0.0.0.0:42424\nallow: 10.1.2.3",
		"listen: ':42424'\nallow: ['::ffff:10.1.2.0/120']",
		"mode: StateServer\nsqlConnectionString: env:NO_SUCH",
		"admin: {listen: off, token: env:NO_SUCH}",
		"admin: {listen: '', token: abc}",
		"admin: {listen: 'localhost:1', token: ''}",
		"admin: {listen: '10.0.0.1:1', token: abcdefghijklmnop, certificate: x.pem}",
		"mode: StateServer\nsqlConnectionString: postgres://u:p@db/x",
		"mode: StateServer\nsqlConnectionString: nonsense",
		"limits: {body: 1MiB, bodiesInFlight: 1MiB, requestLine: 2KiB}",
		"sqlConnectionString: postgres://u:p@db/x",
	} {
		if c := mustLoad(t, text, nil); len(c.Warnings) > 0 {
			t.Errorf("%s\ncauses %q", text, c.Warnings)
		}
	}
	c := mustLoad(t, "allow: ['::ffff:10.1.2.0/120', '::ffff:10.1.2.3']", nil)
	if got := value(t, c, "allow").Value; got != "[10.1.2.0/24, 10.1.2.3/32]" {
		t.Errorf("IPv4 in IPv6 is %s", got)
	}
}

func TestWarnings(t *testing.T) {
	for text, says := range map[string]string{
		"requestBudget: 10s": "stateNetworkTimeout",
		"admin: {listen: '10.0.0.1:1', token: abcdefghijklmnop}": "without TLS",
		"admin: {key: x.pem}":                               "without admin.certificate",
		"allow: 0.0.0.0/0":                                  "0.0.0.0/0, which is everybody",
		"memory: {maxBytes: 1GiB}":                          "no effect in mode SQLServer",
		"mode: StateServer\nmemory: {maxBytes: 1MiB}":       "less than limits.body",
		"proxyProtocol: 10.9.0.1":                           "the clients of the proxies are refused",
		"allow: 10.1.2.3\nproxyProtocol: '::/0'":            "can say that he is a web server",
		"listen: 0.0.0.0:1\nallow: ['::/0', '10.0.0.0/30']": "::/0, which is everybody",

		"encryption: {acceptUnencrypted: true}":                            "no effect without encryption.keys",
		"encryption: {keys: [file:testdata/key], seal: false}":             "encryption.seal is false",
		"encryption: {keys: [file:testdata/key], acceptUnencrypted: true}": "can plant sessions",
	} {
		if c := mustLoad(t, text, nil); len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], says) {
			t.Errorf("%s\ncauses %q, want %s", text, c.Warnings, says)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := loadText(t, "lissen: x\nmode: InProc\nlimits:\n  body: huge\n", []string{"ASPSTATE_SWEEP_BATCH=0"})
	var got []string
	for _, f := range faultsOf(t, err) {
		got = append(got, f.Key+" | "+f.Source)
	}
	if want := []string{"lissen | aspstate.yaml line 1", "mode | aspstate.yaml line 2", "limits.body | aspstate.yaml line 4", "sweep.batch | ASPSTATE_SWEEP_BATCH"}; !slices.Equal(got, want) {
		t.Errorf("faults %q, want %q", got, want)
	}
	_, err = loadText(t, "requestBudget: 4s\nlockWait: 3s", nil)
	if faults := faultsOf(t, err); len(faults) != 1 || !strings.Contains(faults[0].Error(), "3s leaves less than 2s of requestBudget (4s)") {
		t.Errorf("a lock wait as long as the budget gives %v", err)
	}
	_, err = loadText(t, "", nil, "--limits-idle=never", "--sweep-batch=x")
	if want := `limits.idle (--limits-idle): "never" cannot be read; write a number and its unit, such as 500ms, 10s or 5m` + "\n" +
		`sweep.batch (--sweep-batch): "x" cannot be read; write a whole number, such as 1000`; err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestPasswordOnCommandLine(t *testing.T) {
	const says = "file:PATH or env:NAME"
	for _, text := range []string{
		"postgres://user:s3cret@db/x", "postgres://user:s3/cret@db/x", "postgres://db/x?password=s3cret",
		"sqlserver://sa:s3cret@db?database=ASPState", "Data Source=db;User ID=sa;Password=s3cret", `server=db;PWD="s3c;ret"`,
		"host=db password=s3cret", "Server='db;Pwd=s3cret",
	} {
		_, err := loadText(t, "", nil, "--sql-connection-string", text)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3c") {
			t.Errorf("%s gives %v", text, err)
		}
		// Elsewhere it is allowed.
		_, err = loadText(t, "", []string{"ASPSTATE_SQLCONNECTIONSTRING=" + text})
		if err != nil && strings.Contains(err.Error(), says) {
			t.Errorf("in the environment %s gives %v", text, err)
		}
	}
	for _, text := range []string{"postgres://user@db/x", "Data Source=db;Integrated Security=SSPI", "sqlite:x.db", "env:DB_PASSWORD"} {
		if _, err := loadText(t, "mode: StateServer", nil, "--sql-connection-string", text); err != nil {
			t.Errorf("%s gives %v", text, err)
		}
	}
}

func TestToken(t *testing.T) {
	const token = "5dFkX0b7PqYw2nLr9sVt3uZa"
	_, err := loadText(t, "", nil, "--admin-token="+token)
	if err == nil || !strings.Contains(err.Error(), "command line") || strings.Contains(err.Error(), token) {
		t.Errorf("on the command line: %v", err)
	}
	for text, shown := range map[string]string{"admin: {token: " + token + "}": "(hidden)", "admin: {token: env:TOKEN}": "env:TOKEN", "admin: {token: file:testdata/token}": "file:testdata/token"} {
		c := mustLoad(t, text, []string{"TOKEN= " + token + "\n"})
		if got := c.Admin.Token.Text(); got != token {
			t.Errorf("%s gives %q", text, got)
		}
		if got := value(t, c, "admin.token").Value; got != shown {
			t.Errorf("%s is shown as %q", text, got)
		}
	}
}

func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "aspstate.yaml")
	load := func(text, file string, environ ...string) string {
		t.Helper()
		if file != "" {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Load(file, environ, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.SQLConnectionString.Path
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(" sqlite:c.db\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("admin: {certificate: tls.pem}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(file, nil, nil); err != nil || c.Admin.Certificate != filepath.Join(dir, "tls.pem") {
		t.Errorf("certificate %v, %v", c, err)
	}
	for _, test := range []struct{ got, want string }{
		{load("", ""), filepath.Join(here, "aspstate.db")},
		{load("", file), filepath.Join(dir, "aspstate.db")},
		{load("sqlConnectionString: sqlite:a/../b.db", file), filepath.Join(dir, "b.db")},
		{load("sqlConnectionString: SQLite:/var/x.db", file), filepath.FromSlash("/var/x.db")},
		{load("sqlConnectionString: sqlite:///var/x.db", file), filepath.FromSlash("/var/x.db")},
		{load("sqlConnectionString: file:secret", file), filepath.Join(dir, "c.db")},
		{load("sqlConnectionString: env:DB", file, "DB=sqlite:d.db"), filepath.Join(dir, "d.db")},
	} {
		if test.got != test.want {
			t.Errorf("path %s, want %s", test.got, test.want)
		}
	}
}

func TestEncryptionKeys(t *testing.T) {
	environ := []string{"ASPSTATE_OLD= " + strings.Repeat("ab", 21) + "Y=\n"}
	c := mustLoad(t, "encryption: {keys: [file:testdata/key, env:ASPSTATE_OLD]}", environ)
	if got := string(c.Encryption.Keys[0].Secret()); got != strings.Repeat("k", 32) {
		t.Errorf("the first key is %q", got)
	}
	if n := len(c.Encryption.Keys[1].Secret()); n != 32 || !c.Encryption.On() || len(c.Warnings) > 0 {
		t.Errorf("the second key has %d bytes; on: %v; warnings %q", n, c.Encryption.On(), c.Warnings)
	}
	// Nothing that may be printed shows a key, one that stands in the wrong place included.
	_, err := loadText(t, "encryption: {keys: ["+sampleKey+"]}", nil, "--encryption-keys="+sampleKey)
	shown := fmt.Sprintf("%v %+v %#v %s %v", c, c.Encryption, c.Encryption.Keys, value(t, c, "encryption.keys").Value, err)
	for _, secret := range []string{"kkkk", "a2tra2", "abab"} {
		if strings.Contains(shown, secret) {
			t.Errorf("%s can be read in %s", secret, shown)
		}
	}
	// The same file with another key in it is a change.
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	var seen []*Config
	for _, secret := range []string{sampleKey, "bGxsbGxsbGxsbGxsbGxsbGxsbGxsbGxsbGxsbGxsbGw="} {
		if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, mustLoad(t, "encryption: {keys: ['file:"+file+"']}", nil))
	}
	if _, applied, _ := seen[0].Reload(seen[1]); !slices.Equal(applied, []string{"encryption.keys"}) {
		t.Errorf("another key in the same file changes %q", applied)
	}
}

// What the quota of an application does not say is that of all.
func TestQuotasInherit(t *testing.T) {
	c := mustLoad(t, "quotas: {item: 2MiB, sessions: 7, applications: [{name: /A, item: 1MiB}, {name: b, sessions: 0}]}", nil)
	want := ApplicationQuotas{{Name: "/A", Item: 1 << 20, Sessions: 7}, {Name: "b", Item: 2 << 20, Sessions: 0}}
	if !slices.Equal(c.Quotas.Applications, want) {
		t.Errorf("quotas %v, want %v", c.Quotas.Applications, want)
	}
}
