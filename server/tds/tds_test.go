package tds

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
)

const (
	testUser     = "webfarm"
	testPassword = "S3cret; with 'quotes' and ümläuts"
	testApp      = "/LM/W3SVC/1/ROOT"
)

// quick is a hash that costs the tests little.
func quick(t testing.TB, password string) PasswordHash {
	t.Helper()
	text, err := hashPassword(password, minIterations)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParsePasswordHash(text)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// front is a running front end.
type front struct {
	*Server
	accepting *server.Server
	sessions  *server.Sessions
	address   string
	log       *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var testCertificate = sync.OnceValues(selfSigned)

func testSettings(t testing.TB) Settings {
	t.Helper()
	s := DefaultSettings()
	var err error
	if s.Certificate, err = testCertificate(); err != nil {
		t.Fatal(err)
	}
	s.Databases = []string{"ASPState", "Shop"}
	s.Users = []User{{testUser, quick(t, testPassword)}}
	return s
}

// start serves a store on a free port until the end of the test.
func start(t testing.TB, store backends.Store) *front {
	t.Helper()
	f := &front{log: new(buffer)}
	log := slog.New(slog.NewTextHandler(f.log, nil))
	f.sessions = server.NewSessions(store, 8*time.Second, log)
	f.Server = New(f.sessions, log)
	f.Configure(testSettings(t))
	access := server.NewAccessList(log)
	access.Allow([]netip.Prefix{})
	f.accepting = &server.Server{Access: access, Log: log}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.sessions.Run(ctx) })
	running.Go(func() { f.accepting.ServeWith(ln, server.TDS, f.Handle) })
	t.Cleanup(func() {
		stop, cancelStop := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancelStop()
		f.sessions.Drain()
		if err := f.accepting.Shutdown(stop); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		cancel()
		running.Wait()
		f.sessions.Close()
		if strings.Contains(f.log.String(), "panic") {
			t.Errorf("the log says:\n%s", f.log)
		}
	})
	return f
}

func startMemory(t testing.TB) *front { return start(t, memory.New(0)) }

// until waits for what must come.
func until(t testing.TB, come func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !come(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}
