package page_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// start starts a browser with a new empty profile and returns the context that its tabs are made from.
func start(t *testing.T) context.Context {
	t.Helper()
	options := []chromedp.ExecAllocatorOption{
		chromedp.NoFirstRun, chromedp.Headless, chromedp.DisableGPU, chromedp.ExecPath(chromium(t)), chromedp.WindowSize(1280, 1000),
	}
	for _, flag := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, cancel := chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	return ctx
}

func chromium(t *testing.T) string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("the page's tests need Chromium: make chromium installs it (Debian, Ubuntu: apt-get install chromium)")
	return ""
}

// tab is a tab that shows the page of a fake server. A test fails if the page complained in it: of an exception, or that the
// content security policy refused something.
type tab struct {
	*testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
}

func open(t *testing.T, browser context.Context, url string, before ...chromedp.Action[chromedp.Void]) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	t.Cleanup(stop)
	b := &tab{T: t, ctx: ctx}
	err := chromedp.Listen(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.complaints = append(b.complaints, e.ExceptionDetails.Text+" "+e.ExceptionDetails.Exception.Description)
		case *log.EventEntryAdded:
			b.complaints = append(b.complaints, e.Entry.Text+" "+e.Entry.URL)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	b.do(before...)
	b.do(chromedp.Navigate(url))
	t.Cleanup(func() {
		for _, c := range b.take() {
			t.Errorf("the page complained: %s", c)
		}
	})
	return b
}

// take returns the complaints so far and forgets them.
func (b *tab) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.complaints
	b.complaints = nil
	return taken
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 15*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.Fatal(err)
	}
}

func (b *tab) click(selector string) {
	b.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector), chromedp.NodeVisible))
}

func (b *tab) key(keys string) {
	b.Helper()
	b.do(chromedp.KeyEvent(keys))
}

func eval[T any](b *tab, expression string) T {
	b.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.Fatalf("%s: %v", expression, err)
	}
	return v
}

// wait waits until the expression is true.
func (b *tab) wait(expression string) {
	b.Helper()
	for deadline := time.Now().Add(15 * time.Second); !eval[bool](b, "!!("+expression+")"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("this has not become true: %s\nThe page says:\n%s", expression, eval[string](b, "document.body.innerText"))
		}
	}
}

func (b *tab) text(selector string) string {
	b.Helper()
	return eval[string](b, "document.querySelector('"+selector+"').innerText")
}

func size(width, height int64) chromedp.Action[chromedp.Void] {
	return chromedp.EmulateViewport(width, height)
}

func colours(scheme string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		return err
	})
}

