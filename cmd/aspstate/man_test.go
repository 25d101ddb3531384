package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestMan(t *testing.T) {
	_, page, _ := aspstate(t, "man")
	for _, part := range []string{".TH ASPSTATE 1", `.SS aspstate serve`, `.SS aspstate migrate up`, `\-\-limits\-body`, "SIGHUP", ".SS aspstate backup FILE"} {
		if !strings.Contains(page, part) {
			t.Errorf("the page has no %q", part)
		}
	}
	if strings.Contains(page, ".SS aspstate man") {
		t.Error("the page lists a hidden command")
	}
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not installed")
	}
	groff := exec.CommandContext(t.Context(), "groff", "-man", "-ww", "-z")
	groff.Stdin = strings.NewReader(page)
	if out, err := groff.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

func TestRoff(t *testing.T) {
	if got := roff(".a\n\n'b \\n -c"); got != "\\&.a\n.PP\n\\&'b \\en \\-c" {
		t.Errorf("%q", got)
	}
}

func TestCompletions(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		want(t, 0, []string{"aspstate"}, "completion", shell)
	}
}
