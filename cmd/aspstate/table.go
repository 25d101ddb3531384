package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
)

// How commands for operators show what they found: as a table, or with --json as the server said it; once, or with
// --watch again and again.

// shows is a command's flags for it.
type shows struct {
	json  *bool
	every *time.Duration
}

func addShows(cmd *cobra.Command) shows {
	s := shows{json: cmd.Flags().Bool("json", false, "print JSON, as the server answers it"), every: cmd.Flags().Duration("watch", 0, "show it again at intervals, --watch=5s; 2s if none is given")}
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	return s
}

// run asks, and shows the answer: once, or until ctx ends.
func (s shows) run(ctx context.Context, w io.Writer, ask func(ctx context.Context) (answer any, table func(io.Writer), err error)) error {
	if *s.every < 0 || *s.every > 0 && *s.every < 100*time.Millisecond {
		return fmt.Errorf("--watch=%v is too often: write at least 100ms", *s.every)
	}
	for again := false; ; again = true {
		answer, table, err := ask(ctx)
		if err != nil {
			return err
		}
		if err := s.show(w, answer, table, again); err != nil || *s.every == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(*s.every):
		}
	}
}

func (s shows) show(w io.Writer, answer any, table func(io.Writer), again bool) error {
	if *s.json {
		enc := json.NewEncoder(w)
		if *s.every == 0 {
			enc.SetIndent("", "  ")
		}
		return enc.Encode(answer) // with --watch, one line each time
	}
	var b strings.Builder
	switch {
	case *s.every > 0 && isTerminal(w):
		b.WriteString("\x1b[H\x1b[2J")
	case again:
		b.WriteByte('\n')
	}
	table(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// tableOf writes rows under their heads.
func tableOf(w io.Writer, heads []string, rows [][]string) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, strings.Join(heads, "\t"))
	for _, row := range rows {
		fmt.Fprintln(tab, strings.Join(row, "\t"))
	}
	tab.Flush()
}

// plain is text as it may go to a terminal: what clients chose must not move the cursor.
func plain(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// size is a number of bytes in the unit that fits.
func size[T int | int64 | float64](n T) string {
	v, unit := float64(n), 0
	for v >= 1024 && unit < 4 {
		v /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%.0f B", v)
	}
	return fmt.Sprintf("%.1f %s", v, []string{"", "KiB", "MiB", "GiB", "TiB"}[unit])
}

// span is a duration to three digits or so.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Millisecond:
		d = d.Round(time.Microsecond)
	case d < time.Second:
		d = d.Round(100 * time.Microsecond)
	case d < 10*time.Second:
		d = d.Round(10 * time.Millisecond)
	case d < time.Hour:
		d = d.Round(time.Second)
	default:
		days := d / (24 * time.Hour)
		d = (d % (24 * time.Hour)).Round(time.Minute)
		text := strings.TrimSuffix(d.String(), "0s")
		if days > 0 {
			text = fmt.Sprintf("%dd%s", days, text)
		}
		return text
	}
	return d.String()
}

// spanOf is span, or a dash where there is nothing.
func spanOf(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return span(*seconds)
}

// ago is how long ago a time is, by the clock that told now.
func ago(t, now time.Time) string { return span(max(0, now.Sub(t).Seconds())) + " ago" }

// rate is a number a second.
func rate(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) + "/s" }
