//go:build !windows

package main

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"
)

func serviceCommand([]string) *cobra.Command {
	return &cobra.Command{
		Use:    "service",
		Short:  "Install, remove, start and stop the Windows service",
		Hidden: true,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("service is for Windows; on Linux use the systemd unit (docs/install.md)")
		},
	}
}

// asService is for Windows.
func asService(context.Context, func(ctx context.Context, reload chan struct{}, log io.Writer, ready func()) error) (bool, error) {
	return false, nil
}
