package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"aspstate/server/admin"
	"aspstate/server/item"
)

func sessionsCommand(environ []string) *cobra.Command {
	group := &cobra.Command{
		Use:   "sessions",
		Short: "List, count, show, unlock and remove the sessions of a running server",
		Long: "sessions asks a running server, on its listener for operators (admin.listen). On the server's own machine, with the\n" +
			"default settings, it needs no flags.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("sessions %s is no command: see aspstate sessions --help", args[0])
			}
			return cmd.Help()
		},
	}
	group.AddCommand(listCommand(environ), showCommand(environ), unlockCommand(environ), removeCommand(environ), topCommand(environ), keysCommand(environ))
	return group
}

func listCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "list [ID]", Short: "List sessions: all, or those whose ID begins so", Args: cobra.MaximumNArgs(1)}
	connect, shows := addOperators(cmd, environ), addShows(cmd)
	application := addApplication(cmd)
	locked := cmd.Flags().Bool("locked", false, "only locked ones")
	order := cmd.Flags().String("order", "key", "`key` (by application and ID), size (largest first), lock (oldest lock first, locked ones only) or created (oldest first)")
	limit := cmd.Flags().Int("limit", 100, "at most so `many`; up to 1000, or more with --order=key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		query := url.Values{"order": {*order}}
		application.add(query)
		if len(args) > 0 {
			query.Set("id", idOf(args[0]))
		}
		if *locked {
			query.Set("locked", "true")
		}
		return shows.run(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (any, func(io.Writer), error) {
			list, err := o.list(ctx, query, *limit)
			return list, func(w io.Writer) {
				sessionTable(w, list.Sessions, time.Now())
				if list.Next != "" {
					fmt.Fprintf(w, "There are more: see --limit.\n")
				}
			}, err
		})
	}
	return cmd
}

// list asks for sessions, page by page.
func (o *operators) list(ctx context.Context, query url.Values, limit int) (all admin.SessionList, err error) {
	all.Sessions = []admin.Session{}
	for {
		const page = 1000
		ask := limit - len(all.Sessions)
		if query.Get("order") == "key" {
			ask = min(page, ask)
		}
		query.Set("limit", strconv.Itoa(ask))
		query.Del("after")
		if all.Next != "" {
			query.Set("after", all.Next)
		}
		var list admin.SessionList
		if err := o.get(ctx, "/api/sessions", query, &list); err != nil {
			return all, err
		}
		all.Sessions, all.Next = append(all.Sessions, list.Sessions...), list.Next
		if list.Next == "" || len(all.Sessions) >= limit {
			return all, nil
		}
	}
}

func sessionTable(w io.Writer, sessions []admin.Session, now time.Time) {
	if len(sessions) == 0 {
		fmt.Fprintln(w, "There are none.")
		return
	}
	rows := make([][]string, len(sessions))
	for i, se := range sessions {
		rows[i] = []string{applicationOf(se), plain(se.ID), size(se.Bytes), ago(se.Created, now), leftOf(se), lockOf(se)}
	}
	tableOf(w, []string{"APPLICATION", "SESSION", "SIZE", "CREATED", "EXPIRES IN", "LOCKED"}, rows)
}

func applicationOf(se admin.Session) string {
	if se.Application == "" {
		return se.AppID
	}
	return plain(se.Application)
}

func leftOf(se admin.Session) string {
	if se.Left == nil {
		return "never"
	}
	return span(*se.Left)
}

func lockOf(se admin.Session) string {
	switch {
	case !se.Locked:
		return "-"
	case se.LockAge == nil:
		return fmt.Sprintf("cookie %d", se.LockCookie)
	default:
		return fmt.Sprintf("for %s, cookie %d", span(*se.LockAge), se.LockCookie)
	}
}

// applicationFlag names an application.
type applicationFlag struct{ text *string }

func addApplication(cmd *cobra.Command) applicationFlag {
	return applicationFlag{cmd.Flags().String("application", "", "the application: its `name` (/LM/W3SVC/1/ROOT/shop), or app=f197a8d4 with its number")}
}

func (a applicationFlag) add(query url.Values) {
	if app, ok := strings.CutPrefix(*a.text, "app="); ok {
		query.Set("app", app)
	} else if *a.text != "" {
		query.Set("application", *a.text)
	}
}

