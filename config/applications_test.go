package config

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestApplicationsInAFile(t *testing.T) {
	c := mustLoad(t, "applications:\n- name: shop\n  ids: [/LM/W3SVC/1/ROOT, /LM/W3SVC/7/ROOT]\n- {Name: intranet, IDs: /lm/w3svc/2/root}\n", nil)
	want := Applications{{"shop", []string{"/LM/W3SVC/1/ROOT", "/LM/W3SVC/7/ROOT"}}, {"intranet", []string{"/lm/w3svc/2/root"}}}
	if !reflect.DeepEqual(c.Applications, want) {
		t.Errorf("got %v, want %v", c.Applications, want)
	}
	again := mustLoad(t, "", []string{"ASPSTATE_APPLICATIONS=" + c.Applications.String()})
	if !reflect.DeepEqual(again.Applications, want) {
		t.Errorf("written and read again they are %v, want %v", again.Applications, want)
	}
}

func TestPlaceAt(t *testing.T) {
	here, err := filepath.Abs("sessions.db")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ text, mode, shown string }{
		{"stateserver", "StateServer", ""},
		{"sqlite:sessions.db", "SQLServer", "sqlite:" + here},
		{"postgres://me@db/sessions", "SQLServer", "postgres://me@db/sessions"},
		{"env:DB", "SQLServer", "env:DB postgres://me@db/sessions"},
	} {
		at, err := PlaceAt(test.text, []string{"DB=postgres://me:secret@db/sessions"})
		if err != nil || string(at.Mode) != test.mode || at.Mode == ModeSQLServer && at.String() != test.shown {
			t.Errorf("%s is %s %q, %v, want %s %q", test.text, at.Mode, at.String(), err, test.mode, test.shown)
		}
		if again, err := PlaceOf(at.Text()); err != nil || again.Text() != at.Text() {
			t.Errorf("%s is %q, %v when it is read again", at, again, err)
		}
	}
	for text, want := range map[string]string{"nonsense": "has no form that aspstate knows", "env:NONE": "NONE is not set", "postgres://me:secret@db/x": "password on the command line"} {
		_, err := PlaceAt(text, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s is refused with %v, want %q", text, err, want)
		}
	}
}
