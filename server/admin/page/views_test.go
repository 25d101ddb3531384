package page_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func long(t *testing.T) {
	if os.Getenv("ASPSTATE_TEST_LONG") == "" {
		t.Skip("takes long; ASPSTATE_TEST_LONG=1, or make test-all, runs it")
	}
}

const rows = "document.querySelectorAll('#sessions tbody tr')"

// Sessions are found by application, order and the begin of their ID, and paged where they can be.
func TestSearch(t *testing.T) {
	long(t)
	f := newFake(t)
	b := open(t, start(t), f.URL)
	b.wait(rows + ".length === 10")

	b.click("input[value=key]")
	b.wait(rows + ".length === 50 && !document.querySelector('#more').hidden")
	b.click("#more")
	b.wait(rows + ".length === 100")
	b.click("#more")
	b.wait(rows + ".length === 120 && document.querySelector('#more').hidden")
	if got := b.text("#listed"); !strings.HasPrefix(got, "120 sessions, as of ") {
		t.Errorf("listed: %q", got)
	}
	if double := eval[int](b, "new Set([..."+rows+"].map(r => r.dataset.key)).size"); double != 120 {
		t.Errorf("%d different sessions of 120", double)
	}

	b.click("input[value=size]")
	b.wait(rows + ".length === 50 && document.querySelector('#listed').innerText.startsWith('50 sessions at most')")
	if got := b.text("#sessions tbody tr"); !strings.Contains(got, "977 KiB") {
		t.Errorf("largest session: %q", got)
	}

	// The application's name in the table chooses it below, whatever was looked for before.
	b.do(chromedp.SendKeys(chromedp.CSS("input[name=id]"), "nothing"))
	b.wait(rows + ".length === 0")
	b.click("#applications tbody tr:nth-child(2) button")
	b.wait(rows + ".length === 40 && document.querySelector('select[name=app]').value === '" + intranet + "'")

	id := f.sessions[3].ID // of the other application
	b.do(chromedp.SendKeys(chromedp.CSS("input[name=id]"), id[:6]))
	b.wait("document.querySelector('#sessions-note').innerText === 'No session fits.' && " + rows + ".length === 0")
	b.do(chromedp.SetValue(chromedp.CSS("select[name=app]"), ""))
	b.do(chromedp.Focus(chromedp.CSS("input[name=id]")))
	b.key(kb.Enter)
	b.wait(rows + ".length === 1")
	if got := b.text("#sessions tbody tr"); !strings.HasPrefix(got, id) {
		t.Errorf("found %q, want %s", got, id)
	}
}

