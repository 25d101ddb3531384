package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"aspstate/server"
	"aspstate/server/admin/page"
)

// Server is the listener for operators. Make one with New.
type Server struct {
	parts
	process  Process
	log      *slog.Logger
	settings atomic.Pointer[settings]
	cookies  [32]byte // signs cookies
	history  history
	metrics  http.Handler
	http     http.Server
	denied   denials
	started  time.Time
}

// parts are what the listener looks into.
type parts struct {
	sessions *server.Sessions
	front    *server.Server
	sweeper  *server.Sweeper
	sampler  *server.Sampler
}

// Process is what the listener asks of the process around it. Its methods are safe for concurrent use.
type Process interface {
	// Facts returns the settings in force.
	Facts() Facts
	// Reload reads the settings again. changed and restart are the keys that differ: now in force, and with the next start.
	// An error has one fault or joins several; the old settings stay.
	Reload() (changed, restart []string, err error)
	// Switch begins to move the sessions to another store, and returns when they are served from there.
	Switch(ctx context.Context, to string) error
	// Show returns a connection string without its password.
	Show(connectionString string) string
}

// Facts are what /api/status tells of the settings.
type Facts struct {
	Version       string
	Mode          string
	Store         string // memory, sqlite, postgres or sqlserver
	Database      string // without password; "" for memory
	SchemaVersion int    // 0 for none
	Listen, Allow []string
	LockWait      time.Duration
	RequestBudget time.Duration
}

// settings are what may change while the server runs.
type settings struct {
	token       *[sha256.Size]byte // its hash; nil for none
	certificate *tls.Certificate
	pprof       bool
}

// New returns a listener that looks into these parts.
func New(sessions *server.Sessions, front *server.Server, sweeper *server.Sweeper, sampler *server.Sampler, process Process, log *slog.Logger) *Server {
	s := &Server{parts: parts{sessions, front, sweeper, sampler}, process: process, log: log, started: time.Now()}
	rand.Read(s.cookies[:])
	s.settings.Store(new(settings))
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{parts: s.parts, facts: process.Facts}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError)})
	s.http = http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Configure sets who may ask, how, and what for. It applies from the next request, or the next connection, on. certificate and key
// are PEM files, "" for no TLS; key "" means that it is in the certificate's file. Whether there is TLS at all
// is decided when Serve begins. An error leaves everything as it was.
func (s *Server) Configure(token, certificate, key string, pprof bool) error {
	next := &settings{pprof: pprof}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		next.token = &sum
	}
	if certificate != "" {
		if key == "" {
			key = certificate
		}
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return fmt.Errorf("admin.certificate: %w", err)
		}
		next.certificate = &pair
	}
	if old := s.settings.Load(); next.certificate == nil {
		next.certificate = old.certificate
	}
	s.settings.Store(next)
	return nil
}

// Serve answers on ln until Shutdown, and keeps the history. It returns nil then.
func (s *Server) Serve(ln net.Listener) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go s.history.run(ctx, s.parts)
	if s.settings.Load().certificate != nil {
		ln = tls.NewListener(ln, &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.settings.Load().certificate, nil },
			NextProtos:     []string{"http/1.1"},
		})
	}
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// Shutdown stops serving. Requests under way are answered, unless ctx ends before.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	return err
}

// routes are everything the listener answers.
func (s *Server) routes() http.Handler {
	open := http.NewServeMux() // for everybody
	open.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	open.HandleFunc("GET /readyz", s.readyz)

	guarded := http.NewServeMux()
	guarded.Handle("/api/", s.api())
	guarded.HandleFunc("POST /api/backup", s.backup)
	guarded.Handle("GET /metrics", s.metrics)
	guarded.HandleFunc("POST /logout", s.logout)
	guarded.Handle("/", page.Handler())
	for path, handler := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		guarded.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			if !s.settings.Load().pprof {
				http.Error(w, "profiles are off: set admin.pprof", http.StatusNotFound)
				return
			}
			handler(w, r)
		})
	}
	open.Handle("/", s.guard(guarded))
	open.Handle("GET /login", s.checkOrigin(http.HandlerFunc(s.loginForm)))
	open.Handle("POST /login", s.checkOrigin(http.HandlerFunc(s.login)))
	return harden(open)
}

// answerWithin is how long an answer may take, and the client to read it.
const answerWithin = 2 * time.Minute

// harden sets the headers that every answer has, and its time limit.
func harden(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cache-Control", "no-store")
		var by time.Time // profiles take as long as they are told to
		if !strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
			by = time.Now().Add(answerWithin)
		}
		http.NewResponseController(w).SetWriteDeadline(by)
		next.ServeHTTP(w, r)
	})
}

// unreadyAfter is for how long the store may fail before the server says that it is not ready: requests are held
// through a failover.
const unreadyAfter = 30 * time.Second

// notReady is why the server is not ready, or "".
func (p *parts) notReady() string {
	if p.sessions.Draining() {
		return "draining: the server is stopping"
	}
	if failing, err := p.sessions.Failing(); failing >= unreadyAfter {
		return fmt.Sprintf("the store has been failing for %v: %v", failing.Round(time.Second), err)
	}
	return ""
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if why := s.notReady(); why != "" {
		// Whoever asks is not known, and the store's error may name what should stay here.
		if s.sessions.Draining() {
			why = "draining"
		} else {
			why = "the store is failing"
		}
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
