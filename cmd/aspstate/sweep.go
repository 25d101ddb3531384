package main

import (
	"context"
	"errors"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"aspstate/config"
	"aspstate/server"
)

func sweepCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sweep",
		Short: "Delete expired sessions, without serving",
		Long: "sweep deletes expired sessions from a SQL database until SIGTERM or SIGINT, as \"aspstate serve\" does beside serving.\n" +
			"It is for an ASPState database that web applications use directly and whose own job is missing, such as on SQL Server\n" +
			"Express and Azure SQL. Run \"aspstate migrate up\" first. Any number may run: one sweeps at a time.",
		Args: cobra.NoArgs,
	}
	load := addSettings(cmd, environ, "sqlConnectionString", "sweep.interval", "sweep.batch", "log.level", "log.format")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		if c.Mode == config.ModeStateServer {
			return errors.New("mode StateServer keeps sessions in memory: there is no database to sweep; set mode: SQLServer")
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return sweep(ctx, c, newLogger(cmd.ErrOrStderr(), c.Log.Format, c.Log.Level))
	}
	return cmd
}

// sweep sweeps until ctx ends.
func sweep(ctx context.Context, c *config.Config, log *slog.Logger) error {
	store, err := openStore(ctx, c.Place(), c, log)
	if err != nil {
		return err
	}
	sweeper := server.Sweeper{Store: store, Log: log}
	sweeper.Configure(c.Sweep.Interval, c.Sweep.Batch)
	log.Info("sweeping", "database", c.Place(), "interval", c.Sweep.Interval)
	sweeper.Run(ctx)
	return store.Close()
}
