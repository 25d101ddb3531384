package main

import (
	"os"
	"regexp"
	"testing"
)

var patched = regexp.MustCompile(`(?m)^--- a/(.+)$`)

// Every fault can be planted in the code as it is.
func TestPatchesApply(t *testing.T) {
	mutants, err := read("../testdata/mutants", "")
	if err != nil || len(mutants) == 0 {
		t.Fatalf("%d mutants: %v", len(mutants), err)
	}
	for _, m := range mutants {
		for _, file := range patched.FindAllSubmatch(m.patch, -1) {
			os.Stat("../../" + string(file[1])) // so that go test runs this again when the file has changed
		}
		if err := m.apply("../..", "--check"); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
