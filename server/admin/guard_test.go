package admin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const token = "5dFkX0b7PqYw2nLr9sVt3uZa"

func headers(pairs ...string) func(*http.Request) {
	return func(r *http.Request) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == "Host" {
				r.Host = pairs[i+1]
			} else {
				r.Header.Set(pairs[i], pairs[i+1])
			}
		}
	}
}

// Without a token, what a browser sends for another site's page is refused.
func TestOrigins(t *testing.T) {
	r := newRig(t)
	r.process.reload = func() ([]string, []string, error) { return nil, nil, nil }
	own := strings.TrimPrefix(r.URL, "http://")
	_, port, _ := net.SplitHostPort(own)
	for _, test := range []struct {
		method, path string
		change       func(*http.Request)
		status       int
	}{
		{"GET", "/api/status", nil, 200},
		{"GET", "/api/status", headers("Host", "localhost:"+port), 200},
		{"GET", "/api/status", headers("Host", "LocalHost"), 200},
		{"GET", "/api/status", headers("Host", "[::1]:"+port), 200},
		{"GET", "/api/status", headers("Host", "10.1.2.3"), 200},
		{"GET", "/api/status", headers("Host", "rebound.example:"+port), 403},
		{"GET", "/api/status", headers("Host", "127.0.0.1.rebound.example"), 403},
		{"GET", "/api/status", headers("Host", "localhost.example"), 403},
		{"GET", "/", headers("Host", "rebound.example"), 403},
		{"GET", "/metrics", headers("Host", "rebound.example"), 403},
		{"GET", "/debug/pprof/", headers("Host", "rebound.example"), 403},
		{"GET", "/login", headers("Host", "rebound.example"), 403},

		{"GET", "/api/status", headers("Origin", "http://"+own), 200},
		{"GET", "/api/status", headers("Origin", "http://evil.example"), 403},
		{"GET", "/api/status", headers("Origin", "http://127.0.0.1:1"), 403},
		{"GET", "/api/status", headers("Origin", "null"), 403},
		{"GET", "/api/status", headers("Sec-Fetch-Site", "same-origin"), 200},
		{"GET", "/api/status", headers("Sec-Fetch-Site", "none"), 200},
		{"GET", "/api/status", headers("Sec-Fetch-Site", "cross-site"), 403},
		{"GET", "/api/status", headers("Sec-Fetch-Site", "same-site"), 403},
		{"GET", "/api/status", headers("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), 403},
		{"GET", "/", headers("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), 200},
		{"GET", "/", headers("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), 403},

		{"POST", "/api/reload", nil, 200},
		{"POST", "/api/reload", headers("Content-Type", "application/json; charset=utf-8"), 200},
		{"POST", "/api/reload", headers("Content-Type", "text/plain"), 415},
		{"POST", "/api/reload", headers("Content-Type", "application/x-www-form-urlencoded"), 415},
		{"POST", "/api/reload", headers("Content-Type", ""), 415},
		{"DELETE", "/api/session?app=00000001&id=x", headers("Content-Type", ""), 415},
		{"POST", "/api/reload", headers("Origin", "http://evil.example"), 403},
		{"POST", "/api/reload", headers("Sec-Fetch-Site", "cross-site"), 403},
		{"POST", "/logout", headers("Content-Type", ""), 415},
	} {
		got, header, text := r.send(test.method, test.path, "", test.change)
		if got != test.status {
			t.Errorf("%s %s: %d, want %d: %s", test.method, test.path, got, test.status, text)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s %s: headers %v", test.method, test.path, header)
		}
	}
}

func TestToken(t *testing.T) {
	r := newRig(t)
	if err := r.admin.Configure(token, "", "", false); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/status", "/api/nothing", "/metrics"} {
		for _, authorization := range []string{"", "Bearer", "Bearer x", "Bearer " + token + "x", "Basic " + token, token} {
			if got, header, text := r.send("GET", path, "", headers("Authorization", authorization)); got != 401 || header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %q: %d %s", path, authorization, got, text)
			}
		}
	}
	if got, header, _ := r.send("GET", "/", "", nil); got != 303 || header.Get("Location") != "/login" {
		t.Errorf("the page: %d %v", got, header)
	}
	if got, _, _ := r.send("DELETE", "/api/session?app=00000001&id=x", "", nil); got != 401 {
		t.Errorf("a change: %d", got)
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if got, _, _ := r.send("GET", path, "", nil); got != 200 {
			t.Errorf("%s wants a token: %d", path, got)
		}
	}
	// A name that points here is of no use to others now, and may be used.
	r.token = token
	if got, _, text := r.send("GET", "/api/status", "", headers("Host", "state1.example:42480")); got != 200 {
		t.Errorf("with the token: %d %s", got, text)
	}
	if got, _, _ := r.send("GET", "/api/status", "", headers("Origin", "http://evil.example")); got != 403 {
		t.Errorf("with the token, from another origin: %d", got)
	}
	if strings.Contains(r.log.String(), token) || !strings.Contains(r.log.String(), "operators' requests were refused") {
		t.Errorf("log:\n%s", r.log)
	}
}

func TestLogin(t *testing.T) {
	r := newRig(t)
	post := func(given string, change func(*http.Request)) (int, http.Header, string) {
		return r.send("POST", "/login", url.Values{"token": {given}}.Encode(), func(req *http.Request) {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			if change != nil {
				change(req)
			}
		})
	}
	if got, header, _ := r.send("GET", "/login", "", nil); got != 303 || header.Get("Location") != "/" {
		t.Errorf("the form without a token: %d %v", got, header)
	}
	r.admin.Configure(token, "", "", false)
	if got, header, text := r.send("GET", "/login", "", nil); got != 200 || !strings.Contains(text, `name="token"`) || !strings.Contains(header.Get("Content-Security-Policy"), "style-src 'sha256-") {
		t.Errorf("the form: %d %v %s", got, header, text)
	}
	if got, header, text := post("wrong", nil); got != 401 || header.Get("Set-Cookie") != "" || !strings.Contains(text, "not the token") {
		t.Errorf("a wrong token: %d %v", got, header)
	}
	if got, header, _ := post(token, headers("Origin", "http://evil.example")); got != 403 || header.Get("Set-Cookie") != "" {
		t.Errorf("from another site: %d %v", got, header)
	}
	got, header, _ := post(token, nil)
	cookie, err := http.ParseSetCookie(header.Get("Set-Cookie"))
	if got != 303 || err != nil || !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Secure || strings.Contains(cookie.Value, token) {
		t.Fatalf("login: %d %v", got, header)
	}
	with := func(value string) int {
		got, _, _ := r.send("GET", "/api/status", "", headers("Cookie", cookie.Name+"="+value))
		return got
	}
	if with(cookie.Value) != 200 {
		t.Error("the cookie lets nobody in")
	}
	flipped := []byte(cookie.Value)
	flipped[3] ^= 1 // later than it was given for
	for _, value := range []string{"", "x", string(flipped), cookie.Value[:20]} {
		if with(value) != 401 {
			t.Errorf("cookie %q lets in", value)
		}
	}
	if got, header, _ := r.send("POST", "/logout", "", headers("Cookie", cookie.Name+"="+cookie.Value)); got != 204 || !strings.Contains(header.Get("Set-Cookie"), "Max-Age=0") {
		t.Errorf("logout: %d %v", got, header)
	}
	r.admin.Configure("another-token-of-24-chars", "", "", false)
	if with(cookie.Value) != 401 {
		t.Error("the cookie outlives its token")
	}
}

// The page is served with a policy of its own, to who may ask.
func TestPage(t *testing.T) {
	r := newRig(t)
	for path, kind := range map[string]string{"/": "text/html", "/page/page.js": "text/javascript", "/page/page.css": "text/css"} {
		got, header, text := r.send("GET", path, "", nil)
		if got != 200 || !strings.HasPrefix(header.Get("Content-Type"), kind) || !strings.Contains(header.Get("Content-Security-Policy"), "script-src 'self'") || text == "" {
			t.Errorf("%s: %d %v", path, got, header)
		}
	}
	if got, _, _ := r.send("GET", "/nothing", "", nil); got != 404 {
		t.Errorf("no path: %d", got)
	}
	r.admin.Configure(token, "", "", false)
	for _, path := range []string{"/", "/page/page.js"} {
		if got, header, text := r.send("GET", path, "", nil); got != 303 || header.Get("Location") != "/login" || strings.Contains(text, "script") {
			t.Errorf("%s without the token: %d %v", path, got, header)
		}
	}
	r.token = token
	if got, _, _ := r.send("GET", "/", "", nil); got != 200 {
		t.Errorf("with the token: %d", got)
	}
}

func TestCookieEnds(t *testing.T) {
	r := newRig(t)
	r.admin.Configure(token, "", "", false)
	sum := r.admin.settings.Load().token
	for _, test := range []struct {
		life time.Duration
		want bool
	}{{time.Minute, true}, {-time.Second, false}} {
		req, _ := http.NewRequest("GET", "/", nil)
		rec := recorder{http.Header{}}
		r.admin.setCookie(rec, req, encode(r.admin.cookie(time.Now().Add(test.life), sum)), time.Hour)
		req.Header.Set("Cookie", strings.SplitN(rec.Header().Get("Set-Cookie"), ";", 2)[0])
		if got := r.admin.hasCookie(req, sum); got != test.want {
			t.Errorf("a cookie for %v more lets in: %v", test.life, got)
		}
	}
}

type recorder struct{ h http.Header }

func (r recorder) Header() http.Header         { return r.h }
func (r recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r recorder) WriteHeader(int)             {}

func TestProfiles(t *testing.T) {
	r := newRig(t)
	if got, _, text := r.send("GET", "/debug/pprof/", "", nil); got != 404 || !strings.Contains(text, "admin.pprof") {
		t.Errorf("off: %d %s", got, text)
	}
	r.admin.Configure("", "", "", true)
	if got, _, text := r.send("GET", "/debug/pprof/goroutine?debug=1", "", nil); got != 200 || !strings.Contains(text, "goroutine profile") {
		t.Errorf("on: %d %s", got, text)
	}
	r.admin.Configure(token, "", "", true)
	if got, _, text := r.send("GET", "/debug/pprof/goroutine?debug=1", "", nil); got == 200 {
		t.Errorf("without the token: %d %s", got, text)
	}
}

// certificate writes a new one, with its key, for 127.0.0.1.
func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestTLS(t *testing.T) {
	r := newRig(t)
	path := filepath.Join(t.TempDir(), "tls.pem")
	first := certificate(t, path)
	if err := r.admin.Configure(token, path, "", false); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go r.admin.Serve(ln)
	defer r.admin.Shutdown(t.Context())
	get := func(leaf *x509.Certificate) (cookie string, err error) {
		pool := x509.NewCertPool()
		pool.AddCert(leaf)
		client := http.Client{
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		resp, err := client.PostForm("https://"+ln.Addr().String()+"/login", url.Values{"token": {token}})
		if err != nil {
			return "", err
		}
		resp.Body.Close()
		return resp.Header.Get("Set-Cookie"), nil
	}
	if cookie, err := get(first); err != nil || !strings.Contains(cookie, "Secure") {
		t.Errorf("cookie %q, %v", cookie, err)
	}
	if resp, err := http.Get("http://" + ln.Addr().String() + "/livez"); err == nil && resp.StatusCode == 200 {
		t.Error("it answers without TLS")
	}
	// The certificate is renewed.
	second := certificate(t, path)
	if err := r.admin.Configure(token, path, "", false); err != nil {
		t.Fatal(err)
	}
	if _, err := get(second); err != nil {
		t.Errorf("the new certificate: %v", err)
	}
	if _, err := get(first); err == nil {
		t.Error("the old certificate is still in force")
	}
	// One that cannot be read changes nothing.
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.admin.Configure("", path, "", false); err == nil || !strings.Contains(err.Error(), "admin.certificate") {
		t.Errorf("a broken file: %v", err)
	}
	if _, err := get(second); err != nil {
		t.Errorf("after a broken file: %v", err)
	}
	if r.admin.settings.Load().token == nil {
		t.Error("a broken certificate takes the token away")
	}
}
