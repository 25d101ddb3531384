package memory

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"aspstate/backends"
)

func register(t *testing.T, s *Store, name string) backends.AppID {
	t.Helper()
	id, err := s.Application(t.Context(), name, true)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func known(t *testing.T, s *Store, name string) bool {
	t.Helper()
	_, err := s.Application(t.Context(), name, false)
	if err != nil && !errors.Is(err, backends.ErrUnknownApplication) {
		t.Fatal(err)
	}
	return err == nil
}

func TestApplicationsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		for i := range maxApplications {
			register(t, s, fmt.Sprint("/app", i))
		}
		if _, err := s.Application(t.Context(), "/one too many", true); !errors.Is(err, backends.ErrFull) {
			t.Fatalf("Application: %v, want ErrFull", err)
		}
		if !known(t, s, "/app7") || known(t, s, "/one too many") {
			t.Fatal("a refused name has changed the table")
		}
		register(t, s, "/app7")
		time.Sleep(forgetAfter)
		mustSweep(t, s, 1, 0)
		register(t, s, "/one too many")
	})
}

func TestIdleApplicationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		for _, name := range []string{"/asked", "/idle", "/in use", "/used until tomorrow"} {
			register(t, s, name)
		}
		key := backends.Key{App: register(t, s, "/in use"), ID: "a"}
		mustSet(t, s, key, backends.NeverExpires)
		mustSet(t, s, backends.Key{App: register(t, s, "/used until tomorrow"), ID: "a"}, forgetAfter)

		time.Sleep(forgetAfter - 1)
		mustSweep(t, s, 10, 0)
		if n := len(s.apps.byName); n != 4 {
			t.Fatalf("%d applications are known, want all 4", n)
		}
		if !known(t, s, "/asked") {
			t.Fatal("/asked is unknown")
		}
		time.Sleep(time.Nanosecond)
		mustSweep(t, s, 10, 0)
		if n := len(s.apps.byName); n != 3 {
			t.Fatalf("%d applications are known, want 3", n)
		}
		for range 3 { // long after, with nobody asking
			time.Sleep(2 * forgetAfter)
			if _, err := s.DeleteExpired(t.Context(), 10); err != nil {
				t.Fatal(err)
			}
		}
		if len(s.apps.byName) != 1 || len(s.apps.ids) != 1 || !known(t, s, "/in use") {
			t.Fatalf("%d applications are known, want the one with a session", len(s.apps.byName))
		}
		if err := s.Remove(t.Context(), key, tok, 1, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
		time.Sleep(forgetAfter)
		mustSweep(t, s, 10, 0)
		if known(t, s, "/in use") {
			t.Fatal("an application is known a day after its last session")
		}
	})
}

// A forgotten name's number is free again, and a kept one's is not.
func TestForgottenNumbers(t *testing.T) {
	const one, two = "/lm/w3svc/1/root/ozbyjek", "/lm/w3svc/1/root/vewemtr"
	synctest.Test(t, func(t *testing.T) {
		s := New(0)
		first, second := register(t, s, one), register(t, s, two)
		mustSet(t, s, backends.Key{App: second}, backends.NeverExpires)
		time.Sleep(forgetAfter)
		mustSweep(t, s, 10, 0)
		if known(t, s, one) {
			t.Fatal("a name without sessions is still known")
		}
		if again := register(t, s, two); again != second {
			t.Fatalf("the AppID of a name with sessions was %d and is %d", second, again)
		}
		if again := register(t, s, one); again != first {
			t.Fatalf("the AppID was %d and is %d", first, again)
		}
	})
}
