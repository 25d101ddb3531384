package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// mustLoad loads a YAML text as if it were the file aspstate.yaml in the
// working directory.
func mustLoad(t *testing.T, text string, environ []string, args ...string) *Config {
	t.Helper()
	c, err := loadText(t, text, environ, args...)
	if err != nil {
		t.Fatalf("unexpected faults:\n%v", err)
	}
	return c
}

func loadText(t *testing.T, text string, environ []string, args ...string) (*Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return load("aspstate.yaml", []byte(text), environ, flags)
}

func value(t *testing.T, c *Config, key string) Setting {
	t.Helper()
	for _, s := range c.Settings() {
		if s.Key == key {
			return s
		}
	}
	t.Fatalf("no setting %s", key)
	return Setting{}
}

func TestExampleHoldsEveryDefault(t *testing.T) {
	defaults, err := Load("", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	example, err := Load("example.yaml", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range defaults.Settings() {
		got := example.Settings()[i]
		if got.Value != want.Value {
			t.Errorf("%s is %s in the example, its default is %s", want.Key, got.Value, want.Value)
		}
		if !strings.HasPrefix(got.Source, "example.yaml line") {
			t.Errorf("%s is missing in the example", want.Key)
		}
	}
	if len(example.Warnings) > 0 {
		t.Errorf("the example causes warnings: %q", example.Warnings)
	}
	// A value can equal the default and still be written another way than in the
	// settings' own tags, which is what --help shows.
	var doc map[string]any
	data, err := os.ReadFile("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, s := range settings {
		var raw any = doc
		for part := range strings.SplitSeq(s.key, ".") {
			raw = raw.(map[string]any)[part]
		}
		if text, ok := scalar(raw); ok && text != s.def {
			t.Errorf("%s is written %s in the example and %s in the flags' help", s.key, text, s.def)
		}
	}
}

// samples holds a value other than the default for each setting, written as in
// the environment, and what it is in force.
var samples = map[string][2]string{
	"mode":                  {"stateserver", "StateServer"},
	"sqlConnectionString":   {"sqlite:/tmp/other.db", "sqlite:/tmp/other.db"},
	"autoMigrate":           {"true", "true"},
	"listen":                {"127.0.0.1:1, [::1]:2", "[127.0.0.1:1, [::1]:2]"},
	"allow":                 {"10.0.0.0/8,192.168.1.7, fd00::/8", "[10.0.0.0/8, 192.168.1.7/32, fd00::/8]"},
	"proxyProtocol":         {"10.9.0.1, fd00:9::/64", "[10.9.0.1/32, fd00:9::/64]"},
	"requestBudget":         {"9s", "9s"},
	"takeOver":              {"tcpip=old:42425", "old:42425"},
	"memory.stateFile":      {"/var/lib/aspstate/sessions", "/var/lib/aspstate/sessions"},
	"applications":          {"shop=/LM/W3SVC/1/ROOT, /LM/W3SVC/7/ROOT;b=/b", "[shop=/LM/W3SVC/1/ROOT,/LM/W3SVC/7/ROOT; b=/b]"},
	"statusLine":            {"http", "http"},
	"aspNetVersion":         {"2.0.50727", "2.0.50727"},
	"limits.requestLine":    {"4096", "4KiB"},
	"limits.headers":        {"32KiB", "32KiB"},
	"limits.body":           {"1MiB", "1MiB"},
	"limits.bodiesInFlight": {"2 GiB", "2GiB"},
	"limits.connections":    {"7", "7"},
	"limits.idle":           {"1h", "1h"},
	"lockWait":              {"250ms", "250ms"},
	"memory.maxBytes":       {"1tib", "1TiB"},
	"sweep.interval":        {"90s", "1m30s"},
	"sweep.batch":           {"50", "50"},
	"admin.listen":          {"Off", "Off"},
	"admin.token":           {"file:testdata/token", "file:testdata/token"},
	"admin.certificate":     {"/etc/aspstate/tls.crt", "/etc/aspstate/tls.crt"},
	"admin.key":             {"/etc/aspstate/tls.key", "/etc/aspstate/tls.key"},
	"admin.pprof":           {"true", "true"},
	"tls.listen":            {"127.0.0.1:2", "127.0.0.1:2"},
	"tls.certificate":       {"/etc/aspstate/tls.crt", "/etc/aspstate/tls.crt"},
	"tls.key":               {"/etc/aspstate/tls.key", "/etc/aspstate/tls.key"},
	"tls.clients":           {"/etc/aspstate/clients.crt", "/etc/aspstate/clients.crt"},
	"tds.listen":            {"127.0.0.1:1", "127.0.0.1:1"},
	"tds.databases":         {"ASPState, Shop", "[ASPState, Shop]"},
	"tds.users":             {"web:" + sampleHash + ",batch:" + sampleHash, "[web, batch]"},
	"tds.encryption":        {"Required", "required"},
	"tds.oldTLS":            {"true", "true"},
	"tds.certificate":       {"/etc/aspstate/tls.crt", "/etc/aspstate/tls.crt"},
	"tds.key":               {"/etc/aspstate/tls.key", "/etc/aspstate/tls.key"},
	"log.slow":              {"2s", "2s"},
	"log.level":             {"debug", "debug"},
	"log.format":            {"json", "json"},

	"quotas.item":                  {"1MiB", "1MiB"},
	"quotas.sessions":              {"100", "100"},
	"quotas.applications":          {"/A = item:1MiB, sessions:5; b=sessions:7", "[/A=item:1MiB,sessions:5; b=item:0,sessions:7]"},
	"encryption.keys":              {"file:testdata/key", "[file:testdata/key]"},
	"encryption.seal":              {"false", "false"},
	"encryption.acceptUnencrypted": {"true", "true"},
}

func TestEverySettingFromEverySource(t *testing.T) {
	for _, s := range settings {
		sample, ok := samples[s.key]
		if !ok {
			t.Errorf("no sample for %s: add one", s.key)
			continue
		}
		text, want := sample[0], sample[1]
		yamlText := s.key + `: "` + text + `"`
		if group, key, nested := strings.Cut(s.key, "."); nested {
			yamlText = group + ": {" + key + `: "` + text + `"}`
		}
		if got := value(t, mustLoad(t, yamlText, nil), s.key); got.Value != want || got.Source != "aspstate.yaml line 1" {
			t.Errorf("file: %s = %+v, want %s", s.key, got, want)
		}
		env := "ASPSTATE_" + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
		if got := value(t, mustLoad(t, "", []string{env + "=" + text}), s.key); got.Value != want || got.Source != env {
			t.Errorf("environment: %s = %+v, want %s", s.key, got, want)
		}
		if got := value(t, mustLoad(t, "", nil, "--"+s.flag+"="+text), s.key); got.Value != want || got.Source != "--"+s.flag {
			t.Errorf("flag: %s = %+v, want %s", s.key, got, want)
		}
		if got := value(t, mustLoad(t, "", nil), s.key); got.Value == want || got.Source != "" {
			t.Errorf("default: %s = %+v, which is no other value than the sample", s.key, got)
		}
	}
}

func TestNamesOfFlagsAndVariables(t *testing.T) {
	want := map[string][2]string{
		"sqlConnectionString":   {"sql-connection-string", "ASPSTATE_SQLCONNECTIONSTRING"},
		"aspNetVersion":         {"asp-net-version", "ASPSTATE_ASPNETVERSION"},
		"limits.bodiesInFlight": {"limits-bodies-in-flight", "ASPSTATE_LIMITS_BODIESINFLIGHT"},
	}
	for _, s := range settings {
		if w, ok := want[s.key]; ok {
			if s.flag != w[0] || s.env != w[1] {
				t.Errorf("%s: flag %s, variable %s", s.key, s.flag, s.env)
			}
			delete(want, s.key)
		}
	}
	if len(want) > 0 {
		t.Errorf("settings gone: %v", want)
	}
}

func TestPrecedence(t *testing.T) {
	file := "limits: {body: 1MiB, headers: 2KiB}\nlisten: [127.0.0.1:1, 127.0.0.1:2]"
	env := []string{"ASPSTATE_LIMITS_BODY=2MiB", "ASPSTATE_LISTEN=127.0.0.1:3", "ASPSTATE_LIMITS_HEADERS=", "ASPSTATE_LOG_LEVEL=warn"}
	c := mustLoad(t, file, env, "--limits-body=3MiB", "--listen=127.0.0.1:4", "--listen", "127.0.0.1:5", "--auto-migrate")
	for key, want := range map[string]Setting{
		"limits.body":    {Value: "3MiB", Source: "--limits-body"},
		"limits.headers": {Value: "2KiB", Source: "aspstate.yaml line 1"}, // an empty variable is none
		"listen":         {Value: "[127.0.0.1:4, 127.0.0.1:5]", Source: "--listen"},
		"log.level":      {Value: "warn", Source: "ASPSTATE_LOG_LEVEL"},
		"autoMigrate":    {Value: "true", Source: "--auto-migrate"},
		"sweep.batch":    {Value: "1000"},
	} {
		want.Key = key
		if got := value(t, c, key); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if c := mustLoad(t, file, env); c.Limits.Body != 2<<20 || !slices.Equal(c.Listen, []string{"127.0.0.1:3"}) {
		t.Errorf("without flags: %v", c.Settings())
	}
}

func TestFileForms(t *testing.T) {
	for name, text := range map[string]string{
		"other case":      "LISTEN: 127.0.0.1:9\nLimits: {BODY: 1MiB}",
		"byte order mark": "\xef\xbb\xbflisten: 127.0.0.1:9\nlimits: {body: 1048576}",
		"anchors":         "listen: &a 127.0.0.1:9\nlimits: &l {body: 1MiB}",
		"empty values":    "listen: 127.0.0.1:9\nallow:\nmemory:\nlimits: {body: 1MiB, idle: }",
		"comment first":   "# hello\n---\nlisten: 127.0.0.1:9\nlimits: {body: 1MiB}\n",
	} {
		c := mustLoad(t, text, nil)
		if !slices.Equal(c.Listen, []string{"127.0.0.1:9"}) || c.Limits.Body != 1<<20 || c.Limits.Connections != 10000 {
			t.Errorf("%s: %v", name, c.Settings())
		}
	}
}

func TestUnreadableFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := Load(missing, nil, nil); err == nil || !strings.Contains(err.Error(), "none.yaml") {
		t.Errorf("a missing file gives %v", err)
	}
	for _, text := range []string{"mode: [", "just text", "- a\n- b", "mode: &a [*a]"} {
		if _, err := loadText(t, text, nil); err == nil || !strings.Contains(err.Error(), "aspstate.yaml: cannot be read as YAML") {
			t.Errorf("%q gives %v", text, err)
		}
	}
}

func TestVariablesThatAreNoSettings(t *testing.T) {
	c := mustLoad(t, "", []string{"ASPSTATE_LISTN=x", "ASPSTATE_PORT=tcp://10.0.0.1:42424", "PATH=/bin", "=C:=C:\\", "aspstate_log_level=error"})
	want := []string{"no setting of this version, so without effect: ASPSTATE_LISTN, ASPSTATE_PORT"}
	if !slices.Equal(c.Warnings, want) || value(t, c, "log.level").Value != "error" {
		t.Errorf("warnings %q, log.level %v", c.Warnings, c.Log.Level)
	}
	c = mustLoad(t, "sqlConnectionString: env:ASPSTATE_DB", []string{"ASPSTATE_DB=sqlite:/tmp/x.db"})
	if len(c.Warnings) > 0 {
		t.Errorf("the variable of the connection string causes %q", c.Warnings)
	}
}

func TestReload(t *testing.T) {
	old := mustLoad(t, "listen: 0.0.0.0:42424\nallow: [10.0.0.0/8]\nlog: {level: info}", nil)
	next := mustLoad(t, "listen: 127.0.0.1:42424\nallow: []\nmode: StateServer\nlog: {level: debug, format: json}\nlimits: {body: 1MiB}", nil)
	merged, applied, restart := old.Reload(next)
	if want := []string{"mode", "allow", "limits.body", "log.level"}; !slices.Equal(applied, want) {
		t.Errorf("applied %q, want %q", applied, want)
	}
	if want := []string{"listen", "log.format"}; !slices.Equal(restart, want) {
		t.Errorf("restart %q, want %q", restart, want)
	}
	if merged.Listen[0] != "0.0.0.0:42424" || merged.Log.Format != "text" {
		t.Errorf("a setting changed that cannot: %v", merged.Settings())
	}
	if merged.Mode != ModeStateServer || len(merged.Allow) != 0 || merged.Limits.Body != 1<<20 || merged.Log.Level != -4 {
		t.Errorf("a setting did not change that can: %v", merged.Settings())
	}
	if next.Mode != ModeStateServer || old.Limits.Body != 64<<20 {
		t.Error("Reload changed its operands")
	}
	if _, applied, restart := merged.Reload(merged); len(applied)+len(restart) > 0 {
		t.Errorf("no change is reported as %q, %q", applied, restart)
	}
}

// A setting is live or it is not: both lists together are all keys.
func TestLiveSettings(t *testing.T) {
	var fixed []string
	for _, s := range settings {
		if !s.live {
			fixed = append(fixed, s.key)
		}
	}
	want := []string{"listen", "statusLine", "aspNetVersion", "memory.maxBytes", "admin.listen", "tds.listen", "tls.listen", "log.format"}
	if !slices.Equal(fixed, want) {
		t.Errorf("settings that need a restart: %q, want %q", fixed, want)
	}
}

func TestFlagHelp(t *testing.T) {
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(flags, "limits.body", "autoMigrate", "listen")
	help := flags.FlagUsages()
	for _, want := range []string{"--limits-body size", "(default 64MiB)", "--auto-migrate ", "--listen list"} {
		if !strings.Contains(help, want) {
			t.Errorf("no %q in\n%s", want, help)
		}
	}
	if strings.Contains(help, "--mode") {
		t.Errorf("a flag too many:\n%s", help)
	}
	for i := range reflect.TypeFor[Config]().NumField() {
		if f := reflect.TypeFor[Config]().Field(i); f.Tag.Get("default") != "" && f.Tag.Get("doc") == "" {
			t.Errorf("%s has no doc", f.Name)
		}
	}
}
