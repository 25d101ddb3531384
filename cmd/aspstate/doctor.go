package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"aspstate/config"
	"aspstate/server"
	"aspstate/server/admin"
)

// Finding is one thing that the doctor would mend.
type Finding struct {
	Check  string `json:"check"`
	Found  string `json:"found"`
	Remedy string `json:"remedy"`
}

// examination is what the doctor has found, and looked at.
type examination struct {
	Findings []Finding `json:"findings"`
	Fine     []string  `json:"fine"`    // checks that found nothing
	Skipped  []string  `json:"skipped"` // and those that could not be made, and why
}

func doctorCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is often wrong with a running server, and say how to mend it",
		Long: "doctor looks at a running server and its database, changes nothing, and ends with exit code 1 if something should be\n" +
			"mended. Run it on the server's machine with the server's --config: then it also looks into PostgreSQL.",
		Args: cobra.NoArgs,
	}
	connect := addOperators(cmd, environ)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		x := &examination{Findings: []Finding{}, Fine: []string{}, Skipped: []string{}}
		x.examine(cmd.Context(), o)
		if err := (shows{json: asJSON, every: new(time.Duration)}).show(cmd.OutOrStdout(), x, x.page, false); err != nil {
			return err
		}
		if n := len(x.Findings); n > 0 {
			return fmt.Errorf("doctor: %d of %d checks found something to mend", x.checksWithFindings(), x.checksWithFindings()+len(x.Fine))
		}
		return nil
	}
	return cmd
}

func (x *examination) page(w io.Writer) {
	for _, f := range x.Findings {
		fmt.Fprintf(w, "! %s: %s\n    %s\n", f.Check, f.Found, f.Remedy)
	}
	if len(x.Fine) > 0 {
		fmt.Fprintf(w, "fine: %s\n", strings.Join(x.Fine, ", "))
	}
	for _, s := range x.Skipped {
		fmt.Fprintf(w, "not looked at: %s\n", s)
	}
}

func (x *examination) checksWithFindings() int {
	var checks []string
	for _, f := range x.Findings {
		checks = append(checks, f.Check)
	}
	slices.Sort(checks)
	return len(slices.Compact(checks))
}

// check notes the findings of one check, or that there are none.
func (x *examination) check(name string, findings ...Finding) {
	if len(findings) == 0 {
		x.Fine = append(x.Fine, name)
	}
	for _, f := range findings {
		f.Check = name
		x.Findings = append(x.Findings, f)
	}
}

// examine makes all checks.
func (x *examination) examine(ctx context.Context, o *operators) {
	var s admin.Status
	if err := o.get(ctx, "/api/status", nil, &s); err != nil {
		f := Finding{Found: err.Error(), Remedy: "start the server, or say where it is"}
		if _, refused := errors.AsType[*refusal](err); refused {
			f.Remedy = "give the right token"
		}
		x.check("server", f)
		x.Skipped = append(x.Skipped, "everything that the server tells")
		if o.config != nil {
			x.check("ports", checkPorts(ctx, o.config.Listen)...)
			if o.config.Mode == config.ModeSQLServer && o.config.SQLConnectionString.Backend != config.SQLite {
				x.check("database", checkUnserved(ctx, o.config)...)
			}
		}
		return
	}
	x.check("server")
	if o.config != nil && o.isLocal() {
		if note := aliasesNote(o.config); note != "" {
			x.Skipped = append(x.Skipped, note)
		}
		x.check("settings", checkSettings(o.config)...)
	}
	if o.isLocal() {
		x.check("ports", checkPorts(ctx, s.Listen)...)
	} else {
		x.Skipped = append(x.Skipped, "ports, from another machine: run aspstate ping on a web server")
	}
	x.check("allow list", checkAllow(s)...)
	x.check("store", checkStore(s)...)
	x.check("encryption", checkItems(s)...)
	x.check("sweeper", checkSweeper(s)...)
	x.check("connections", checkConnections(s)...)
	if s.Pool != nil {
		x.check("pool", checkPool(ctx, o, s)...)
	}
	x.ask("applications", func() ([]Finding, error) {
		var list admin.Applications
		err := o.get(ctx, "/api/applications", nil, &list)
		return checkApplications(list), err
	})
	x.ask("locks", func() ([]Finding, error) {
		list, err := o.list(ctx, url.Values{"order": {"lock"}}, oldLocksShown)
		return checkLocks(list.Sessions), err
	})
	x.examineDatabase(ctx, o, s)
}

