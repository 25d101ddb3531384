package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"
)

// The service of Windows. It logs to the event log, and reads its settings again when it is told that its parameters have
// changed (aspstate service reload), since there is no SIGHUP.

const serviceName = "aspstate"

func serviceCommand(environ []string) *cobra.Command {
	group := &cobra.Command{
		Use:   "service",
		Short: "Install, remove, start and stop the Windows service",
		Long: "service looks after the Windows service aspstate. Run it as an administrator.\n\n" +
			"  aspstate service install --config C:\\ProgramData\\aspstate\\aspstate.yaml\n  aspstate service start",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var file string
	install := &cobra.Command{Use: "install", Short: "Install the service, to start with Windows", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return installService(file) }}
	install.Flags().StringVar(&file, "config", filepath.Join(os.Getenv("ProgramData"), "aspstate", "aspstate.yaml"), "`file` with settings")
	control := func(use, short string, do func(context.Context, *mgr.Service) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return withService(func(s *mgr.Service) error {
				if err := do(cmd.Context(), s); err != nil {
					return fmt.Errorf("service %s: %w", use, err)
				}
				return nil
			})
		}}
	}
	group.AddCommand(install,
		control("uninstall", "Stop and remove the service; its settings and sessions stay", uninstallService),
		control("start", "Start the service", func(ctx context.Context, s *mgr.Service) error {
			if err := s.Start(); err != nil {
				return err
			}
			return awaitState(ctx, s, svc.Running)
		}),
		control("stop", "Stop the service when it has answered the requests under way", stopService),
		control("reload", "Have the service read its settings again", func(_ context.Context, s *mgr.Service) error {
			_, err := s.Control(svc.ParamChange)
			return err
		}))
	return group
}

// withService opens the installed service.
func withService(do func(*mgr.Service) error) error {
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("service: %w: run this as an administrator", err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(serviceName)
	if err != nil {
		return fmt.Errorf("service: %w: install it with: aspstate service install", err)
	}
	defer s.Close()
	return do(s)
}

func installService(file string) error {
	file, err := filepath.Abs(file)
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		return fmt.Errorf("service install: %w: write a file with settings (it may be empty) and name it in --config", err)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("service install: %w", err)
	}
	m, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("service install: %w: run this as an administrator", err)
	}
	defer m.Disconnect()
	s, err := m.CreateService(serviceName, program, mgr.Config{
		DisplayName: "ASP.NET State Server (aspstate)", Description: "Keeps the sessions of ASP.NET web applications.",
		StartType: mgr.StartAutomatic, ServiceStartName: `NT SERVICE\` + serviceName, SidType: windows.SERVICE_SID_TYPE_UNRESTRICTED,
	}, "serve", "--config", file)
	if err != nil {
		return fmt.Errorf("service install: %w", err)
	}
	defer s.Close()
	restart := mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: time.Second}
	err = errors.Join(s.SetRecoveryActions([]mgr.RecoveryAction{restart, restart, restart}, 86400), s.SetRecoveryActionsOnNonCrashFailures(true))
	if err == nil {
		err = eventlog.InstallAsEventCreate(serviceName, eventlog.Error|eventlog.Warning|eventlog.Info)
	}
	if err != nil {
		return fmt.Errorf("service install: %w", errors.Join(err, s.Delete()))
	}
	return nil
}

func uninstallService(ctx context.Context, s *mgr.Service) error {
	status, err := s.Query()
	if err == nil && status.State != svc.Stopped {
		err = stopService(ctx, s)
	}
	if err != nil {
		return err
	}
	return errors.Join(s.Delete(), eventlog.Remove(serviceName))
}

func stopService(ctx context.Context, s *mgr.Service) error {
	if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return err
	}
	return awaitState(ctx, s, svc.Stopped)
}

// awaitState waits until the service has come to a state.
func awaitState(ctx context.Context, s *mgr.Service, want svc.State) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime+moveTime+30*time.Second)
	defer cancel()
	for {
		status, err := s.Query()
		switch {
		case err != nil:
			return err
		case status.State == want:
			return nil
		case status.State == svc.Stopped:
			return errors.New("it has stopped: the event log says why")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// asService runs serve as a service where Windows has started it as one.
func asService(ctx context.Context, serve func(ctx context.Context, reload chan struct{}, log io.Writer, ready func()) error) (is bool, err error) {
	if is, err = svc.IsWindowsService(); err != nil || !is {
		return false, err
	}
	events, err := eventlog.Open(serviceName)
	if err != nil {
		return true, fmt.Errorf("event log: %w", err)
	}
	defer events.Close()
	s := &service{ctx: ctx, serve: serve, events: events}
	if err := svc.Run(serviceName, s); err != nil {
		return true, err
	}
	return true, s.err
}

// service is the program as Windows runs it.
type service struct {
	ctx    context.Context
	serve  func(ctx context.Context, reload chan struct{}, log io.Writer, ready func()) error
	events *eventlog.Log
	err    error
}

// Execute implements svc.Handler.
func (s *service) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	status <- svc.Status{State: svc.StartPending}
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	reload, ready, ended := make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.serve(ctx, reload, eventWriter{s.events}, func() { close(ready) }) }()
	running := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown | svc.AcceptParamChange}
	for {
		select {
		case <-ready:
			ready = nil
			status <- running
		case s.err = <-ended:
			if s.err != nil {
				s.events.Error(1, "aspstate: "+explain(s.err))
				return true, 1
			}
			return false, 0
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending, WaitHint: uint32((drainTime + moveTime) / time.Millisecond)}
				stop()
			case svc.ParamChange:
				select {
				case reload <- struct{}{}:
				default: // one is due already
				}
				status <- running
			}
		}
	}
}

// eventWriter writes lines of the log, in the form of log.format, to the event log.
type eventWriter struct{ events *eventlog.Log }

// Write takes one line, as slog's handlers write it.
func (w eventWriter) Write(line []byte) (int, error) {
	text := strings.TrimRight(string(line), "\n")
	write := w.events.Info
	switch {
	case strings.Contains(text, "level=ERROR"), strings.Contains(text, `"level":"ERROR"`):
		write = w.events.Error
	case strings.Contains(text, "level=WARN"), strings.Contains(text, `"level":"WARN"`):
		write = w.events.Warning
	}
	return len(line), write(1, text)
}
