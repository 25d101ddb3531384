package main

import "testing"

// Every fault can be planted in the code as it is.
func TestPatchesApply(t *testing.T) {
	mutants, err := read("../testdata/mutants", "")
	if err != nil || len(mutants) == 0 {
		t.Fatalf("%d mutants: %v", len(mutants), err)
	}
	for _, m := range mutants {
		if err := m.apply("../..", "--check"); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
