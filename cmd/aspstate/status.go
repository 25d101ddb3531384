package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"aspstate/server/admin"
)

func statusCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show how a running server does", Args: cobra.NoArgs}
	connect, shows := addOperators(cmd, environ), addShows(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		return shows.run(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (any, func(io.Writer), error) {
			var s admin.Status
			err := o.get(ctx, "/api/status", nil, &s)
			return s, func(w io.Writer) { statusPage(w, s) }, err
		})
	}
	return cmd
}

func statusPage(w io.Writer, s admin.Status) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-12s "+format+"\n", append([]any{name}, args...)...)
	}
	line("aspstate", "%s on %s, process %d, up %s", s.Version, s.Host, s.PID, span(s.Now.Sub(s.Started).Seconds()))
	if s.Ready {
		line("ready", "yes")
	} else {
		line("ready", "NO: %s", s.NotReady)
	}
	where := "in memory"
	if s.Database != "" {
		where = fmt.Sprintf("in %s, schema version %d", s.Database, s.SchemaVersion)
	}
	line("mode", "%s: sessions are kept %s", s.Mode, where)
	allowed := "this machine"
	if len(s.Allow) > 0 {
		allowed += " and " + strings.Join(s.Allow, ", ")
	}
	line("serving", "%s, for %s", strings.Join(s.Listen, ", "), allowed)
	if s.Counted == nil {
		line("sessions", "not counted yet")
	} else {
		line("sessions", "%d, %d of them locked, %s (counted %s)", *s.Sessions, *s.Locked, size(*s.Bytes), ago(*s.Counted, s.Now))
	}
	line("since start", "%d requests; sessions: %d created, %d timed out, %d abandoned", s.Totals.Requests, s.Totals.Created, s.Totals.TimedOut, s.Totals.Abandoned)
	if r := s.Rates; r != nil {
		line("requests", "%s, %s answered locked, %s unanswered; half within %s, 95%% %s, 99%% %s",
			rate(r.Requests), rate(r.Locked), rate(r.Unanswered), spanOf(r.P50), spanOf(r.P95), spanOf(r.P99))
		line("lock waits", "%s, %s handed over, 95%% within %s; %d waiting now", rate(r.LockWaits), rate(r.LockHandovers), spanOf(r.LockWaitP95), s.Waiters)
	} else {
		line("lock waits", "%d waiting now", s.Waiters)
	}
	store := "works"
	if s.StoreFailing > 0 {
		store = fmt.Sprintf("FAILS for %s: %s", span(s.StoreFailing), s.StoreError)
	}
	if s.Rates != nil {
		store += ", 95% of statements within " + spanOf(s.Rates.StoreP95)
	}
	if s.Pool != nil {
		store += fmt.Sprintf("; %d connections, %d calls wait for one", s.Pool.Connections, s.Pool.Queued)
	}
	if s.WorkLeft > 0 {
		store += fmt.Sprintf("; %d releases and renewals left to do", s.WorkLeft)
	}
	line("store", "%s", store)
	line("connections", "%d of %d; refused since the start: %d by the allow list, %d for want of room",
		s.Connections, s.ConnectionsLimit, s.RefusedByAllow, s.ConnectionsRefused)
	switch {
	case s.Sweeper.Error != "":
		line("sweeper", "FAILS: %s", s.Sweeper.Error)
	case s.Sweeper.Last == nil:
		line("sweeper", "has not swept yet, every %s", span(s.Sweeper.Interval))
	default:
		line("sweeper", "last %s, every %s", ago(*s.Sweeper.Last, s.Now), span(s.Sweeper.Interval))
	}
	if m := s.Switch; m != nil {
		text := fmt.Sprintf("%s, from %s to %s: %d of %d", m.Stage, m.From, m.To, m.Moved, m.Total)
		if m.Left > 0 {
			text += ", " + span(m.Left) + " to go"
		}
		if m.Error != "" {
			text += "; " + m.Error
		}
		line("switch", "%s", text)
	}
	if t := s.TakeOver; t != nil {
		text := "none yet"
		if t.Last != nil {
			text = "the last " + ago(*t.Last, s.Now)
		}
		line("take over", "%d sessions came from the old state server, %s; %d were not there either", t.Taken, text, t.Missed)
	}
}

func reloadCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have a running server read its settings again, as SIGHUP does",
		Args:  cobra.NoArgs,
	}
	connect := addOperators(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		var r admin.Reloaded
		if err := o.do(cmd.Context(), http.MethodPost, "/api/reload", nil, &r); err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		if len(r.Changed) == 0 && len(r.Restart) == 0 {
			fmt.Fprintln(w, "The settings were read again; nothing has changed.")
		}
		if len(r.Changed) > 0 {
			fmt.Fprintln(w, "In force now: "+strings.Join(r.Changed, ", "))
		}
		if len(r.Restart) > 0 {
			fmt.Fprintln(w, "With the next start: "+strings.Join(r.Restart, ", "))
		}
		return nil
	}
	return cmd
}
