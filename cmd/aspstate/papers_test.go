package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every sentence of the papers names tests, and they exist.
func TestPapersNameTheirTests(t *testing.T) {
	root := filepath.Join("..", "..")
	var (
		aTest = regexp.MustCompile("`([a-z]+(?:/[a-z]+)*)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")
		aCase = regexp.MustCompile("`suite: ([^`]+)`")
	)
	sources := map[string]string{}
	source := func(folder, files string) string {
		if text, ok := sources[folder]; ok {
			return text
		}
		names, err := filepath.Glob(filepath.Join(root, folder, files))
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(data)
		}
		sources[folder] = all.String()
		return sources[folder]
	}
	for _, paper := range []string{"durability.md", "threat-model.md"} {
		data, err := os.ReadFile(filepath.Join(root, "docs", paper))
		if err != nil {
			t.Fatal(err)
		}
		sentences := 0
		for line := range strings.Lines(string(data)) {
			tests, cases := aTest.FindAllStringSubmatch(line, -1), aCase.FindAllStringSubmatch(line, -1)
			if strings.HasPrefix(line, "- ") {
				sentences++
				if len(tests)+len(cases) == 0 {
					t.Errorf("%s: no test stands behind %s", paper, line)
				}
			}
			for _, m := range tests {
				if !strings.Contains(source(filepath.FromSlash(m[1]), "*_test.go"), "\nfunc "+m[2]+"(") {
					t.Errorf("%s: there is no %s in %s", paper, m[2], m[1])
				}
			}
			for _, m := range cases {
				if !strings.Contains(source(filepath.Join("backends", "backendtest"), "*.go"), `{"`+m[1]+`", func`) {
					t.Errorf("%s: the suite has no case %q", paper, m[1])
				}
			}
		}
		if sentences < 20 {
			t.Errorf("%s has only %d sentences with tests", paper, sentences)
		}
	}
}