// checkUnserved looks for what keeps a server from starting on its database.
func checkUnserved(ctx context.Context, c *config.Config) []Finding {
	err := checkDatabase(ctx, c)
	if err == nil {
		return nil
	}
	f := Finding{Found: err.Error(), Remedy: "until then no server starts on it; aspstate check says whether it is mended"}
	if fault, ok := errors.AsType[config.Fault](err); ok {
		f.Found = c.Place().String() + ": " + fault.Problem
	}
	return []Finding{f}
}

// ask makes a check that may not be possible.
func (x *examination) ask(name string, check func() ([]Finding, error)) {
	findings, err := check()
	if err != nil {
		x.Skipped = append(x.Skipped, name+": "+err.Error())
		return
	}
	x.check(name, findings...)
}

// isLocal reports whether the server is on this machine.
func (o *operators) isLocal() bool {
	u, err := url.Parse(o.base)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.IsLoopback() || strings.EqualFold(u.Hostname(), "localhost")
}

func checkSettings(c *config.Config) (findings []Finding) {
	for _, w := range c.Warnings {
		findings = append(findings, Finding{Found: w, Remedy: "see config/example.yaml for what the setting means"})
	}
	return findings
}

// checkPorts asks each address that the server listens on for a sign of life, as a web server would.
func checkPorts(ctx context.Context, listen []string) (findings []Finding) {
	for _, address := range listen {
		host, port, err := net.SplitHostPort(address)
		if ip, badIP := netip.ParseAddr(host); err != nil || port == "0" {
			continue
		} else if host == "" || badIP == nil && ip.IsUnspecified() {
			address = net.JoinHostPort("127.0.0.1", port)
			if ip.Is6() {
				address = net.JoinHostPort("::1", port)
			}
		}
		if _, err := ping(ctx, address, 5*time.Second); err != nil {
			findings = append(findings, Finding{Found: fmt.Sprintf("%s: %v", address, err), Remedy: "web servers fail in the same way; then run aspstate ping on one of them"})
		}
	}
	return findings
}