// Everything works without a mouse, and the focus does not get lost.
func TestKeyboard(t *testing.T) {
	long(t)
	f := newFake(t)
	b := open(t, start(t), f.URL)
	b.wait(rows + ".length === 10")

	// Arrow keys walk through a chart.
	b.key(kb.Tab)
	b.wait("document.activeElement.matches('.chart svg')")
	b.key(kb.ArrowLeft + kb.ArrowLeft)
	b.wait("!document.querySelector('.chart .tip').hidden && document.querySelector('.chart .tip').innerText.includes('GetExclusive')")
	b.key(kb.Tab)
	b.wait("document.querySelector('.chart .tip').hidden")

	for i := 0; !eval[bool](b, "document.activeElement.closest('#sessions') !== null"); i++ {
		if i > 30 {
			t.Fatal("the tab key does not come to the sessions")
		}
		if !eval[bool](b, "(() => { const s = getComputedStyle(document.activeElement.matches('input[type=radio]') ? document.activeElement.nextSibling : document.activeElement); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 })()") {
			t.Errorf("the focus cannot be seen on %s", eval[string](b, "document.activeElement.outerHTML"))
		}
		b.key(kb.Tab)
	}
	id := eval[string](b, "document.activeElement.innerText")
	b.key(kb.Enter)
	b.wait("document.querySelector('#session').open && document.querySelector('#session').contains(document.activeElement)")
	b.key(kb.Escape)
	b.wait("!document.querySelector('#session').open && document.activeElement.innerText === '" + id + "'")

	b.key(kb.Enter)
	b.wait("document.querySelector('#session').open")
	for i := 0; eval[string](b, "document.activeElement.innerText") != "Unlock…"; i++ {
		if i > 10 {
			t.Fatal("the tab key does not come to Unlock")
		}
		b.key(kb.Tab)
	}
	// Enter asks, and another Enter without a look cancels.
	b.key(kb.Enter)
	b.wait("document.querySelector('#confirm').open && document.activeElement.innerText === 'Cancel'")
	b.key(kb.Enter)
	b.wait("!document.querySelector('#confirm').open && document.activeElement.innerText === 'Unlock…'")
	b.key(kb.Enter)
	b.wait("document.querySelector('#confirm').open")
	b.key(kb.Tab)
	b.wait("document.activeElement.innerText === 'Unlock'")
	if calls := f.calls(); len(calls) > 0 {
		t.Errorf("done before it was confirmed: %q", calls)
	}
	b.key(kb.Enter)
	b.wait("!document.querySelector('#confirm').open && document.querySelector('#session-body').innerText.includes('not locked')")
	b.wait("document.querySelector('#session').contains(document.activeElement) && document.activeElement.innerText === 'Show values'")
	if calls := f.calls(); len(calls) != 1 || !strings.HasPrefix(calls[0], "unlock "+f.sessions[113].AppID+" "+id) {
		t.Errorf("calls: %q", calls)
	}
	// The focus stays where values were shown, and moves on from what was removed.
	b.key(kb.Enter)
	b.wait("document.querySelector('td.value') && document.querySelector('#session').contains(document.activeElement)")
	b.key(kb.Escape)
	b.wait("!document.querySelector('#session').open && " + rows + ".length === 9 && document.activeElement.closest('#sessions tbody tr')")
	next := eval[string](b, "document.activeElement.innerText")
	b.key(kb.Enter)
	b.wait("document.querySelector('#session').open && document.querySelector('#session').contains(document.activeElement)")
	for i := 0; eval[string](b, "document.activeElement.innerText") != "Remove…"; i++ {
		if i > 10 {
			t.Fatal("the tab key does not come to Remove")
		}
		b.key(kb.Tab)
	}
	b.key(kb.Enter)
	b.wait("document.querySelector('#confirm').open")
	b.key(kb.Tab + kb.Enter)
	b.wait("!document.querySelector('#session').open && " + rows + ".length === 8 && document.activeElement.closest('#sessions tbody tr')")
	if now := eval[string](b, "document.activeElement.innerText"); now == next {
		t.Errorf("the focus is on %s, which was removed", now)
	}
}

// What applications and users wrote stays text.
func TestHostile(t *testing.T) {
	long(t)
	f := newFake(t)
	b := open(t, start(t), f.URL)
	b.wait(rows + ".length === 10")
	b.click("input[value=size]")
	b.wait("document.querySelector('#sessions tbody td').innerText === " + fmt.Sprintf("%q", hostile))
	b.click("#sessions tbody tr button")
	b.wait("document.querySelector('#session').open")
	b.click("#session-body .actions button")
	b.wait("document.querySelector('#session-body').innerText.includes('ed@example.org')")
	if title := eval[string](b, "document.title"); title != "aspstate on state1" {
		t.Errorf("title %q", title)
	}
	if n := eval[int](b, "document.querySelectorAll('img, script:not([src])').length"); n != 0 {
		t.Errorf("%d elements came from text", n)
	}
	// Nor do very many keys and a very long value keep the browser busy.
	if shown, length := eval[int](b, "document.querySelectorAll('.keys tbody tr').length"), eval[int](b, "document.querySelector('#session-body').innerText.length"); shown != 1001 || length > 100_000 {
		t.Errorf("%d entries of %d characters are shown", shown, length)
	}
	// Were a script to get in, it would not run.
	b.do(chromedp.Evaluate[chromedp.Void](`(() => { const s = document.createElement('script'); s.append("document.title = 'broken in'"); document.body.append(s); })()`))
	if complaints := b.take(); len(complaints) == 0 || !strings.Contains(complaints[0], "TrustedScript") {
		t.Errorf("complaints %q, want one of the policy", complaints)
	}
	if title := eval[string](b, "document.title"); title != "aspstate on state1" {
		t.Errorf("title %q", title)
	}
}

// contrasts lists the visible texts whose contrast to what is behind them is below WCAG's AA: 4.5, or 3 for large text.
const contrasts = `(() => {
  const rgb = (s) => s.match(/[\d.]+/g).map(Number);
  const lum = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest('noscript, option')) continue;
    const style = getComputedStyle(e);
    let behind = e, back;
    for (; behind; behind = behind.parentElement) { back = rgb(getComputedStyle(behind).backgroundColor); if (back.length === 3 || back[3] > 0.9) break; }
    const [a, b] = [lum(rgb(e instanceof SVGElement ? style.fill : style.color).slice(0, 3)), lum(back.slice(0, 3))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) bad.push(walk.currentNode.data.trim() + ' ' + ratio.toFixed(2));
  }
  return [...new Set(bad)];
})()`

