package admin

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"html/template"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Who may ask. See the package comment.

const (
	cookieName = "aspstate_admin"
	cookieLife = 12 * time.Hour
)

// guard lets requests through that come from where they should, and from who may ask.
func (s *Server) guard(next http.Handler) http.Handler {
	return s.checkOrigin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isSafe(r.Method) && !hasJSON(r) {
			refuse(w, r, http.StatusUnsupportedMediaType, "a change needs the header Content-Type: application/json")
			return
		}
		token := s.settings.Load().token
		if token == nil || s.bears(r, token) || s.hasCookie(r, token) {
			next.ServeHTTP(w, r)
			return
		}
		s.denied.note(s, r)
		if strings.HasPrefix(r.URL.Path, "/api/") || r.URL.Path == "/metrics" || !isSafe(r.Method) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="aspstate"`)
			refuse(w, r, http.StatusUnauthorized, "a token is needed: send Authorization: Bearer, with the token of admin.token")
			return
		}
		http.Redirect(w, r, "/login", http.StatusSeeOther)
	}))
}

// checkOrigin refuses requests that a page of another site had a browser send.
func (s *Server) checkOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// With a token, a name that an attacker makes point here is of no use: the browser has no
		// cookie for it.
		if s.settings.Load().token == nil && !isAddress(r.Host) {
			refuse(w, r, http.StatusForbidden, "the Host header is a name: without admin.token only localhost and IP addresses are answered")
			return
		}
		if !sameOrigin(r) {
			refuse(w, r, http.StatusForbidden, "the request comes from another site's page")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isAddress reports whether a Host header is localhost or an IP address, which no name server can change.
func isAddress(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}

// sameOrigin reports whether a request was not caused by a page of another site, another port of this host included. A link from elsewhere to a page
// here is fine.
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		link := isSafe(r.Method) && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
		if !link || strings.HasPrefix(r.URL.Path, "/api/") {
			return false
		}
	}
	for _, origin := range r.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return false
		}
	}
	return true
}

func isSafe(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// hasJSON reports whether a request has the content type that no form of another site can send.
func hasJSON(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// refuse answers with an error, as JSON where the API was asked.
func refuse(w http.ResponseWriter, r *http.Request, status int, text string) {
	if strings.HasPrefix(r.URL.Path, "/api/") {
		answer(w, status, problem{Text: text})
		return
	}
	http.Error(w, text, status)
}

// bears reports whether the request has the token.
func (s *Server) bears(r *http.Request, token *[sha256.Size]byte) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Bearer") && isToken(strings.TrimSpace(given), token)
}

func isToken(given string, token *[sha256.Size]byte) bool {
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], token[:]) == 1
}

// hasCookie reports whether the request has a cookie that login has set since the start, for this token, and that is not too old.
func (s *Server) hasCookie(r *http.Request, token *[sha256.Size]byte) bool {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return false
	}
	value, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil || len(value) != 8+sha256.Size {
		return false
	}
	until := time.Unix(int64(binary.BigEndian.Uint64(value)), 0)
	return hmac.Equal(value, s.cookie(until, token)) && time.Now().Before(until)
}

// cookie is good until then, as long as the process lives and the token stays.
func (s *Server) cookie(until time.Time, token *[sha256.Size]byte) []byte {
	value := binary.BigEndian.AppendUint64(nil, uint64(until.Unix()))
	mac := hmac.New(sha256.New, s.cookies[:])
	mac.Write(value)
	mac.Write(token[:])
	return mac.Sum(value)
}

func encode(cookie []byte) string { return base64.RawURLEncoding.EncodeToString(cookie) }

func (s *Server) setCookie(w http.ResponseWriter, r *http.Request, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: value, Path: "/", MaxAge: int(life.Seconds()),
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	})
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	token := s.settings.Load().token
	if token == nil {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	if !isToken(strings.TrimSpace(r.PostFormValue("token")), token) {
		s.denied.note(s, r)
		s.showLogin(w, http.StatusUnauthorized, "This is not the token.")
		return
	}
	until := time.Now().Add(cookieLife)
	s.setCookie(w, r, encode(s.cookie(until, token)), cookieLife)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) loginForm(w http.ResponseWriter, r *http.Request) {
	if s.settings.Load().token == nil {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	s.showLogin(w, http.StatusOK, "")
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	s.setCookie(w, r, "", -time.Second)
	w.WriteHeader(http.StatusNoContent)
}

const loginStyle = `:root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:22rem;margin:15vh auto;padding:0 1rem}` +
	`input,button{font:inherit;padding:.5rem;width:100%;box-sizing:border-box;margin:.25rem 0 .75rem}`

var (
	loginPage = template.Must(template.New("login").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>aspstate: log in</title><style>` + loginStyle + `</style></head>
<body><h1>aspstate</h1><form method="post" action="/login"><label for="token">Token (setting admin.token)</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button>{{with .}}<p role="alert">{{.}}</p>{{end}}</form></body></html>
`))
	loginPolicy = func() string {
		sum := sha256.Sum256([]byte(loginStyle))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	}()
)

func (s *Server) showLogin(w http.ResponseWriter, status int, fault string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", loginPolicy)
	w.WriteHeader(status)
	loginPage.Execute(w, fault)
}

// denials counts requests without the right token, and logs them once in a while.
type denials struct{ count, logged atomic.Int64 }

const denialsEvery = 10 * time.Second

func (d *denials) note(s *Server, r *http.Request) {
	d.count.Add(1)
	now, logged := time.Now().UnixNano(), d.logged.Load()
	if now-logged >= int64(denialsEvery) && d.logged.CompareAndSwap(logged, now) {
		s.log.Warn("operators' requests were refused: no token, or a wrong one", "requests", d.count.Swap(0), "client", r.RemoteAddr, "path", r.URL.Path)
	}
}
