package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"aspstate/backends/sqlite"
	"aspstate/config"
	"aspstate/migrations"
)

func migrateCommand(environ []string) *cobra.Command {
	group := &cobra.Command{
		Use:   "migrate",
		Short: "Look after the schema of the database",
		Long: "migrate brings the schema of the database up to date, or takes it away. An SQLite file is migrated by\n" +
			"\"aspstate serve\" as well, and only one process can have it open: stop the server first.\n\n" +
			"On PostgreSQL, \"migrate up --unlogged\" makes a table of sessions that is faster to write and is emptied by a\n" +
			"crash of the database, as ASPState in tempdb is by a restart. It has no effect on a table that exists.\n\n" +
			"On SQL Server, \"migrate up\" makes the tables and procedures of ASPState, or adopts those of aspnet_regsql: then it\n" +
			"adds one small table, and \"migrate down\" takes only that away.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("migrate %s is no command: see aspstate migrate --help", args[0])
			}
			return cmd.Help()
		},
	}
	var yes bool
	down := migrateStep(environ, "down", "Remove the schema, with all sessions", cobra.NoArgs, func(ctx context.Context, db database, _ []string) (string, error) {
		if !yes {
			return "", fmt.Errorf("migrate down deletes all sessions in %s: to do so, run it again with --yes", db.name)
		}
		return "the schema is removed", db.Down(ctx)
	})
	down.Flags().BoolVar(&yes, "yes", false, "yes, delete all sessions")
	up := migrateStep(environ, "up", "Bring the schema up to date", cobra.NoArgs, func(ctx context.Context, db database, _ []string) (string, error) {
		return "the schema is up to date", db.Up(ctx)
	})
	up.Flags().Bool(unlogged, false, "PostgreSQL: do not write sessions to the log, so that a crash of the database empties their table")
	group.AddCommand(
		up,
		down,
		migrateStep(environ, "status", "Say whether the schema is up to date, and what to do if not", cobra.NoArgs, func(ctx context.Context, db database, _ []string) (string, error) {
			s, err := db.Status(ctx)
			found := ""
			if s.Found != "" {
				found = "; found: " + s.Found
			}
			if err == nil {
				err = s.Err()
			}
			if err != nil {
				return "", fmt.Errorf("%w%s", err, found)
			}
			return fmt.Sprintf("the schema is up to date: version %d%s", s.Version, found), nil
		}),
		migrateStep(environ, "version", "Print the version of the schema, 0 for none", cobra.NoArgs, func(ctx context.Context, db database, _ []string) (string, error) {
			s, err := db.Status(ctx)
			return strconv.Itoa(s.Version), err
		}),
		migrateStep(environ, "force VERSION", "Note VERSION as the schema's after a repair by hand", cobra.ExactArgs(1), func(ctx context.Context, db database, args []string) (string, error) {
			version, err := strconv.Atoi(args[0])
			if err != nil {
				return "", fmt.Errorf("migrate force: %q is no version, which is a number", args[0])
			}
			return fmt.Sprintf("version %d is noted, no migration was run", version), db.Force(ctx, version)
		}),
	)
	return group
}

// unlogged is a flag of migrate up.
const unlogged = "unlogged"

// database is the one that a migrate command works on.
type database struct {
	*migrations.Migrator
	name  string // without a password
	close func() error
}

// migrateStep is one of migrate's commands; run returns what to print.
func migrateStep(environ []string, use, short string, args cobra.PositionalArgs, run func(context.Context, database, []string) (string, error)) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: args}
	load := addSettings(cmd, environ, "sqlConnectionString")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if c.Mode == config.ModeStateServer {
			return errors.New("mode StateServer keeps sessions in memory: there is no database to migrate; set mode: SQLServer")
		}
		db, err := openDatabase(cmd, c)
		if err != nil {
			return err
		}
		defer db.close()
		text, err := run(cmd.Context(), db, args)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}

func openDatabase(cmd *cobra.Command, c *config.Config) (database, error) {
	switch c.SQLConnectionString.Backend {
	case config.SQLServer:
		m, db, err := migrations.SQLServer(cmd.Context(), c.SQLConnectionString.Text())
		if err != nil {
			return database{}, err
		}
		return database{m, c.SQLConnectionString.String(), db.Close}, nil
	case config.Postgres:
		faster, _ := cmd.Flags().GetBool(unlogged) // false where there is no such flag
		log := newLogger(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level)
		m, db, err := migrations.Postgres(cmd.Context(), c.SQLConnectionString.Text(), faster, log)
		if err != nil {
			return database{}, err
		}
		return database{m, c.SQLConnectionString.String(), db.Close}, nil
	}
	path := c.SQLConnectionString.Path
	// Opening would create it; only up may do that.
	if _, err := os.Stat(path); cmd.Name() != "up" && errors.Is(err, fs.ErrNotExist) {
		return database{}, fmt.Errorf("migrate %s: there is no database yet: %w; aspstate migrate up creates it", cmd.Name(), err)
	}
	file, err := sqlite.Open(path)
	if err != nil {
		return database{}, err
	}
	m, err := migrations.SQLite(file.DB())
	if err != nil {
		file.Close()
		return database{}, err
	}
	return database{m, path, file.Close}, nil
}
