package config

import (
	"os"
	"strings"
	"testing"
)

// A file that makes the loader panic would keep a server from starting, or
// end a running one on SIGHUP with all sessions of mode StateServer.
func FuzzLoad(f *testing.F) {
	example, err := os.ReadFile("example.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	for _, seed := range []string{
		"", "mode: StateServer", "limits: 5", "limits: {body: [1]}", "listen: [a, [b], {c: d}]", "? [a]\n: b", "a: &a [*a]", "<<: {mode: x}",
		"mode: &m StateServer\nlog: {format: *m}", "limits: &l {body: 1}\nmemory: *l", "1: 2", "~: x", "---\n---\n", "allow: ::/0", "mode: !!binary aGVsbG8=",
		"sqlConnectionString: Data Source=a;pwd='b''c';d", "sqlConnectionString: \"Server=\\\"a\"", "aspNetVersion: 2001-01-01", "listen: 0x1F",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := load("aspstate.yaml", data, nil, nil)
		if (c == nil) == (err == nil) {
			t.Fatalf("settings %v and error %v", c, err)
		}
		if err != nil {
			faultsOf(t, err)
			return
		}
		for _, s := range c.Settings() {
			if s.Value == "" {
				t.Fatalf("%s has no value", s.Key)
			}
		}
	})
}

// Whoever can set a size can set it too large; it must not turn negative.
func FuzzParseSize(f *testing.F) {
	for _, seed := range []string{"0", "64MiB", "8388607TiB", "9223372036854775808", "1 KiB", "-1", "B"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSize(text)
		if err != nil {
			return
		}
		if s < 0 {
			t.Fatalf("%q is %d", text, s)
		}
		if again, err := ParseSize(s.String()); err != nil || again != s {
			t.Fatalf("%q is %d, written %s, read %d, %v", text, s, s, again, err)
		}
	})
}

// Connection strings come from environment variables and secret files.
func FuzzConnectionString(f *testing.F) {
	for _, seed := range []string{"sqlite:/a", "postgres://u:p@h/d", "sqlserver://h", "Server=h;Password=p;", "Data Source='h''i' ; pwd=\"a;b\"", "Server=h;;= ;", "DAtA SourCe=''''"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		hasPassword(text)
		c, err := recognize(text, "/dir")
		if err != nil {
			return
		}
		if c.Backend == "" || c.Text() == "" {
			t.Fatalf("%q gives %#v without an error", text, c)
		}
		if again, err := recognize(c.Text(), "/other"); err != nil || again != c {
			t.Fatalf("%q gives %q, which gives %q, %v", text, c.Text(), again.Text(), err)
		}
	})
}

// A password that slips through here ends up in logs.
func FuzzHidePassword(f *testing.F) {
	f.Add("", "")
	f.Add("/", "@")
	f.Add("?#", ";")
	f.Add("';Server=", "\"")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "s3cretS3cret"
		password := before + secret + after
		for _, text := range []string{
			"postgres://user:" + password + "@host/db",
			"sqlserver://user:" + password + "@host?database=db",
			"Data Source=host;Password='" + strings.ReplaceAll(password, "'", "''") + "'",
			`Password="` + strings.ReplaceAll(password, `"`, `""`) + `";Server=host`,
		} {
			if c, err := recognize(text, "/dir"); err != nil || strings.Contains(c.String(), secret) {
				t.Fatalf("%q is shown as %q, %v", text, c, err)
			}
			if !hasPassword(text) {
				t.Fatalf("no password seen in %q", text)
			}
		}
	})
}