func checkAllow(s admin.Status) (findings []Finding) {
	if s.RefusedByAllow > 0 {
		findings = append(findings, Finding{
			Found:  fmt.Sprintf("%d connections were refused since the start, because their addresses are not in the allow list (%s)", s.RefusedByAllow, strings.Join(s.Allow, ", ")),
			Remedy: "the log names the addresses (\"connection refused\"): add web servers to allow, and run aspstate reload",
		})
	}
	exposed := false
	for _, address := range s.Listen {
		host, _, _ := net.SplitHostPort(address)
		ip, err := netip.ParseAddr(host)
		exposed = exposed || !(err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost"))
	}
	for _, text := range s.Allow {
		if p, err := netip.ParsePrefix(text); err == nil && p.Bits() == 0 && exposed {
			findings = append(findings, Finding{
				Found:  fmt.Sprintf("the allow list has %s, which is everybody, and whoever connects can run code on the web servers", text),
				Remedy: "list the addresses of the web servers instead",
			})
		}
	}
	if !exposed && len(s.Allow) > 0 {
		findings = append(findings, Finding{
			Found:  fmt.Sprintf("there is an allow list, and the server listens only on %s, where no other machine can connect", strings.Join(s.Listen, ", ")),
			Remedy: "set listen to the address that the web servers use, and restart",
		})
	}
	return findings
}

func checkStore(s admin.Status) (findings []Finding) {
	if s.StoreFailing > 0 {
		findings = append(findings, Finding{
			Found:  fmt.Sprintf("the store has been failing for %s: %s", span(s.StoreFailing), s.StoreError),
			Remedy: "see that the database runs and can be reached from here; requests are held for requestBudget and then fail, no session is lost",
		})
	} else if s.RequestsGivenUp > 0 {
		findings = append(findings, Finding{
			Found:  fmt.Sprintf("%d requests got no answer since the start, because the store failed; it works now", s.RequestsGivenUp),
			Remedy: "the log says when (\"the store is failing\"): look at what the database did then",
		})
	}
	if s.WorkLeft > 1000 {
		findings = append(findings, Finding{Found: fmt.Sprintf("%d releases and renewals wait to be done", s.WorkLeft), Remedy: "they are done when the store works; until then web servers find those sessions locked"})
	}
	return findings
}

func checkItems(s admin.Status) []Finding {
	if s.ItemsUnreadable == 0 {
		return nil
	}
	return []Finding{{
		Found:  fmt.Sprintf("%d requests got no answer since the start, because their items in the store could not be decrypted, or were not encrypted", s.ItemsUnreadable),
		Remedy: "the log names the reason (\"items in the store\"): a key is missing in encryption.keys, encryption.acceptUnencrypted was turned off too early, or somebody has written to the database; aspstate sessions keys counts sessions by key",
	}}
}

func checkSweeper(s admin.Status) []Finding {
	late := 3*s.Sweeper.Interval + 60
	switch {
	case s.Sweeper.Error != "":
		return []Finding{{Found: "the last sweep for expired sessions failed: " + s.Sweeper.Error, Remedy: "mend the database; expired sessions are never served, but they take space"}}
	case s.Sweeper.Last == nil && s.Now.Sub(s.Started).Seconds() > late:
		return []Finding{{Found: "no sweep for expired sessions has come to its end since the start", Remedy: "look for \"sweep\" in the log; a smaller sweep.batch may help a slow database"}}
	case s.Sweeper.Last != nil && s.Now.Sub(*s.Sweeper.Last).Seconds() > late:
		return []Finding{{Found: "the last sweep for expired sessions ended " + ago(*s.Sweeper.Last, s.Now), Remedy: "look for \"sweep\" in the log; more may expire than is deleted: raise sweep.batch"}}
	}
	return nil
}

func checkConnections(s admin.Status) (findings []Finding) {
	if s.ConnectionsRefused > 0 {
		findings = append(findings, Finding{
			Found:  fmt.Sprintf("%d connections were refused since the start, because all %d were busy", s.ConnectionsRefused, s.ConnectionsLimit),
			Remedy: "raise limits.connections; if most of them wait for locks (status: waiting now), look for slow pages",
		})
	}
	if s.ConnectionsLimit > 0 && s.Connections*10 >= s.ConnectionsLimit*9 {
		findings = append(findings, Finding{Found: fmt.Sprintf("%d of %d connections are open", s.Connections, s.ConnectionsLimit), Remedy: "raise limits.connections"})
	}
	return findings
}

// checkPool looks several times whether calls wait for a connection: now and then they may.
func checkPool(ctx context.Context, o *operators, s admin.Status) []Finding {
	const looks, pause = 4, 250 * time.Millisecond
	least := s.Pool.Queued
	for range looks {
		if least == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		if err := o.get(ctx, "/api/status", nil, &s); err != nil || s.Pool == nil {
			return nil
		}
		least = min(least, s.Pool.Queued)
	}
	if least <= s.Pool.Connections {
		return nil
	}
	return []Finding{{
		Found:  fmt.Sprintf("at least %d calls wait for one of %d connections to the database all the time", least, s.Pool.Connections),
		Remedy: "if the database has room, add pool_max_conns=16 to the connection string; else look at what makes it slow",
	}}
}

// checkApplications looks for one application that its web servers know by different names.
func checkApplications(list admin.Applications) (findings []Finding) {
	var order []string
	families := map[string][]string{}
	for _, a := range list.Applications {
		f := server.Family(a.Name)
		if families[f] == nil {
			order = append(order, f)
		}
		families[f] = append(families[f], a.Name)
	}
	for _, f := range order {
		names := families[f]
		if len(names) < 2 {
			continue
		}
		shown := make([]string, len(names))
		for i, n := range names {
			shown[i] = plain(n)
		}
		findings = append(findings, Finding{
			Found:  "these applications differ only in letter case or site number: " + strings.Join(shown, ", "),
			Remedy: "if they are one application on several web servers, its users lose their sessions when they change server: list the names in applications, and run aspstate reload",
		})
	}
	return findings
}

const (
	// executionTimeout is for how long a page may run where web.config says nothing else: then
	// another request takes its lock away.
	executionTimeout = 110.0
	oldLocksShown    = 100
)

func checkLocks(locks []admin.Session) []Finding {
	var old []admin.Session
	for _, se := range locks {
		if se.LockAge != nil && *se.LockAge > executionTimeout {
			old = append(old, se)
		}
	}
	if len(old) == 0 {
		return nil
	}
	number := fmt.Sprint(len(old))
	if len(old) == oldLocksShown {
		number += " or more"
	}
	return []Finding{{
		Found: fmt.Sprintf("%s sessions have been locked for longer than a page may run (110s): their pages hang, or ended without releasing them; the oldest is %s of %s, for %s",
			number, plain(old[0].ID), applicationOf(old[0]), span(*old[0].LockAge)),
		Remedy: "harmless where the user has gone: the next request for the session takes it over. To do so now: aspstate sessions unlock " + plain(old[0].ID),
	}}
}