// idOf is a session ID as it was typed, or pasted from the log, which shortens them.
func idOf(arg string) string { return strings.TrimSuffix(arg, "…") }

// find returns the only session whose ID is, or begins with, the one given.
func (o *operators) find(ctx context.Context, application applicationFlag, id string, whole bool) (admin.Session, error) {
	id = idOf(id)
	query := url.Values{"order": {"key"}, "id": {id}}
	application.add(query)
	list, err := o.list(ctx, query, 100)
	if err != nil {
		return admin.Session{}, err
	}
	var exact []admin.Session
	for _, se := range list.Sessions {
		if se.ID == id {
			exact = append(exact, se)
		}
	}
	switch {
	case len(exact) == 1:
		return exact[0], nil
	case len(exact) > 1:
		return admin.Session{}, fmt.Errorf("several applications have a session of this ID: say which with --application, such as --application app=%s", exact[0].AppID)
	case len(list.Sessions) == 0:
		return admin.Session{}, fmt.Errorf("there is no session whose ID begins with %s", plain(id))
	case len(list.Sessions) > 1:
		return admin.Session{}, fmt.Errorf("several sessions have an ID that begins with %s: write more of it (aspstate sessions list %s)", plain(id), plain(id))
	case whole:
		return admin.Session{}, fmt.Errorf("%s is not a whole session ID, which is wanted here: write %s", plain(id), plain(list.Sessions[0].ID))
	}
	return list.Sessions[0], nil
}

// sessionCommand is a command on one session.
func sessionCommand(environ []string, cmd *cobra.Command, whole bool, do func(cmd *cobra.Command, o *operators, se admin.Session) error) *cobra.Command {
	cmd.Args = cobra.ExactArgs(1)
	connect, application := addOperators(cmd, environ), addApplication(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		se, err := o.find(cmd.Context(), application, args[0], whole)
		if err != nil {
			return err
		}
		return do(cmd, o, se)
	}
	return cmd
}

func showCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show what a session holds: keys, types and sizes, and with --values the values",
		Long: "show looks into a session: which keys it has, of which types and sizes. The beginning of the ID is enough.\n" +
			"--values shows simple values too, which leaves a line in the server's log. Object graphs are named, never loaded.",
	}
	shows := addShows(cmd)
	values := cmd.Flags().Bool("values", false, "show the values; the server logs that it was asked for them")
	return sessionCommand(environ, cmd, false, func(cmd *cobra.Command, o *operators, se admin.Session) error {
		query := url.Values{"app": {se.AppID}, "id": {se.ID}}
		if *values {
			query.Set("values", "true")
		}
		return shows.run(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (any, func(io.Writer), error) {
			var shown admin.ShownSession
			err := o.get(ctx, "/api/session", query, &shown)
			return shown, func(w io.Writer) { sessionPage(w, shown, *values) }, err
		})
	})
}

func sessionPage(w io.Writer, shown admin.ShownSession, values bool) {
	se := shown.Session
	lines := [][2]string{
		{"application", applicationOf(se) + " (" + se.AppID + ")"},
		{"session", plain(se.ID)},
		{"created", ago(se.Created, time.Now())},
		{"expires in", leftOf(se)},
		{"locked", lockOf(se)},
		{"size", size(se.Bytes)},
	}
	if it := shown.Item; it != nil && it.Compressed {
		lines[len(lines)-1][1] += ", " + size(it.Inflated) + " without compression"
	}
	for _, l := range lines {
		fmt.Fprintf(w, "%-12s %s\n", l[0], l[1])
	}
	if shown.ItemError != "" {
		fmt.Fprintf(w, "\nNot everything can be read: %s\n", shown.ItemError)
	}
	if shown.Item == nil {
		return
	}
	entryTable(w, "KEY", shown.Item.Items, values)
	entryTable(w, "STATIC OBJECT", shown.Item.StaticObjects, values)
}

func entryTable(w io.Writer, head string, entries []item.Entry, values bool) {
	if len(entries) == 0 {
		return
	}
	heads := []string{head, "TYPE", "SIZE"}
	if values {
		heads = append(heads, "VALUE")
	}
	rows := make([][]string, len(entries))
	for i, e := range entries {
		rows[i] = []string{plain(e.Name), plain(e.Type), size(e.Size)}
		if values {
			value := "-"
			if e.Value != nil {
				value = plain(*e.Value)
			}
			rows[i] = append(rows[i], value)
		}
	}
	fmt.Fprintln(w)
	tableOf(w, heads, rows)
}

