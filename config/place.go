package config

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
)

// Place is where sessions are: in memory, or in the database of a connection string.
type Place struct {
	Mode Mode
	ConnectionString
}

// Place returns where the settings have sessions kept.
func (c *Config) Place() Place {
	if c.Mode == ModeStateServer {
		return Place{Mode: ModeStateServer}
	}
	return Place{ModeSQLServer, c.SQLConnectionString}
}

// Text is what PlaceOf reads, password included.
func (p Place) Text() string {
	if p.Mode == ModeStateServer {
		return string(ModeStateServer)
	}
	return p.ConnectionString.Text()
}

// String is Text without a password.
func (p Place) String() string {
	if p.Mode == ModeStateServer {
		return string(ModeStateServer)
	}
	return p.ConnectionString.String()
}

// LogValue is String.
func (p Place) LogValue() slog.Value { return slog.StringValue(p.String()) }

// PlaceOf reads what Place.Text wrote.
func PlaceOf(text string) (Place, error) {
	if text == string(ModeStateServer) {
		return Place{Mode: ModeStateServer}, nil
	}
	c, err := recognize(text, "")
	if err == nil && !c.Backend.served() {
		err = fmt.Errorf("this version of aspstate cannot keep sessions in %s", c.Backend)
	}
	return Place{ModeSQLServer, c}, err
}

// PlaceAt reads what a command takes as a place for sessions: StateServer, or a connection string in
// any form that sqlConnectionString has. Relative paths start at the working directory.
func PlaceAt(text string, environ []string) (Place, error) {
	if strings.EqualFold(text, string(ModeStateServer)) {
		return Place{Mode: ModeStateServer}, nil
	}
	l := &loader{env: map[string]string{}, source: map[string]string{}, unreadable: map[string]bool{}}
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			l.env[name] = value
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		return Place{}, err
	}
	c := &Config{Mode: ModeSQLServer, SQLConnectionString: ConnectionString{text: text}}
	l.source["sqlConnectionString"] = "--"
	l.resolve(c, dir)
	return c.Place(), errors.Join(l.faults...)
}

// IsElsewhere reports whether a text says where a connection string is to be read from (env:NAME, file:PATH).
func IsElsewhere(text string) bool { return elsewhere(text) }
