// Package page is the page of the admin listener, for people who would rather look than read: the
// request rate, latency, lock waits and sessions of the last 15 minutes as charts, the applications, and the oldest locks and
// largest sessions, which can be searched, shown, unlocked and removed.
//
// It is one HTML file, one style sheet and one script, which ask the JSON API of the same
// listener and nobody else. What it is served with keeps it so: it runs no script and loads nothing
// from elsewhere, cannot be framed, and cannot turn text into markup (Trusted Types), whatever stands in a session.
package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"net/http"
	"time"
)

//go:embed page.html page.css page.js
var files embed.FS

const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// Handler serves the page at / and its style sheet and script at /page/page.css and /page/page.js, with the headers that they
// need; every other path is 404. Who may see it is the caller's business: nothing in the page itself is secret.
func Handler() http.Handler {
	mux := http.NewServeMux()
	for _, file := range []struct{ path, name, contentType string }{
		{"/{$}", "page.html", "text/html"},
		{"/page/page.css", "page.css", "text/css"},
		{"/page/page.js", "page.js", "text/javascript"},
	} {
		content, err := files.ReadFile(file.name)
		if err != nil {
			panic(err) // it is embedded
		}
		sum := sha256.Sum256(content)
		tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
		mux.HandleFunc("GET "+file.path, func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Set("Content-Security-Policy", contentSecurityPolicy)
			h.Set("Content-Type", file.contentType+"; charset=utf-8")
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("Referrer-Policy", "same-origin")
			h.Set("Cross-Origin-Opener-Policy", "same-origin")
			h.Set("Cross-Origin-Resource-Policy", "same-origin")
			// Asked for each time, so that a new version's page and script are never mixed with an old one's.
			h.Set("Cache-Control", "no-cache")
			h.Set("ETag", tag)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		})
	}
	return mux
}
