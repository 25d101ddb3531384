package stateserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/server"
	"aspstate/server/stateserver/transcript"
)

// sentBytes are the requests of all transcripts: seeds for the fuzz targets.
func sentBytes(t testing.TB) (sent [][]byte) {
	for name, text := range transcripts(t) {
		steps, err := transcript.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, step := range steps {
			if step.Send != nil {
				sent = append(sent, step.Send)
			}
		}
	}
	return sent
}

func transcripts(t testing.TB) map[string]string {
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	texts := make(map[string]string)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[strings.TrimSuffix(filepath.Base(file), ".txt")] = string(text)
	}
	return texts
}

func TestFindHeadHoldsItsLimits(t *testing.T) {
	const maxLine, maxHeaders = 20, 30
	for _, c := range []struct {
		in   string
		want int
		err  error
	}{
		{"GET / HTTP/1.1\r\n\r\n", 18, nil},
		{"GET / HTTP/1.1\n\nrest", 16, nil},
		{"GET / HTTP/1.1\r\nA: b\r\n\r\nrest", 24, nil},
		{"GET / HTTP/1.1\r\nA: b\r\n", 0, nil},
		{"GET / HTTP/1.1", 0, nil},
		{"", 0, nil},
		{strings.Repeat("x", maxLine), 0, nil},
		{strings.Repeat("x", maxLine+1), 0, errLineTooLong},
		{strings.Repeat("x", maxLine+1) + "\r\n", 0, errLineTooLong},
		{"GET / HTTP/1.1\n" + strings.Repeat("x", maxHeaders-1), 0, nil},
		{"GET / HTTP/1.1\n" + strings.Repeat("x", maxHeaders+1), 0, errHeadTooLong},
		{"GET / HTTP/1.1\n" + strings.Repeat("x: y\n", maxHeaders), 0, errHeadTooLong},
	} {
		if n, err := findHead([]byte(c.in), maxLine, maxHeaders); n != c.want || err != c.err {
			t.Errorf("findHead(%q) = %d, %v; want %d, %v", c.in, n, err, c.want, c.err)
		}
	}
}

func TestLockDateIsTicksInLocalTime(t *testing.T) {
	local := time.Local
	defer func() { time.Local = local }()
	for _, zone := range []*time.Location{time.UTC, time.FixedZone("east", 5*3600+1800), time.FixedZone("west", -8*3600)} {
		time.Local = zone
		// ms-asp.md §3 gives this value.
		if got := ticks(time.Date(2024, 1, 2, 3, 4, 5, 0, zone)); got != 638397614450000000 {
			t.Errorf("ticks in %v = %d, want 638397614450000000", zone, got)
		}
		if got := ticks(time.Date(2024, 1, 2, 3, 4, 5, 1234567, zone).UTC()); got != 638397614450012345 {
			t.Errorf("ticks in %v = %d, want 638397614450012345", zone, got)
		}
	}
}

func TestSplitKey(t *testing.T) {
	const (
		hash2    = "oXvpnxcuEWqKAgOETha32JavYZ6eCqrpTN5/HxWS854=" // of /LM/W3SVC/2/ROOT, from a capture
		otherHex = "NDbkwGi0191wFdDv0yOUOobtHns="                 // keyed with a machine key
	)
	if got := hashOf("/LM/W3SVC/2/ROOT"); got != hash2 {
		t.Fatalf("hash = %s, want %s", got, hash2)
	}
	for _, c := range []struct{ key, application, id string }{
		{"/LM/W3SVC/2/ROOT(" + hash2 + ")/abc", "/lm/w3svc/2/root", "abc"},
		{"/lm/w3svc/2/root(" + hashOf("/lm/w3svc/2/root") + ")/abc", "/lm/w3svc/2/root", "abc"},
		{"/LM/W3SVC/2/ROOT(" + hash2 + ")/a)/b", "/lm/w3svc/2/root", "a)/b"},
		{"/LM/W3SVC/2/ROOT(" + hash2 + ")/", "/lm/w3svc/2/root", ""},
		// The client's "/" before an app id that has none is not hashed.
		{"/Cassini(" + hashOf("Cassini") + ")/abc", "cassini", "abc"},
		{"/Cassini(" + hashOf("/Cassini") + ")/abc", "/cassini", "abc"},
		{"//Cassini(" + hashOf("/Cassini") + ")/abc", "//Cassini(" + hashOf("/Cassini") + ")/", "abc"},
		// A hash that does not fit leaves the name as it is.
		{"/LM/W3SVC/3/ROOT(" + hash2 + ")/abc", "/LM/W3SVC/3/ROOT(" + hash2 + ")/", "abc"},
		{"/LM/W3SVC/1/ROOT(" + otherHex + ")/abc", "/LM/W3SVC/1/ROOT(" + otherHex + ")/", "abc"},
		{"/a(x)/b(y)/c", "/a(x)/b(y)/", "c"},
		// The shortest prefix that fits, though a longer one would do as well.
		{"/a(" + hashOf("/a") + ")/b(" + hashOf("/a("+hashOf("/a")+")/b") + ")/c", "/a", "b(" + hashOf("/a("+hashOf("/a")+")/b") + ")/c"},
		{"/x(y)/b(" + hashOf("/x(y)/b") + ")/c", "/x(y)/b", "c"},
		{"no-application", "", "no-application"},
		{"/LM/W3SVC/2/ROOT/abc", "", "/LM/W3SVC/2/ROOT/abc"},
		{"(" + hashOf("") + ")/abc", "(" + hashOf("") + ")/", "abc"},
		{"/a/(" + hashOf("/a/") + ")/abc", "/a/(" + hashOf("/a/") + ")/", "abc"},
	} {
		if application, id := splitKey(c.key); application != c.application || id != c.id {
			t.Errorf("splitKey(%q) = %q, %q; want %q, %q", c.key, application, id, c.application, c.id)
		}
	}
}

