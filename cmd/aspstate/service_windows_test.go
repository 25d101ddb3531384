package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

// execute runs a service as Windows would.
func execute(t *testing.T, serve func(ctx context.Context, reload chan struct{}, log io.Writer, ready func()) error) (requests chan svc.ChangeRequest, status chan svc.Status, code chan uint32) {
	t.Helper()
	events, err := eventlog.Open(serviceName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { events.Close() })
	requests, status, code = make(chan svc.ChangeRequest), make(chan svc.Status), make(chan uint32, 1)
	s := &service{ctx: t.Context(), serve: serve, events: events}
	go func() {
		_, c := s.Execute(nil, requests, status)
		code <- c
	}()
	return requests, status, code
}

func wantState(t *testing.T, status chan svc.Status, want svc.State) {
	t.Helper()
	select {
	case got := <-status:
		if got.State != want {
			t.Fatalf("state %d, want %d", got.State, want)
		}
	case <-time.After(patience):
		t.Fatalf("state %d never comes", want)
	}
}

func TestService(t *testing.T) {
	reloaded, mayEnd := make(chan struct{}, 1), make(chan struct{})
	requests, status, code := execute(t, func(ctx context.Context, reload chan struct{}, _ io.Writer, ready func()) error {
		ready()
		for {
			select {
			case <-reload:
				reloaded <- struct{}{}
			case <-ctx.Done():
				<-mayEnd
				return nil
			}
		}
	})
	wantState(t, status, svc.StartPending)
	wantState(t, status, svc.Running)
	requests <- svc.ChangeRequest{Cmd: svc.Interrogate, CurrentStatus: svc.Status{State: svc.Running}}
	wantState(t, status, svc.Running)
	requests <- svc.ChangeRequest{Cmd: svc.ParamChange}
	wantState(t, status, svc.Running)
	select {
	case <-reloaded:
	case <-time.After(patience):
		t.Fatal("the settings are not read again")
	}
	requests <- svc.ChangeRequest{Cmd: svc.Stop}
	wantState(t, status, svc.StopPending)
	close(mayEnd)
	if c := <-code; c != 0 {
		t.Errorf("exit code %d", c)
	}
}

func TestServiceThatFails(t *testing.T) {
	_, status, code := execute(t, func(context.Context, chan struct{}, io.Writer, func()) error { return errors.New("no database") })
	wantState(t, status, svc.StartPending)
	if c := <-code; c != 1 {
		t.Errorf("exit code %d, want 1, so that Windows starts it again", c)
	}
}
