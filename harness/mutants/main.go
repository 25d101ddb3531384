// Command mutants plants faults in a copy of the source tree, one at a time, and sees that the
// test which each names finds it. Run it in the tree:
//
//	go run ./harness/mutants [pattern]
//
// A fault is a patch in harness/testdata/mutants, whose first lines say what it is and
// what to hand to "go test":
//
//	Fault: the lock's cookie is not incremented
//	Test: ./harness -run TestDirect/memory/impatient
//
// The pattern chooses the patches whose names contain it. The exit code is 0 if every fault was
// found. A patch that does not apply or does not build, and a test that fails without
// any fault, is an error.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	pattern := ""
	if len(os.Args) > 1 {
		pattern = os.Args[1]
	}
	if err := run(pattern); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// mutant is a fault and the test that must find it.
type mutant struct {
	name, fault string
	test        []string // arguments of go test
	patch       []byte
}

func run(pattern string) error {
	root, err := output("", "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	mutants, err := read(filepath.Join(root, "harness", "testdata", "mutants"), pattern)
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "aspstate-mutants-*")
	if err != nil {
		return err
	}
	// PostgreSQL's servers, which the tests start in it, run as another user than root.
	if err := os.Chmod(folder, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	tree := filepath.Join(folder, "tree")
	if err := copyTree(root, tree); err != nil {
		return err
	}

	// A test that is red without a fault proves nothing.
	green := map[string]bool{}
	for _, m := range mutants {
		test := strings.Join(m.test, " ")
		if green[test] {
			continue
		}
		fmt.Printf("without a fault: %s\n", test)
		if out, err := m.isFound(tree); out != nil {
			return fmt.Errorf("go test %s fails without any fault (%v):\n%s", test, err, out)
		}
		green[test] = true
	}

	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nRESULT\tMUTANT\tFAULT\tTEST\tTOOK")
	missed := 0
	for _, m := range mutants {
		begun := time.Now()
		result := "found"
		said, err := m.try(tree)
		if err != nil {
			missed++
			result = "MISSED"
			if !errors.Is(err, errGreen) {
				result = "ERROR"
				fmt.Fprintf(os.Stderr, "%s: %v\n", m.name, err)
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%v\n", result, m.name, m.fault, strings.Join(m.test, " "), time.Since(begun).Round(100*time.Millisecond))
		fmt.Printf("%s: %s %s\n", m.name, result, said)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d mutants were not found", missed, len(mutants))
	}
	fmt.Printf("all %d mutants were found\n", len(mutants))
	return nil
}

// read reads the patches.
func read(folder, pattern string) ([]mutant, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.patch"))
	if err != nil {
		return nil, err
	}
	var mutants []mutant
	for _, path := range paths {
		m := mutant{name: strings.TrimSuffix(filepath.Base(path), ".patch")}
		if !strings.Contains(m.name, pattern) {
			continue
		}
		if m.patch, err = os.ReadFile(path); err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(m.patch)) {
			line = strings.TrimSpace(line)
			if text, ok := strings.CutPrefix(line, "Fault: "); ok {
				m.fault = text
			}
			if text, ok := strings.CutPrefix(line, "Test: "); ok {
				m.test = strings.Fields(text)
			}
		}
		if m.fault == "" || len(m.test) == 0 {
			return nil, fmt.Errorf("%s does not say its Fault and its Test", path)
		}
		mutants = append(mutants, m)
	}
	if len(mutants) == 0 {
		return nil, fmt.Errorf("no patch in %s", folder)
	}
	return mutants, nil
}

// copyTree copies the files that git knows, and new ones that it does not ignore.
func copyTree(from, to string) error {
	list, err := output(from, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimRight(list, "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted and not committed
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var errGreen = errors.New("the test is green")

// try plants the fault, runs the test, and takes the fault out again. It returns the first thing that the
// test complains of.
func (m mutant) try(tree string) (said string, err error) {
	if err := m.apply(tree); err != nil {
		return "", fmt.Errorf("the patch does not apply: %w", err)
	}
	defer func() { err = errors.Join(err, m.apply(tree, "--reverse")) }()
	if _, err := output(tree, "go", "build", "./..."); err != nil {
		return "", err
	}
	out, err := m.isFound(tree)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w:\n%s", err, out)
	case out == nil:
		return "", errGreen
	}
	return string(complaint.Find(out)), nil
}

var complaint = regexp.MustCompile(`[a-z_]+_test\.go:\d+: .{0,150}`)

func (m mutant) apply(tree string, args ...string) error {
	cmd := exec.Command("git", append([]string{"apply"}, args...)...)
	cmd.Dir = tree
	cmd.Stdin = bytes.NewReader(m.patch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("git apply: %w\n%s", err, out)
	}
	return nil
}

// isFound runs the test. The output is nil if it is green; the error says that it could not run.
func (m mutant) isFound(tree string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"test", "-count=1", "-timeout=3m"}, m.test...)...)
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "ASPSTATE_TEST_LONG=1", "TMPDIR="+filepath.Dir(tree)) // what tests leave is of no use
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil && bytes.Contains(out, []byte("no tests to run")):
		return out, errors.New("there is no such test")
	case err == nil:
		return nil, nil
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) || !bytes.Contains(out, []byte("FAIL")):
		return out, err
	}
	return out, nil
}

// output runs a command and returns what it prints.
func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}
