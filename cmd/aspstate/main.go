// Command aspstate is an ASP.NET session-state server.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"aspstate/config"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, os.Environ()))
}

// run is the program: everything it reads and writes is handed to it, but for
// files, sockets and signals. It returns the exit code. When ctx ends, a server
// stops as it does on SIGTERM.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, environ []string) int {
	root := &cobra.Command{
		Use:   "aspstate",
		Short: "A session-state server for ASP.NET",
		Long: "aspstate keeps the sessions of ASP.NET web applications. It replaces Microsoft's ASP.NET state service\n" +
			"(mode=\"StateServer\", port 42424) and keeps sessions in a SQL database.",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(
		serveCommand(environ),
		checkCommand(environ),
		migrateCommand(environ),
		sweepCommand(environ),
		switchCommand(environ),
		copyCommand(environ),
		webconfigCommand(environ),
		pingCommand(),
		statusCommand(environ),
		sessionsCommand(environ),
		reloadCommand(environ),
		backupCommand(environ),
		doctorCommand(environ),
		hashPasswordCommand(),
		serviceCommand(environ),
		manCommand(),
		versionCommand(),
	)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "aspstate: "+explain(err))
		return 1
	}
	return 0
}

// explain writes several faults below each other.
func explain(err error) string {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err.Error()
	}
	faults := joined.Unwrap()
	if len(faults) == 1 {
		return faults[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d faults", len(faults))
	for _, fault := range faults {
		b.WriteString("\n  " + fault.Error())
	}
	return b.String()
}

// addSettings gives a command --config and the flags of the settings with these
// keys (none means all), and returns what reads the settings. It may be called
// again and again.
func addSettings(cmd *cobra.Command, environ []string, keys ...string) func() (*config.Config, error) {
	file := cmd.Flags().String("config", "", "YAML `file` with settings; config/example.yaml lists them all")
	config.AddFlags(cmd.Flags(), keys...)
	return func() (*config.Config, error) { return config.Load(*file, environ, cmd.Flags()) }
}
