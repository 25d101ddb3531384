package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"aspstate/backends"
	"aspstate/backends/memory"
	"aspstate/config"
	"aspstate/server"
	"aspstate/server/stateserver"
)

// What the process does about sessions that move: between stores, from another state server, between
// applications, and over a restart.

// openPlace opens the store at what config.Place.Text wrote.
func (p *process) openPlace(ctx context.Context, text string) (backends.Store, error) {
	place, err := config.PlaceOf(text)
	if err != nil {
		return nil, err
	}
	store, err := openStore(ctx, place, p.applied.Load(), p.log)
	if err != nil {
		return nil, fmt.Errorf("open %v: %w", place, err)
	}
	if err := checkDirectUse(ctx, store, p.applied.Load()); err != nil {
		store.Close()
		return nil, fmt.Errorf("open %v: %w", place, err)
	}
	return store, nil
}

// enter finds out what has become of the store's sessions before it serves: whether they were moved
// away, or are still being moved here, or wait in the state file.
func (p *process) enter(ctx context.Context) error {
	store, ok := p.sessions.Store().(backends.Movable)
	if !ok {
		return nil
	}
	away, into, err := store.Moves(ctx)
	switch {
	case err != nil:
		return err
	case away.Stage >= backends.Moving:
		return errMovedAway(away)
	case into.Stage == backends.Moving && into.From == string(config.ModeStateServer):
		p.log.Error("the server ended while it moved sessions from memory to this store: those that had not been moved are lost")
		return store.Complete(ctx, into)
	case into.Stage == backends.Moving:
		return p.sessions.Resume(ctx, into)
	}
	return p.loadState(ctx)
}

// errMovedAway says what to write where the settings name a store that sessions were moved away from.
func errMovedAway(away backends.Move) error {
	to, err := config.PlaceOf(away.To)
	switch {
	case err != nil:
		return errors.New("the sessions were moved away from this store: set sqlConnectionString to where they are now")
	case to.Mode == config.ModeStateServer:
		return errors.New("the sessions were moved from this store to the memory of a server: set mode: StateServer, or switch that server back to this store (aspstate switch)")
	default:
		return fmt.Errorf("the sessions were moved from this store to %v: set sqlConnectionString to that", to)
	}
}

// loadState reads the sessions of the last process in mode StateServer.
func (p *process) loadState(ctx context.Context) error {
	store, ok := p.sessions.Store().(*memory.Store)
	if path := p.config.Memory.StateFile; ok && path != "" {
		n, err := server.LoadState(ctx, store, path)
		switch {
		case errors.Is(err, server.ErrDamagedState):
			p.log.Error("the sessions of the last run cannot be had", "error", err)
		case err != nil:
			return fmt.Errorf("memory.stateFile: read %s: %w; mend that, or move the file away", path, err)
		case n > 0:
			p.log.Info("the sessions of the last run are back", "sessions", n, "file", path)
		}
	}
	return nil
}

// finishMove waits until no session is left in a store that ends with this process.
func (p *process) finishMove(ctx context.Context) {
	told := false
	for {
		progress, ok := p.sessions.Progress()
		if !ok || progress.Over || progress.Move.From != string(config.ModeStateServer) {
			return
		}
		if !told {
			told = true
			p.log.Info("stopping when all sessions have been moved out of memory", "left", progress.Total-progress.Done)
		}
		select {
		case <-ctx.Done():
			p.log.Error("not all sessions were moved out of memory before the stop, the others are lost", "left", progress.Total-progress.Done)
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// saveState writes the sessions of mode StateServer for the next process.
func (p *process) saveState() {
	store, ok := p.sessions.Store().(*memory.Store)
	path := p.config.Memory.StateFile
	if !ok || path == "" {
		return
	}
	begun := time.Now()
	n, err := server.SaveState(context.Background(), store, path)
	if err != nil {
		p.log.Error("the sessions could not be kept for the next start, they are lost", "file", path, "error", err)
		return
	}
	p.log.Info("the sessions are kept for the next start", "sessions", n, "file", path, "took", time.Since(begun).Round(time.Millisecond))
}

// applyOrigins puts takeOver and applications into force. was are the settings before, nil for none.
func (p *process) applyOrigins(was, c *config.Config) {
	if was == nil || was.TakeOver != c.TakeOver {
		if c.TakeOver == "" {
			p.sessions.TakeOver("", nil)
		} else {
			p.sessions.TakeOver(c.TakeOver, stateserver.Other{Address: c.TakeOver})
			p.log.Info("sessions that are missing here are taken over from another state server", "address", c.TakeOver)
		}
	}
	if was != nil && was.Applications.String() == c.Applications.String() {
		return
	}
	aliases := make([]server.Alias, len(c.Applications))
	for i, app := range c.Applications {
		aliases[i] = server.Alias(app)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.sessions.SetAliases(ctx, aliases); err != nil {
		p.log.Warn("the applications in the store could not be read, it is tried again when they are needed", "error", err)
	}
}

// switchWithSettings moves the sessions where the settings have them now, if that has changed.
func (p *process) switchWithSettings(applied []string, to config.Place) {
	if !slices.Contains(applied, "mode") && !slices.Contains(applied, "sqlConnectionString") {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.switchTo(ctx, to)
	}()
}

// Switch implements admin.Process.
func (p *process) Switch(ctx context.Context, to string) error {
	place, err := config.PlaceAt(to, p.environ)
	if err != nil {
		return err
	}
	return p.switchTo(ctx, place)
}

func (p *process) switchTo(ctx context.Context, to config.Place) error {
	p.log.Info("switching to another store", "to", to)
	err := p.sessions.Switch(ctx, to.Text())
	if err != nil {
		p.log.Error("the sessions stay where they are", "error", err)
	}
	return err
}