// The page as an operator uses it, from a look at the charts to a session that is removed.
func TestPage(t *testing.T) {
	f := newFake(t)
	b := open(t, start(t), f.URL)

	// It shows how the server is, and goes on with what comes.
	b.wait("document.querySelectorAll('.chart .line').length >= 8 && document.querySelectorAll('#sessions tbody tr').length === 10")
	if title, server := eval[string](b, "document.title"), b.text("#server"); title != "aspstate on state1" || server != "mode SQLServer, PostgreSQL · listens on 10.1.2.10:42424 · 120 connections · up 3 d 3 h · version 1.0.0" {
		t.Errorf("title %q, server %q", title, server)
	}
	if got := b.text("#ready"); got != "Ready" {
		t.Errorf("ready: %q", got)
	}
	if got := b.text("#applications tbody"); !strings.Contains(got, "/lm/w3svc/1/root/shop\t6,100\t3\t42 MiB") {
		t.Errorf("applications: %q", got)
	}
	f.set(func() {
		p := point(time.Now().Add(time.Hour), 1)
		p["requests"], p["p50_seconds"] = 123456, nil
		f.points = append(f.points, p)
	})
	b.wait("document.querySelector('.chart output').textContent === '123,456/s'")
	if got := b.text(".chart:nth-child(2) output"); got != "–" {
		t.Errorf("latency of no requests: %q", got)
	}

	// Oldest locks first; a session's keys, and its values only when they are asked for.
	oldest, app := f.sessions[113].ID, f.sessions[113].AppID
	if got := b.text("#sessions tbody tr"); !strings.Contains(got, oldest) || !strings.Contains(got, "10 min 30 s") {
		t.Errorf("oldest lock: %q", got)
	}
	b.click("#sessions tbody tr button")
	b.wait("document.querySelector('dialog#session').open")
	body := b.text("#session-body")
	for _, want := range []string{oldest, "UserName", "System.Collections.Generic.List<Shop.Line>", "Basket", "1.8 KiB", "lock cookie 114", "Values are hidden"} {
		if !strings.Contains(body, want) {
			t.Errorf("the session is shown without %q:\n%s", want, body)
		}
	}
	if html := eval[string](b, "document.documentElement.outerHTML"); strings.Contains(html, "ed@example.org") || len(f.calls()) != 0 {
		t.Errorf("values are there without being asked for; calls %q", f.calls())
	}
	b.click("#session-body .actions button:first-child")
	b.wait("document.querySelector('#session-body').innerText.includes('ed@example.org')")

	b.click("#session [data-close]")
	b.wait("!document.querySelector('#session').open")
	if html := eval[string](b, "document.documentElement.outerHTML"); strings.Contains(html, "ed@example.org") {
		t.Error("values are still in the page")
	}

	// Unlock asks first.
	b.click("#sessions tbody tr button")
	b.wait("document.querySelector('#session').open")
	b.click("#session-body .actions button:nth-child(2)")
	b.wait("document.querySelector('#confirm').open && document.querySelector('#confirm-title').innerText.includes('Unlock')")
	b.click("#confirm [data-close]")
	b.wait("!document.querySelector('#confirm').open")
	b.click("#session-body .actions button:nth-child(2)")
	b.click("#confirm-do")
	b.wait("document.querySelector('#session-body').innerText.includes('not locked')")
	b.wait("document.querySelectorAll('#sessions tbody tr').length === 9")

	// So does Remove.
	b.click("#session-body .actions .remove")
	b.wait("document.querySelector('#confirm').open")
	b.click("#confirm [data-close]")
	b.click("#session-body .actions .remove")
	b.click("#confirm-do")
	b.wait("!document.querySelector('#session').open && !document.querySelector('#confirm').open")
	want := []string{"values " + oldest, "unlock " + app + " " + oldest + " 114", "remove " + app + " " + oldest}
	if got := f.calls(); !slices.Equal(got, want) {
		t.Errorf("calls:\n%q\nwant:\n%q", got, want)
	}
}

// TestScreenshots writes PNGs of the page to the folder that ASPSTATE_TEST_SCREENSHOTS names, for people to look at: of the
// server that ASPSTATE_TEST_PAGE names, else of a fake.
func TestScreenshots(t *testing.T) {
	folder, url := os.Getenv("ASPSTATE_TEST_SCREENSHOTS"), os.Getenv("ASPSTATE_TEST_PAGE")
	if folder == "" {
		t.Skip("ASPSTATE_TEST_SCREENSHOTS names no folder")
	}
	if url == "" {
		url = newFake(t).URL
	}
	browser := start(t)
	for _, view := range []struct {
		name, scheme  string
		width, height int64
	}{
		{"desktop-light", "light", 1280, 1000}, {"desktop-dark", "dark", 1280, 1000}, {"phone-light", "light", 390, 844}, {"phone-dark", "dark", 390, 844},
	} {
		b := open(t, browser, url, size(view.width, view.height), colours(view.scheme))
		b.wait("document.querySelectorAll('.chart .line').length > 3 && document.querySelectorAll('#sessions tbody tr').length > 0")
		save := func(name string, shoot chromedp.Action[[]byte]) {
			png, err := chromedp.Run(b.ctx, shoot)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		save(view.name, chromedp.FullScreenshot(100))
		b.click("#sessions tbody tr button")
		b.wait("document.querySelector('dialog#session').open")
		b.click("#session-body .actions button")
		b.wait("document.querySelector('#session-body td.value')")
		save(view.name+"-session", chromedp.CaptureScreenshot())
		b.click("#session-body .actions .remove")
		save(view.name+"-remove", chromedp.CaptureScreenshot())
	}
}