// It fits a phone and a large screen, and can be read in light and dark.
func TestFits(t *testing.T) {
	long(t)
	f := newFake(t)
	f.set(func() {
		f.status["ready"], f.status["not_ready"] = false, "the store has been failing for 35s"
		f.status["switch"] = object{"stage": "moving", "from": "sqlite:/var/lib/aspstate/aspstate.db", "to": "postgres://aspstate@db1/sessions", "moved": 4000, "total": 10000}
	})
	browser := start(t)
	for _, scheme := range []string{"light", "dark"} {
		background := ""
		for _, width := range []int64{320, 390, 768, 1280, 2560} {
			b := open(t, browser, f.URL, size(width, 900), colours(scheme))
			b.wait(rows + ".length === 10 && document.querySelectorAll('.alert').length === 2")
			what := fmt.Sprintf("%s, %d pixels", scheme, width)
			if wide := eval[int64](b, "document.documentElement.scrollWidth"); wide > width {
				t.Errorf("%s: the page is %d wide; too wide are %s", what, wide, eval[string](b, fmt.Sprintf(
					"[...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > %d).map(e => e.tagName + '.' + e.className).slice(0, 5).join()", width)))
			}
			if bad := eval[[]string](b, contrasts); len(bad) > 0 {
				t.Errorf("%s: hard to read: %q", what, bad)
			}
			b.click("#sessions tbody tr button")
			b.wait("document.querySelector('#session').open")
			if sideways := eval[bool](b, "(d => d.scrollWidth > d.clientWidth || d.getBoundingClientRect().right > innerWidth)(document.querySelector('#session'))"); sideways {
				t.Errorf("%s: the session is wider than the screen", what)
			}
			if bad := eval[[]string](b, contrasts); len(bad) > 0 {
				t.Errorf("%s: hard to read in the session: %q", what, bad)
			}
			if width == 390 {
				if small := eval[string](b, "[...document.querySelectorAll('#session button')].filter(e => e.getBoundingClientRect().height < 40).map(e => e.innerText).join()"); small != "" {
					t.Errorf("%s: too small for a finger: %s", what, small)
				}
			}
			background = eval[string](b, "getComputedStyle(document.body).backgroundColor")
		}
		if dark := background == "rgb(18, 22, 27)"; dark != (scheme == "dark") {
			t.Errorf("%s: the background is %s", scheme, background)
		}
	}
}

// Faults are told, and it goes on when they are over.
func TestFaults(t *testing.T) {
	long(t)
	f := newFake(t)
	b := open(t, start(t), f.URL)
	b.wait(rows + ".length === 10")

	// Someone else was faster.
	b.click("#sessions tbody tr button")
	b.wait("document.querySelector('#session').open")
	f.set(func() { f.sessions[113].LockCookie++ })
	b.click("#session-body .actions button:nth-child(2)")
	b.click("#confirm-do")
	b.wait("document.querySelector('#toast').innerText.includes('another lock by now')")
	b.wait("document.querySelector('#session-body').innerText.includes('lock cookie 115')")
	f.set(func() { f.sessions = f.sessions[:113] })
	b.click("#session-body .actions .remove")
	b.click("#confirm-do")
	b.wait("document.querySelector('#toast').innerText.includes('gone') && !document.querySelector('#session').open")
	for _, c := range b.take() {
		if !strings.Contains(c, "409") && !strings.Contains(c, "404") {
			t.Errorf("the page complained: %s", c)
		}
	}

	b.wait(rows + ".length === 9")
	// The store fails: what is shown stays, and the fault is told in the server's words.
	f.set(func() { f.broken = 503 })
	b.click("#search button")
	b.wait("document.querySelector('#sessions-note').innerText === 'the store fails: connection refused'")
	b.wait("document.querySelector('#ready').innerText === 'No answer' && document.querySelector('#ready').title === 'the store fails: connection refused'")
	if n := eval[int](b, rows+".length"); n != 9 {
		t.Errorf("%d sessions are left", n)
	}
	f.set(func() { f.broken = 0 })
	b.wait("document.querySelector('#ready').innerText === 'Ready'")
	b.click("#search button")
	b.wait("document.querySelector('#sessions-note').hidden")
	b.take()

	// Signed out, for instance by a new token.
	if !eval[bool](b, "document.querySelector('#logout').hidden") {
		t.Error("one can sign out where no token is asked for")
	}
	f.set(func() { f.token = true })
	b.wait("document.title === 'Log in' && location.pathname === '/login'")
	b.take()
}
