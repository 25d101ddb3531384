package main

import (
	"encoding/xml"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"aspstate/config"
)

func webconfigCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "webconfig",
		Short: "Print the <sessionState> element for web.config, and what else a farm needs",
		Long: "webconfig prints the <sessionState> element to put into the web.config of every node of the farm so that it uses\n" +
			"this server with these settings, and what else must be right for the nodes to share their sessions.",
		Args: cobra.NoArgs,
	}
	load := addSettings(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := load()
		if err != nil {
			return err
		}
		return printWebConfig(cmd.OutOrStdout(), c)
	}
	return cmd
}

var webConfig = template.Must(template.New("web.config").Funcs(template.FuncMap{"attr": attribute}).Parse(
	`<!-- In <system.web>, on every node of the farm. The address must be one under which the nodes reach this server{{if not .Reachable}}:
     with listen: {{.Listen}} only this machine does{{end}}. -->
<sessionState mode="StateServer"
              stateConnectionString="tcpip={{attr .Address}}"
              stateNetworkTimeout="{{.NetworkTimeout}}" />
{{if .TDS}}
<!-- Or with mode="SQLServer", which this server answers as a SQL Server with an ASPState database would. The sessions are the same;
     the password is yours to fill in. -->
{{.TDS}}
{{else if .SQL}}
<!-- mode="SQLServer" needs a SQL Server database: this server keeps its sessions in {{attr .SQL}}, which
     web servers cannot use themselves. With tds.listen this server answers as one. -->
{{end}}{{if .Direct}}
<!-- Or without this server, straight to the database that it uses. The sessions are the same. Names, not addresses and passwords, are
     yours to fill in. -->
<sessionState mode="SQLServer" allowCustomSqlDatabase="true"
              sqlConnectionString="{{attr .Direct}}" />
{{end}}
<!-- stateNetworkTimeout: how many seconds a page waits for an answer. It must be above requestBudget ({{.Budget}} here); ASP.NET's own
     default is 10.

     machineKey: give all nodes the same one. Cookies of forms authentication and view state need it, and so do sessions of .NET 2.0 to
     3.5, where it goes into the application's name.

     Site ID: an application is known by its path in IIS, such as /LM/W3SVC/1/ROOT, where 1 is the number of the site. Give the site
     the same number on all nodes, or list the paths in applications. "aspstate doctor" finds those that differ.

     LockAge: a page that finds its session locked for longer than executionTimeout (httpRuntime, 110 seconds, and no limit while
     debug="true") breaks the lock. Give executionTimeout more than your longest page takes. -->
`))

func printWebConfig(w io.Writer, c *config.Config) error {
	address, reachable := farmAddress(c.Listen)
	element := ""
	if c.TDS.Listen != "" {
		source, _ := farmAddress([]string{c.TDS.Listen})
		element = sqlServerElement(c, source)
	}
	return webConfig.Execute(w, map[string]any{
		"TDS":     element,
		"Address": address, "Reachable": reachable, "Listen": strings.Join(c.Listen, ", "),
		"NetworkTimeout": max(10, int((c.RequestBudget+2*time.Second+time.Second-1)/time.Second)), "Budget": c.RequestBudget,
		"Direct": direct(c.Place()), "SQL": notDirect(c.Place()),
	})
}

// farmAddress is the address to give to web servers, and whether other machines reach it.
func farmAddress(listen []string) (address string, reachable bool) {
	for _, l := range listen {
		host, port, err := net.SplitHostPort(l)
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
			if address == "" {
				address = l
			}
			continue
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			if host, err = os.Hostname(); err != nil {
				host = "THIS-MACHINE"
			}
		}
		return net.JoinHostPort(host, port), true
	}
	return address, false
}

// direct is the connection string, without secrets, for mode="SQLServer", where the database is one that web servers can use themselves.
func direct(place config.Place) string {
	if place.Mode != config.ModeSQLServer || place.Backend != config.SQLServer {
		return ""
	}
	u, err := url.Parse(place.ConnectionString.Text())
	if err != nil || !strings.EqualFold(u.Scheme, "sqlserver") {
		return place.String() // as web.config has it
	}
	source := u.Hostname()
	if instance := strings.Trim(u.Path, "/"); instance != "" {
		source += `\` + instance
	}
	if u.Port() != "" {
		source += "," + u.Port()
	}
	return "Data Source=" + source + ";Initial Catalog=" + u.Query().Get("database")
}

// notDirect says where sessions are, where web servers cannot use that themselves.
func notDirect(place config.Place) string {
	if place.Mode == config.ModeSQLServer && place.Backend == config.SQLServer {
		return ""
	}
	if place.Mode == config.ModeStateServer {
		return "memory"
	}
	return string(place.Backend)
}

func attribute(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s))
	return b.String()
}
