package sqlite

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"aspstate/backends"
)

// Three names whose hashes are f197a8d4, f197a8d4 and f197a8d5.
const (
	appA      = "/lm/w3svc/1/root/ozbyjek"
	appB      = "/lm/w3svc/1/root/vewemtr"
	appBeside = "/lm/w3svc/1/root/ozbyjej"
)

func appID(t testing.TB, s *Store, name string) backends.AppID {
	t.Helper()
	id, err := s.Application(t.Context(), name, true)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// unasked lets time go by since an application was last asked for.
func (s *Store) unasked(name string, d time.Duration) {
	s.apps.byName[name].asked.Add(-d.Milliseconds())
}

func rows(t testing.TB, s *Store) (n int) {
	t.Helper()
	if err := s.file.DB().QueryRowContext(t.Context(), "SELECT count(*) FROM applications").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func sweep(t testing.TB, s *Store) {
	t.Helper()
	if _, err := s.DeleteExpired(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
}

func TestUnusedApplicationsAreForgotten(t *testing.T) {
	s := newStore(t)
	used, unused, young := appID(t, s, appA), appID(t, s, appBeside), appID(t, s, "young")
	set(t, s, backends.Key{App: used, ID: "session"}, write(data(1)))
	for _, name := range []string{appA, appBeside} {
		s.unasked(name, forgetAfter+time.Second)
	}
	s.unasked("young", forgetAfter-time.Minute)
	sweep(t, s)
	if n := rows(t, s); n != 2 {
		t.Fatalf("%d applications are left, want 2", n)
	}
	if !s.apps.knows(appA) {
		t.Error("an application with sessions has to be looked up")
	}
	for name, want := range map[string]backends.AppID{appA: used, "young": young} {
		if id, err := s.Application(t.Context(), name, false); id != want || err != nil {
			t.Errorf("%s: AppID %d, error %v, want %d", name, id, err, want)
		}
	}
	if _, err := s.Application(t.Context(), appBeside, false); err != backends.ErrUnknownApplication {
		t.Errorf("the unused application: %v", err)
	}
	// It comes back under its number.
	if id := appID(t, s, appBeside); id != unused {
		t.Errorf("AppID was %d and is now %d", unused, id)
	}
}

func TestForgettingSparesWhatIsAskedForMeanwhile(t *testing.T) {
	s := newStore(t)
	id := appID(t, s, appA)
	s.unasked(appA, forgetAfter+time.Second)
	resume := stall(t, s)
	done := make(chan error)
	go func() { // its part of DeleteExpired comes after the question
		_, err := s.DeleteExpired(context.Background(), 0)
		done <- err
	}()
	queued(t, s, 1)
	tend := s.queue.ops[0]
	s.queue.withdraw(tend)
	answer := make(chan backends.AppID)
	go func() { answer <- appID(t, s, appA) }()
	queued(t, s, 1)
	s.queue.add(tend)
	resume()
	if got := <-answer; got != id {
		t.Errorf("AppID is %d, want %d", got, id)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := rows(t, s); n != 1 {
		t.Fatal("the application was forgotten although it was just asked for")
	}
}

func TestKnownApplicationsAreAnsweredWhileTheWriterIsBusy(t *testing.T) {
	s := newStore(t)
	id := appID(t, s, appA)
	resume := stall(t, s)
	defer resume()
	for _, create := range []bool{true, false} {
		if got, err := s.Application(t.Context(), appA, create); got != id || err != nil {
			t.Errorf("AppID is %d, error %v", got, err)
		}
	}
}

func TestLastUseIsNotedOnceAnHour(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openStore(t, path)
	appID(t, s, appA)
	lastUse := func() (ms int64) {
		t.Helper()
		if err := s.file.DB().QueryRowContext(t.Context(), "SELECT last_use FROM applications").Scan(&ms); err != nil {
			t.Fatal(err)
		}
		return ms
	}
	first := lastUse()
	use := func(after time.Duration) int64 {
		s.apps.byName[appA].asked.Store(first + after.Milliseconds())
		sweep(t, s)
		return (lastUse() - first) / 1000
	}
	for _, c := range []struct {
		after time.Duration
		want  int64
	}{{59 * time.Minute, 0}, {61 * time.Minute, 3660}, {90 * time.Minute, 3660}, {150 * time.Minute, 9000}} {
		if got := use(c.after); got != c.want {
			t.Errorf("used after %v the table says %d s, want %d s", c.after, got, c.want)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	if asked := s.apps.byName[appA].asked.Load(); asked != first+9000_000 {
		t.Errorf("the last use is %d after opening, want %d", asked, first+9000_000)
	}
}

func TestNumberWithOrphansGoesToItsOwnNameOnly(t *testing.T) {
	s := newStore(t)
	hash := backends.HashAppID(appA)
	forget := func() {
		t.Helper()
		if _, err := s.file.DB().ExecContext(t.Context(), "DELETE FROM applications"); err != nil {
			t.Fatal(err)
		}
		clear(s.apps.byName)
	}
	// Sessions are left under f197a8d4 and f197a8d5.
	set(t, s, backends.Key{App: hash, ID: "session"}, write(data(1)))
	set(t, s, backends.Key{App: hash + 1, ID: "session"}, write(data(2)))
	if id := appID(t, s, appA); id != hash {
		t.Errorf("the name whose hash it is has AppID %08x, want %08x", uint32(id), uint32(hash))
	}
	if id := appID(t, s, appB); id != hash+2 {
		t.Errorf("the second name has AppID %08x, want %08x: sessions of an unknown name are under the one before", uint32(id), uint32(hash+2))
	}
	forget()
	if id := appID(t, s, appBeside); id != hash+1 {
		t.Errorf("AppID %08x, want the hash %08x", uint32(id), uint32(hash+1))
	}
}

func TestTooManyApplications(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	s := openStore(t, path)
	if _, err := s.file.DB().ExecContext(t.Context(), `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
		INSERT INTO applications SELECT i, 'app' || i, 0 FROM n`, maxApplications-1); err != nil {
		t.Fatal(err)
	}
	appID(t, s, "the last")
	// Whether the store has them in memory or not.
	for range 2 {
		_, err := s.Application(t.Context(), "one too many", true)
		wantIs(t, err, backends.ErrFull)
		if _, err := s.Application(t.Context(), "one too many", false); err != backends.ErrUnknownApplication {
			t.Errorf("an unknown application: %v", err)
		}
		appID(t, s, "the last")
		appID(t, s, "app5000")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, path)
	}
	resume := stall(t, s) // the writer is not troubled with names that there is no room for
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	_, err := s.Application(ctx, "one too many", true)
	wantIs(t, err, backends.ErrFull)
	cancel()
	resume()

	// Those of long ago go, some at a time.
	for n := maxApplications; n > maxApplications-3*forgetAtOnce; n -= forgetAtOnce {
		if got := rows(t, s); got != n {
			t.Fatalf("%d applications, want %d", got, n)
		}
		sweep(t, s)
	}
	appID(t, s, "one more")
}

func TestAppIDsWrapAround(t *testing.T) {
	s := newStore(t)
	for _, id := range []int64{1<<31 - 1, -1 << 31} {
		if _, err := s.file.DB().ExecContext(t.Context(), "INSERT INTO applications VALUES (?, ?, 0)", id, fmt.Sprint(id)); err != nil {
			t.Fatal(err)
		}
	}
	var got backends.AppID
	inWriter(t, s, func(w *writer) (err error) {
		got, err = w.freeAppID(1<<31 - 1)
		return err
	})
	if got != -1<<31+1 {
		t.Errorf("past the largest AppID comes %d", got)
	}
}