func unlockCommand(environ []string) *cobra.Command {
	return sessionCommand(environ, &cobra.Command{
		Use:   "unlock ID",
		Short: "Release a session's lock: the next request that waits for it gets it",
		Long: "unlock releases the lock of a session, as its page would. The page that has the lock goes on, and what it writes in the\n" +
			"end is refused if another page has locked the session by then.",
	}, false, func(cmd *cobra.Command, o *operators, se admin.Session) error {
		if !se.Locked {
			return fmt.Errorf("session %s is not locked", plain(se.ID))
		}
		var done admin.Unlocked
		body := map[string]any{"app": se.AppID, "id": se.ID, "lock_cookie": se.LockCookie}
		if err := o.do(cmd.Context(), http.MethodPost, "/api/session/unlock", body, &done); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "Unlocked session %s of %s, which was locked for %s.\n", plain(se.ID), applicationOf(se), spanOf(se.LockAge))
		return err
	})
}

func removeCommand(environ []string) *cobra.Command {
	return sessionCommand(environ, &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a session, locked or not: its user is logged out",
	}, true, func(cmd *cobra.Command, o *operators, se admin.Session) error {
		var done struct{}
		path := "/api/session?" + url.Values{"app": {se.AppID}, "id": {se.ID}}.Encode()
		if err := o.do(cmd.Context(), http.MethodDelete, path, nil, &done); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "Removed session %s of %s.\n", plain(se.ID), applicationOf(se))
		return err
	})
}

func topCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{Use: "top", Short: "Show the applications, the oldest locks and the largest sessions", Args: cobra.NoArgs}
	connect, shows := addOperators(cmd, environ), addShows(cmd)
	limit := cmd.Flags().Int("limit", 10, "at most so `many` of each")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		return shows.run(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (any, func(io.Writer), error) {
			top, err := o.top(ctx, *limit)
			return top, func(w io.Writer) { top.table(w, *limit) }, err
		})
	}
	return cmd
}

// topOf is what "sessions top" shows.
type topOf struct {
	Applications admin.Applications `json:"applications"`
	Locks        []admin.Session    `json:"oldest_locks"`
	Largest      []admin.Session    `json:"largest"`
}

func (o *operators) top(ctx context.Context, limit int) (top topOf, err error) {
	if err := o.get(ctx, "/api/applications", nil, &top.Applications); err != nil {
		return top, err
	}
	locks, err := o.list(ctx, url.Values{"order": {"lock"}}, limit)
	if err != nil {
		return top, err
	}
	largest, err := o.list(ctx, url.Values{"order": {"size"}}, limit)
	top.Locks, top.Largest = locks.Sessions, largest.Sessions
	return top, err
}

func (t topOf) table(w io.Writer, limit int) {
	now := time.Now()
	applicationTable(w, t.Applications, limit, now)
	fmt.Fprintln(w, "\nOldest locks")
	sessionTable(w, t.Locks, now)
	fmt.Fprintln(w, "\nLargest sessions")
	sessionTable(w, t.Largest, now)
}

func applicationTable(w io.Writer, list admin.Applications, limit int, now time.Time) {
	switch {
	case list.Counted == nil:
		fmt.Fprintln(w, "The sessions have not been counted yet.")
		return
	case len(list.Applications) == 0:
		fmt.Fprintln(w, "There are no applications.")
		return
	}
	most := append([]admin.Application{}, list.Applications...)
	slices.SortStableFunc(most, func(a, b admin.Application) int { return b.Sessions - a.Sessions })
	rows := [][]string{}
	for _, a := range most[:min(limit, len(most))] {
		rows = append(rows, []string{plain(a.Name), a.AppID, strconv.Itoa(a.Sessions), strconv.Itoa(a.Locked), size(a.Bytes)})
	}
	tableOf(w, []string{"APPLICATION", "NUMBER", "SESSIONS", "LOCKED", "SIZE"}, rows)
	fmt.Fprintf(w, "counted %s\n", ago(*list.Counted, now))
}
