package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Whatever is asked of the API, the answer is one of its own, in JSON, and nobody gets it without the token.
func FuzzAPI(f *testing.F) {
	const app = "/api/session?application=%2Flm%2Fw3svc%2F1%2Froot%2Fshop&id=a"
	for _, seed := range [][3]string{
		{"GET", "/api/status", ""},
		{"GET", "/api/sessions?application=%2flm%2fw3svc%2f1%2froot&locked=true&order=size&limit=10&after=x", ""},
		{"GET", "/api/sessions?limit=-1&order=nonsense&least_age=1e400s", ""},
		{"GET", app + "&values=true", ""},
		{"GET", "/api/session?id=%00%ff", ""},
		{"DELETE", app, ""},
		{"POST", strings.Replace(app, "session", "session/unlock", 1), `{"cookie":2}`},
		{"POST", "/api/switch", `{"to":"postgres://u:p@h/d"}`},
		{"POST", "/api/switch", `{"to":1e999,`},
		{"POST", "/api/reload", "\x00\xff"},
		{"POST", "/api/backup", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	r := newRig(f)
	r.process.reload = func() (changed, restart []string, err error) { return nil, nil, nil }
	r.process.switchTo = func(string) error { return nil }
	if err := r.admin.Configure(token, "", "", false); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, target, body string) {
		r.t = t
		r.set("/LM/W3SVC/1/ROOT/shop", "a", blob)
		ask := func(token string) (int, string) {
			req, err := http.NewRequest(method, "http://127.0.0.1/api/"+strings.TrimPrefix(target, "/api/"), strings.NewReader(body))
			if err != nil {
				t.Skip("no request of HTTP")
			}
			req.RequestURI, req.RemoteAddr = req.URL.RequestURI(), "127.0.0.1:1"
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+token)
			rec := httptest.NewRecorder()
			r.admin.http.Handler.ServeHTTP(rec, req)
			text, _ := io.ReadAll(rec.Result().Body)
			return rec.Code, string(text)
		}
		status, text := ask(token)
		switch {
		case status == http.StatusInternalServerError || status < 200 || status > 599:
			t.Errorf("%s %q %q is answered %d %s", method, target, body, status, text)
		case status == http.StatusOK && method != http.MethodHead && !json.Valid([]byte(text)):
			t.Errorf("%s %q %q is answered without JSON: %s", method, target, body, text)
		}
		if status, text = ask("another one that is as long"); status < 300 || strings.Contains(text, "Ed") {
			t.Errorf("without the token, %s %q is answered %d %s", method, target, status, text)
		}
	})
}
