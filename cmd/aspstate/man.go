package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand prints the manual page, for packages and archives.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man",
		Short:  "Print the manual page, aspstate(1)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root := cmd.Root()
			var page strings.Builder
			fmt.Fprintf(&page, ".TH ASPSTATE 1 \"\" %q \"User Commands\"\n.SH NAME\naspstate \\- %s\n.SH SYNOPSIS\n.B aspstate\n.I COMMAND\n[\\fIFLAG\\fR ...]\n",
				"aspstate "+programVersion(), roff(root.Short))
			fmt.Fprintf(&page, ".SH DESCRIPTION\n%s\n.SH COMMANDS\n", roff(root.Long))
			manCommands(&page, root)
			page.WriteString(".SH ENVIRONMENT\nEvery setting is also read from the environment: \\fBASPSTATE_\\fR and the key in upper case, such as ASPSTATE_LIMITS_BODY.\n" +
				".SH SIGNALS\n.TP\n.B SIGHUP\nRead the settings again.\n.TP\n.BR SIGTERM \", \" SIGINT\nAnswer the requests under way and stop. A second one ends at once.\n")
			_, err := io.WriteString(cmd.OutOrStdout(), page.String())
			return err
		},
	}
}

func manCommands(page *strings.Builder, parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "help" {
			continue
		}
		text := c.Long
		if text == "" {
			text = c.Short
		}
		fmt.Fprintf(page, ".SS %s\n%s\n", roff(c.UseLine()), roff(text))
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden || f.Name == "help" {
				return
			}
			kind, usage := pflag.UnquoteUsage(f)
			fmt.Fprintf(page, ".TP\n\\fB\\-\\-%s\\fR \\fI%s\\fR\n%s\n", roff(f.Name), roff(kind), roff(usage))
		})
		manCommands(page, c)
	}
}

// roff is a text with what roff would take for commands escaped.
func roff(text string) string {
	text = strings.ReplaceAll(strings.ReplaceAll(text, `\`, `\e`), "-", `\-`)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		switch {
		case line == "":
			lines[i] = ".PP"
		case strings.HasPrefix(line, "."), strings.HasPrefix(line, "'"):
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