// A panic, or a request read past its end, would let one client end every session of
// the farm, or read another client's.
func FuzzRequest(f *testing.F) {
	for _, sent := range sentBytes(f) {
		f.Add(sent)
	}
	const maxLine, maxHeaders = 256, 512
	f.Fuzz(func(t *testing.T, in []byte) {
		n, err := findHead(in, maxLine, maxHeaders)
		if n < 0 || n > len(in) || n > maxLine+maxHeaders+1 || err != nil && n != 0 {
			t.Fatalf("findHead = %d, %v for %d bytes", n, err, len(in))
		}
		if n == 0 {
			if err == nil && len(in) > maxLine+maxHeaders+1 {
				t.Fatalf("%d bytes are no head and no error", len(in))
			}
			return
		}
		// The end does not depend on how much of it has arrived.
		for cut := range n {
			if m, _ := findHead(in[:cut], maxLine, maxHeaders); m != 0 {
				t.Fatalf("findHead of the first %d bytes = %d, of all %d", cut, m, n)
			}
		}
		var req request
		if parseHead(in[:n], &req) != nil {
			return
		}
		if req.contentLength < 0 || req.lockCookie.cookie < backends.NoCookie || len(req.target) == 0 || bytes.ContainsAny(req.target, " \n") ||
			req.malformed == "" && (req.timeout < 0 || req.timeout > maxTimeout) && req.verb == verbPut {
			t.Fatalf("parsed %q as %+v", in[:n], req)
		}
	})
}

// Two targets that are mixed up give one user another's session.
func FuzzTarget(f *testing.F) {
	for _, sent := range sentBytes(f) {
		if _, rest, ok := bytes.Cut(sent, []byte{' '}); ok {
			target, _, _ := bytes.Cut(rest, []byte{' '})
			f.Add(target)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		sessions := server.NewSessions(memory.New(0), time.Second, discard)
		tg := targets{sessions: sessions, prefixes: make(map[string]*server.Application)}
		first, err := tg.find(raw, new(ids))
		if err != nil {
			return
		}
		if utf16Len(first.ID) > backends.MaxSessionID || strings.ContainsRune(first.App.Name+first.ID, 0) {
			t.Fatalf("%q is %q, %q", raw, first.App.Name, first.ID)
		}
		// Once the application is known, the shortcut must find the same session.
		w := backends.Write{Data: []byte{1}, LockCookie: backends.NoCookie}
		if err := sessions.Set(t.Context(), server.Request{Arrived: time.Now()}, first, w); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			again, err := tg.find(raw, new(ids))
			if err != nil || again.App.Name != first.App.Name || again.ID != first.ID {
				t.Fatalf("%q is %q, %q and then %q, %q (%v)", raw, first.App.Name, first.ID, again.App.Name, again.ID, err)
			}
		}
		// Whatever was remembered for it must not catch its neighbours.
		for _, other := range [][]byte{append(bytes.Clone(raw), 'x'), append([]byte("/"), raw...), bytes.ToLower(raw)} {
			want, err := (&targets{sessions: sessions, prefixes: make(map[string]*server.Application)}).find(other, new(ids))
			got, err2 := tg.find(other, new(ids))
			if (err == nil) != (err2 == nil) || err == nil && (got.App.Name != want.App.Name || got.ID != want.ID) {
				t.Fatalf("%q is %q, %q, want %q, %q", other, got.App.Name, got.ID, want.App.Name, want.ID)
			}
		}
	})
}
