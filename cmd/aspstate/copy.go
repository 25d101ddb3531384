package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"aspstate/backends"
	"aspstate/config"
	"aspstate/server"
)

func copyCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "copy --from PLACE --to PLACE",
		Short: "Copy all sessions from one database to another",
		Long: "copy copies all sessions, with their locks and what is left of their time, from one database to another that no\n" +
			"server uses. A session that is there already stays as it is: copying again changes nothing. A PLACE is a\n" +
			"connection string as in sqlConnectionString, or env:NAME or file:PATH to read it from there.\n" +
			"While servers are running use \"aspstate switch\", which loses nothing that changes meanwhile.",
		Args: cobra.NoArgs,
	}
	from := cmd.Flags().String("from", "", "`PLACE` to copy from")
	to := cmd.Flags().String("to", "", "`PLACE` to copy to")
	dry := cmd.Flags().Bool("dry-run", false, "count what would be copied, and copy nothing")
	migrate := cmd.Flags().Bool("auto-migrate", false, "bring the schema of --to up to date first; an SQLite file always is")
	cmd.MarkFlagRequired("from")
	cmd.MarkFlagRequired("to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		source, err := openForCopy(cmd.Context(), "--from", *from, environ, false)
		if err != nil {
			return err
		}
		defer source.Close()
		target, err := openForCopy(cmd.Context(), "--to", *to, environ, *migrate)
		if err != nil {
			return err
		}
		return errors.Join(copySessions(cmd.Context(), source, target, *dry, cmd.OutOrStdout(), cmd.ErrOrStderr()), target.Close())
	}
	return cmd
}

type movableStore interface {
	backends.Store
	backends.Movable
}

func openForCopy(ctx context.Context, flag, text string, environ []string, autoMigrate bool) (movableStore, error) {
	place, err := config.PlaceAt(text, environ)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if place.Mode == config.ModeStateServer {
		return nil, fmt.Errorf("%s: the memory of a server can only be reached by that server: use aspstate switch", flag)
	}
	store, err := openStore(ctx, place, &config.Config{AutoMigrate: autoMigrate}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	movable, ok := store.(movableStore)
	if !ok {
		store.Close()
		return nil, fmt.Errorf("%s: sessions cannot be copied there", flag)
	}
	return movable, nil
}

// copySessions copies, and shows how far it is once a second.
func copySessions(ctx context.Context, from, to movableStore, dry bool, stdout, stderr io.Writer) error {
	total, err := count(ctx, from)
	if err != nil {
		return err
	}
	before, err := count(ctx, to)
	if err != nil {
		return err
	}
	if dry {
		fmt.Fprintf(stdout, "%d sessions would be copied, less those that are among the %d there already\n", total, before)
		return nil
	}
	begun, told, done := time.Now(), time.Now(), 0
	c := server.Copy{From: from, To: to, Done: func(n int) {
		done += n
		if time.Since(told) >= time.Second {
			told = time.Now()
			rate := float64(done) / time.Since(begun).Seconds()
			left := time.Duration(float64(max(0, total-done)) / rate * float64(time.Second))
			fmt.Fprintf(stderr, "%d of %d sessions, %.0f a second, %v left\n", done, total, rate, left.Round(time.Second))
		}
	}}
	sum, err := c.Run(ctx)
	if err != nil {
		return fmt.Errorf("copied %d sessions, then: %w; copy again to go on", sum.Copied, err)
	}
	after, err := count(ctx, to)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d sessions found, %d copied, %d were there already; now there are %d, before there were %d\n",
		sum.Found, sum.Copied, sum.Found-sum.Copied, after, before)
	return nil
}

func count(ctx context.Context, store backends.Inspector) (n int, err error) {
	apps, err := store.Applications(ctx)
	for _, app := range apps {
		n += app.Sessions
	}
	return n, err
}
