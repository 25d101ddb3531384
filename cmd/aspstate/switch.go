package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"aspstate/config"
	"aspstate/server/admin"
)

func switchCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "switch --to PLACE",
		Short: "Move all sessions to another store while serving",
		Long: "switch moves all sessions of the running server, and of all servers that share its database, to another store\n" +
			"while they serve. A PLACE is a connection string as in sqlConnectionString, env:NAME or file:PATH to have the server read it\n" +
			"from there, or StateServer for its memory. Write the same into the settings of every server before its next start:\n" +
			"a server does not start on a store that sessions were moved away from.",
		Args: cobra.NoArgs,
	}
	connect := addOperators(cmd, environ)
	to := cmd.Flags().String("to", "", "`PLACE` to move to")
	cmd.MarkFlagRequired("to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := config.PlaceAt(*to, environ); err != nil && !config.IsElsewhere(*to) {
			return fmt.Errorf("--to: %s", explain(err))
		}
		o, err := connect()
		if err != nil {
			return err
		}
		return switchStore(cmd.Context(), o, *to, cmd.OutOrStdout(), time.Second)
	}
	return cmd
}

// switchStore begins the switch and shows how far it is until it is complete.
func switchStore(ctx context.Context, o *operators, to string, w io.Writer, every time.Duration) error {
	var begun *admin.Switch
	if err := o.do(ctx, http.MethodPost, "/api/switch", map[string]string{"to": to}, &begun); err != nil {
		return err
	}
	if begun == nil {
		fmt.Fprintln(w, "the sessions are there already")
		return nil
	}
	fmt.Fprintf(w, "sessions are served from %s now; those that nobody asks for are being copied\n", begun.To)
	for {
		var status admin.Status
		if err := o.get(ctx, "/api/status", nil, &status); err != nil {
			return fmt.Errorf("the switch goes on, but how far it is cannot be asked: %w", err)
		}
		s := status.Switch
		switch {
		case s == nil:
			return errors.New("the server knows of no switch: was it restarted?")
		case s.Stage == "moved":
			fmt.Fprintf(w, "complete: %d sessions; write %q into the settings of every server before its next start\n", s.Total, s.To)
			return nil
		case s.Error != "":
			fmt.Fprintf(w, "%d of %d sessions; copying fails and is tried again: %s\n", s.Moved, s.Total, s.Error)
		case s.Copying:
			fmt.Fprintf(w, "%d of %d sessions, %.0f a second, %v left\n", s.Moved, s.Total, s.Rate, time.Duration(s.Left*float64(time.Second)).Round(time.Second))
		default:
			fmt.Fprintf(w, "another server copies, or one is about to; %d sessions were asked for here\n", s.Claimed)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}
