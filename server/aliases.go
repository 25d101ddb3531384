package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"aspstate/backends"
)

// Alias is a list of app ids that share their sessions.
type Alias struct {
	Name string
	IDs  []string // as web servers send them, in any letter case
}

// Sessions of an alias are kept under an application of its own, whose name ends in "/" and so is no
// app id's (splitKey). When the list changes, sessions are found under the application that they were kept under
// before: the app ids' own, or that of the alias which had them. The latter is known by the names of applications that
// are only registered to be read again.

// aliases are the aliases in force.
type aliases struct {
	byID   map[string]string // an app id in lower case: the application of its alias
	groups []Alias

	loading sync.Mutex
	former  atomic.Pointer[map[string][]string] // by an application's name: those that had its sessions before
}

// matter reports whether any application may have sessions that were another's before.
func (a *aliases) matter() bool {
	if a == nil {
		return false
	}
	former := a.former.Load()
	return former == nil || len(*former) > 0
}

func aliasName(name string) string { return name + "/" }

// memberName is the name of an application that says only that an alias has, or had, an app id.
func memberName(alias, id string) string { return alias + "/<" + id + ">/" }

// splitMember is memberName's inverse.
func splitMember(name string) (alias, id string, ok bool) {
	if alias, id, ok = strings.Cut(name, "/<"); ok {
		id, ok = strings.CutSuffix(id, ">/")
	}
	return alias, id, ok && alias != "" && !strings.ContainsAny(alias, "/()")
}

// SetAliases puts the aliases in force. Applications that were found before are found anew.
func (s *Sessions) SetAliases(ctx context.Context, groups []Alias) error {
	a := &aliases{byID: make(map[string]string), groups: groups}
	for _, g := range groups {
		for _, id := range g.IDs {
			a.byID[strings.ToLower(id)] = aliasName(g.Name)
		}
	}
	err := a.load(ctx, s.Store())
	s.aliases.Store(a)
	s.applications.forget()
	s.renewRoute()
	return err
}

// keepAliases leaves word of who has which app id often enough that the store does not forget it, until ctx ends.
func (s *Sessions) keepAliases(ctx context.Context) {
	for {
		wait := resolveEvery
		if a := s.aliases.Load(); a != nil && len(a.groups) > 0 {
			if err := a.load(ctx, s.Store()); err != nil && ctx.Err() == nil {
				s.log.Warn("the aliases could not be registered in the store", "error", err)
				wait = time.Minute
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// application is the name of the application that has the sessions of this one.
func (a *aliases) application(name string) string {
	if a == nil || len(a.byID) == 0 {
		return name
	}
	if alias, ok := a.byID[strings.ToLower(name)]; ok {
		return alias
	}
	// A framework that keys the hash: "/app id(hash)/".
	if keyed, ok := strings.CutSuffix(name, ")/"); ok {
		if open := strings.LastIndexByte(keyed, '('); open > 0 {
			id := strings.ToLower(keyed[:open])
			if alias, ok := a.byID[id]; ok {
				return alias
			}
			if alias, ok := a.byID[strings.TrimPrefix(id, "/")]; ok {
				return alias
			}
		}
	}
	return name
}

// load reads which applications had sessions of others before, and leaves word of who has them now.
func (a *aliases) load(ctx context.Context, store backends.Store) error {
	a.loading.Lock()
	defer a.loading.Unlock()
	inspector, ok := store.(backends.Inspector)
	if !ok {
		a.former.Store(&map[string][]string{})
		return nil
	}
	list, err := backends.Names(ctx, inspector)
	if err != nil {
		return fmt.Errorf("read the applications: %w", err)
	}
	former := make(map[string][]string)
	add := func(now, before string) {
		if now != before && !slices.Contains(former[now], before) {
			former[now] = append(former[now], before)
		}
	}
	for _, g := range a.groups {
		for _, id := range g.IDs {
			id = strings.ToLower(id)
			add(aliasName(g.Name), id)
			if _, err := store.Application(ctx, memberName(g.Name, id), true); err != nil {
				return fmt.Errorf("register an alias: %w", err)
			}
		}
	}
	for _, app := range list {
		if alias, id, ok := splitMember(app.Name); ok {
			add(a.application(id), aliasName(alias))
		} else {
			add(a.application(app.Name), app.Name)
		}
	}
	a.former.Store(&former)
	return nil
}

// aliasOrigin moves sessions to the application that has them now.
type aliasOrigin struct {
	lending
	aliases *aliases
}

func (o *aliasOrigin) concerns(app *Application) bool {
	former := o.aliases.former.Load()
	return former == nil || len((*former)[app.Name]) > 0
}

func (o *aliasOrigin) claim(ctx context.Context, r *route, session Session, cookie backends.Cookie) error {
	if o.aliases.former.Load() == nil {
		if err := o.aliases.load(ctx, r.store); err != nil {
			return err
		}
	}
	for _, name := range (*o.aliases.former.Load())[session.App.Name] {
		if err := o.lending.claim(ctx, r, name, application{o.s, r, name}, session, cookie); err != nil {
			return err
		}
	}
	return nil
}

// application is an application of the store as a lender.
type application struct {
	s    *Sessions
	r    *route
	name string
}

func (l application) key(ctx context.Context, session Session) (backends.Key, error) {
	session.App = &Application{Name: l.name}
	if l.r.moving != nil {
		if err := l.r.moving.claim(ctx, l.r, session, backends.NoCookie); err != nil {
			return backends.Key{}, err
		}
	}
	id, err := l.r.store.Application(ctx, l.name, false)
	if errors.Is(err, backends.ErrUnknownApplication) {
		err = backends.ErrNotFound
	}
	return backends.Key{App: id, ID: session.ID}, err
}

func (l application) GetExclusive(ctx context.Context, session Session) (item backends.Item, err error) {
	key, err := l.key(ctx, session)
	if err != nil {
		return item, err
	}
	// Most sessions are not there: that is found out without writing. So it is that one cannot be opened.
	found, err := l.r.store.(movable).Inspect(ctx, key)
	if err == nil {
		_, err = l.s.open(l.name, session.ID, found.Data)
	}
	if err != nil {
		return item, err
	}
	if item, err = l.r.store.GetExclusive(ctx, key, l.s.token()); err != nil {
		return item, err
	}
	cookie := item.LockCookie
	if item.Data, err = l.s.open(l.name, session.ID, item.Data); err != nil { // replaced in between
		return item, errors.Join(err, l.Release(ctx, session, cookie))
	}
	return item, nil
}

func (l application) Release(ctx context.Context, session Session, cookie backends.Cookie) error {
	key, err := l.key(ctx, session)
	if err == nil {
		_, err = l.r.store.Release(ctx, key, l.s.token(), cookie, backends.IfUnlocked)
	}
	return err
}

func (l application) Remove(ctx context.Context, session Session, cookie backends.Cookie) error {
	key, err := l.key(ctx, session)
	if err == nil {
		err = l.r.store.Remove(ctx, key, l.s.token(), cookie, backends.IfUnlocked)
	}
	return err
}
