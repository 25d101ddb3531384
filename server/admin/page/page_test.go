package page_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"aspstate/server/admin/page"
)

func get(t *testing.T, path string, header ...string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest("GET", path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	page.Handler().ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Result(), string(body)
}

func TestHeaders(t *testing.T) {
	for path, contentType := range map[string]string{
		"/": "text/html; charset=utf-8", "/page/page.css": "text/css; charset=utf-8", "/page/page.js": "text/javascript; charset=utf-8",
	} {
		answer, body := get(t, path)
		if answer.StatusCode != 200 || body == "" {
			t.Errorf("%s: %s, %d bytes", path, answer.Status, len(body))
		}
		for name, want := range map[string]string{
			"Content-Type": contentType, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-cache",
		} {
			if got := answer.Header.Get(name); got != want {
				t.Errorf("%s: %s: %q, want %q", path, name, got, want)
			}
		}
		policy := answer.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none';", "script-src 'self';", "style-src 'self';", "base-uri 'none';", "form-action 'none';", "frame-ancestors 'none';", "require-trusted-types-for 'script'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: the policy is without %s: %s", path, want, policy)
			}
		}
		if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("%s: %s", path, policy)
		}
		again, body := get(t, path, "If-None-Match", answer.Header.Get("ETag"))
		if answer.Header.Get("ETag") == "" || again.StatusCode != http.StatusNotModified || body != "" {
			t.Errorf("%s asked for again: %s, %d bytes", path, again.Status, len(body))
		}
	}
	for _, path := range []string{"/page/", "/page/page.go", "/page/page.html", "/index.html"} {
		if answer, _ := get(t, path); answer.StatusCode != 404 {
			t.Errorf("%s: %s", path, answer.Status)
		}
	}
}

// Nothing comes from elsewhere, and nothing is in the markup that the policy would refuse.
func TestSelfContained(t *testing.T) {
	_, html := get(t, "/")
	_, css := get(t, "/page/page.css")
	_, script := get(t, "/page/page.js")
	for what, pattern := range map[string]string{
		"inline script":       `<script(>|[^>]*>[^<])`,
		"inline style":        `<style|\sstyle=`,
		"event handler":       `\son[a-z]+=`,
		"resource from afar":  `(src|href)="(https?:)?//`,
		"script in a link":    `javascript:`,
		"style sheet of more": `@import`,
	} {
		if found := regexp.MustCompile(pattern).FindString(html); found != "" {
			t.Errorf("%s in page.html: %s", what, found)
		}
	}
	if found := regexp.MustCompile(`@import|url\(`).FindString(css); found != "" {
		t.Errorf("page.css loads something: %s", found)
	}
	if found := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`).FindString(script); found != "" {
		t.Errorf("page.js turns text into markup or code: %s", found)
	}
	for _, url := range regexp.MustCompile(`https?://[^"' ]+`).FindAllString(html+css+script, -1) {
		if url != "http://www.w3.org/2000/svg" { // a name, not an address
			t.Errorf("the page has the address %s", url)
		}
	}
}
