package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"aspstate/backends"
	"aspstate/backends/postgres"
	"aspstate/backends/sqlserver"
	"aspstate/config"
)

func checkCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the settings and show those in force, without starting anything",
		Args:  cobra.NoArgs,
	}
	load := addSettings(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if err := printSettings(cmd.OutOrStdout(), c); err != nil {
			return err
		}
		for _, w := range c.Warnings {
			fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w)
		}
		if note := aliasesNote(c); note != "" {
			fmt.Fprintln(cmd.ErrOrStderr(), "note: "+note)
		}
		for _, note := range encryptionNotes(c) {
			fmt.Fprintln(cmd.ErrOrStderr(), "note: "+note)
		}
		return checkDatabase(cmd.Context(), c)
	}
	return cmd
}

// aliasesNote says what aliases cannot do in a SQL Server database, "" where there is nothing to say.
func aliasesNote(c *config.Config) string {
	if len(c.Applications) == 0 || c.Mode != config.ModeSQLServer || c.SQLConnectionString.Backend != config.SQLServer {
		return ""
	}
	return `web applications in mode="SQLServer" that use the database directly: aliases (applications) do not act on them, only on aspstate's own ports`
}

// printSettings lists the settings in force and where each was found.
func printSettings(w io.Writer, c *config.Config) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range c.Settings() {
		source := s.Source
		if source == "" {
			source = "default"
		}
		fmt.Fprintf(tab, "%s\t%s\t(%s)\n", s.Key, s.Value, source)
	}
	return tab.Flush()
}

// checkDatabase finds out what would keep the server from opening its database,
// and leaves it as it is. The SQLite file may be in use by a running server.
func checkDatabase(ctx context.Context, c *config.Config) error {
	if c.Mode == config.ModeStateServer {
		return nil
	}
	switch c.SQLConnectionString.Backend {
	case config.Postgres:
		return checkServed(ctx, c, func(ctx context.Context, log *slog.Logger) (backends.Store, error) {
			return postgres.Open(ctx, c.SQLConnectionString.Text(), log)
		})
	case config.SQLServer:
		return checkServed(ctx, c, func(ctx context.Context, log *slog.Logger) (backends.Store, error) {
			return sqlserver.Open(ctx, c.SQLConnectionString.Text(), log)
		})
	}
	path := c.SQLConnectionString.Path
	fault := func(problem error, remedy string) error {
		return config.Fault{Key: "sqlConnectionString", Problem: problem.Error(), Remedy: remedy}
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fault(err, "give the user that runs aspstate access to it")
	case !info.Mode().IsRegular():
		return fault(fmt.Errorf("%s is not a file", path), "name a file")
	default:
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fault(err, "give the user that runs aspstate write access to it")
		}
		f.Close()
	}
	// SQLite writes its journal beside the database. Missing folders are made by serve.
	dir := filepath.Dir(path)
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		dir = filepath.Dir(dir)
	}
	f, err := os.CreateTemp(dir, ".aspstate-check-*")
	if err != nil {
		return fault(err, "name a file in a folder where the user that runs aspstate may write")
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// checkServed tries whether the database answers and has the schema.
func checkServed(ctx context.Context, c *config.Config, open func(context.Context, *slog.Logger) (backends.Store, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	store, err := open(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return config.Fault{Key: "sqlConnectionString", Problem: err.Error(), Remedy: "see that the database can be reached from here and is migrated"}
	}
	if err := checkDirectUse(ctx, store, c); err != nil {
		return errors.Join(err, store.Close())
	}
	return store.Close()
}
