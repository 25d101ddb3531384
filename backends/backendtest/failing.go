package backendtest

import (
	"context"
	"errors"
	"sync"

	"aspstate/backends"
)

// ErrDown is what a Failing store fails with.
var ErrDown = errors.New("the store is down (planted)")

// Fault meets the calls of a Failing store. It calls apply to let the operation through,
// or not, and returns the call's error: apply's, or another in its place.
type Fault func(ctx context.Context, op string, apply func() error) error

// Down is a store that cannot be reached: nothing is applied.
func Down(context.Context, string, func() error) error { return ErrDown }

// AnswerLost is a store whose answers are lost after the operation was applied.
func AnswerLost(_ context.Context, _ string, apply func() error) error {
	apply()
	return ErrDown
}

// Hang is a store that does not answer before the context ends.
func Hang(ctx context.Context, _ string, _ func() error) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

// Failing is a store that fails on demand.
type Failing struct {
	backends.Store

	mu    sync.Mutex
	fault Fault
}

// Fail sets the fault that calls meet from now on; nil lets them through.
func (f *Failing) Fail(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

func (f *Failing) call(ctx context.Context, op string, apply func() error) error {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault == nil {
		return apply()
	}
	return fault(ctx, op, apply)
}

func (f *Failing) Application(ctx context.Context, name string, create bool) (id backends.AppID, err error) {
	err = f.call(ctx, "application", func() (err error) { id, err = f.Store.Application(ctx, name, create); return })
	return id, err
}

func (f *Failing) Get(ctx context.Context, key backends.Key, tok backends.Token) (item backends.Item, err error) {
	err = f.call(ctx, "get", func() (err error) { item, err = f.Store.Get(ctx, key, tok); return })
	return item, err
}

func (f *Failing) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (item backends.Item, err error) {
	err = f.call(ctx, "get exclusive", func() (err error) { item, err = f.Store.GetExclusive(ctx, key, tok); return })
	return item, err
}

func (f *Failing) Release(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) (uninitialized bool, err error) {
	err = f.call(ctx, "release", func() (err error) { uninitialized, err = f.Store.Release(ctx, key, tok, cookie, cond); return })
	return uninitialized, err
}

func (f *Failing) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	return f.call(ctx, "set", func() error { return f.Store.Set(ctx, key, tok, w) })
}

func (f *Failing) Remove(ctx context.Context, key backends.Key, tok backends.Token, cookie backends.Cookie, cond backends.Condition) error {
	return f.call(ctx, "remove", func() error { return f.Store.Remove(ctx, key, tok, cookie, cond) })
}

func (f *Failing) ResetTimeout(ctx context.Context, key backends.Key) error {
	return f.call(ctx, "reset timeout", func() error { return f.Store.ResetTimeout(ctx, key) })
}

func (f *Failing) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	return f.call(ctx, "unread", func() error { return f.Store.Unread(ctx, key, item) })
}

func (f *Failing) DeleteExpired(ctx context.Context, limit int) (n int, err error) {
	err = f.call(ctx, "delete expired", func() (err error) { n, err = f.Store.DeleteExpired(ctx, limit); return })
	return n, err
}

func (f *Failing) Ping(ctx context.Context) error {
	return f.call(ctx, "ping", func() error { return f.Store.Ping(ctx) })
}
