package page_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/admin"
)

// process is the process around a listener.
type process struct{}

func (process) Facts() admin.Facts {
	return admin.Facts{Version: "v1", Mode: "StateServer", Store: "memory", Listen: []string{"127.0.0.1:42424"}}
}
func (process) Reload() (changed, restart []string, err error) {
	return nil, nil, errors.ErrUnsupported
}
func (process) Switch(context.Context, string) error { return errors.ErrUnsupported }
func (process) Show(connectionString string) string  { return connectionString }

// The page and the real listener understand each other: it signs in, shows a session, unlocks and removes it, and signs out.
func TestServer(t *testing.T) {
	store := memory.New(0)
	t.Cleanup(func() { store.Close() })
	ctx := context.Background()
	app, err := store.Application(ctx, "/lm/w3svc/1/root/shop", true)
	if err != nil {
		t.Fatal(err)
	}
	key := backends.Key{App: app, ID: "bpr4mimb2vjnvtn2jc4yp3uo"}
	item := []byte("\x14\x00\x00\x00\x01\x00\x01\x00\x00\x00\xff\xff\xff\xff\x04name\x04\x00\x00\x00\x01\x02Ed\xff")
	if err := store.Set(ctx, key, backends.Token{1}, backends.Write{Data: item, Timeout: 20 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.GetExclusive(ctx, key, backends.Token{2}); err != nil {
		t.Fatal(err)
	}

	log := slog.New(slog.DiscardHandler)
	sessions := server.NewSessions(store, 8*time.Second, log)
	sampler := &server.Sampler{Sessions: sessions, Log: log}
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	go sampler.Run(ctx)
	listener := admin.New(sessions, &server.Server{Access: server.NewAccessList(log), Log: log}, &server.Sweeper{Store: sessions, Log: log}, sampler, process{}, log)
	const token = "correct horse battery staple"
	if err := listener.Configure(token, "", "", false); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- listener.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		listener.Shutdown(ctx)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})

	b := open(t, start(t), "http://"+ln.Addr().String())
	b.wait("location.pathname === '/login'")
	b.do(chromedp.SendKeys(chromedp.CSS("input[name=token]"), token))
	b.key(kb.Enter)
	b.wait("location.pathname === '/' && document.querySelector('#ready')?.innerText === 'Ready' && " + rows + ".length === 1")
	b.take() // Chromium would like login forms to have a user name
	b.wait("document.querySelector('#applications tbody').innerText.includes('/lm/w3svc/1/root/shop')")
	b.wait("document.querySelector('.chart .line')") // the history's first point

	b.click("#sessions tbody tr button")
	b.wait("document.querySelector('#session').open")
	if body := b.text("#session-body"); !strings.Contains(body, "System.String") || !strings.Contains(body, "lock cookie 2") || strings.Contains(body, "Ed") {
		t.Errorf("the session is shown as\n%s", body)
	}
	b.click("#session-body .actions button:nth-child(1)")
	b.wait("document.querySelector('#session-body td.value')?.innerText === 'Ed'")
	b.click("#session-body .actions button:nth-child(1)")
	b.click("#confirm-do")
	b.wait("document.querySelector('#session-body').innerText.includes('not locked')")
	if s, err := store.Inspect(ctx, key); err != nil || s.Locked {
		t.Errorf("after Unlock: %+v, %v", s, err)
	}
	b.click("#session-body .actions .remove")
	b.click("#confirm-do")
	b.wait("!document.querySelector('#session').open")
	if _, err := store.Inspect(ctx, key); !errors.Is(err, backends.ErrNotFound) {
		t.Errorf("after Remove: %v", err)
	}

	b.click("#logout")
	b.wait("location.pathname === '/login'")
	b.do(chromedp.Navigate("http://" + ln.Addr().String()))
	b.wait("location.pathname === '/login'")
	b.take()
}
