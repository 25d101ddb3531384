package backendtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"

	"aspstate/backends"
)

// move is a move with this ID.
func move(id string) backends.Move {
	return backends.Move{ID: id, From: "sqlite:from é.db", To: "postgres://to"}
}

// completed is move(id) as it is kept when it is over: without what is secret.
func completed(id string) backends.Move {
	return backends.Move{ID: id, From: "sqlite:é", To: "postgres://"}
}

// at is the move as a store keeps it.
func at(m backends.Move, stage backends.Stage) backends.Move {
	if stage == backends.Moved {
		m = completed(m.ID)
	}
	m.Stage = stage
	return m
}

func (s *suite) leave(m backends.Move) {
	s.Helper()
	s.is("Leave", s.movable().Leave(s.ctx, m), nil)
}

func (s *suite) enter(m backends.Move) {
	s.Helper()
	s.is("Enter", s.movable().Enter(s.ctx, m), nil)
}

func (s *suite) complete(id string) {
	s.Helper()
	s.is("Complete", s.movable().Complete(s.ctx, completed(id)), nil)
}

func (s *suite) moves(away, into backends.Move) {
	s.Helper()
	gotAway, gotInto, err := s.movable().Moves(s.ctx)
	s.is("Moves", err, nil)
	if gotAway != away || gotInto != into {
		s.Fatalf("Moves: away %+v, into %+v, want %+v, %+v", gotAway, gotInto, away, into)
	}
}

// isMoved fails the case unless err is how a store that was left fails.
func (s *suite) isMoved(what string, err error) {
	s.Helper()
	s.is(what, err, backends.ErrMoved)
	s.is(what, err, backends.ErrNotApplied)
	if backends.IsAnswer(err) || errors.Is(err, backends.ErrPermanent) {
		s.Fatalf("%s: %v is an answer, or permanent", what, err)
	}
}

// left asserts that every operation on this session (an unlocked one) and on others fails as moved, on any store.
func (s *suite) left(store backends.Store, key backends.Key) {
	s.Helper()
	at := *s
	at.Store = store
	for _, op := range operations {
		if op.name == "Ping" {
			s.is("Ping", op.do(s.ctx, &at, key, newToken()), nil)
			continue
		}
		s.isMoved(op.name, op.do(s.ctx, &at, key, newToken()))
		s.isMoved(op.name+" of a missing session", op.do(s.ctx, &at, backends.Key{App: s.app, ID: "missing"}, newToken()))
	}
	for _, size := range []int{1, 7000, 1 << 20} {
		w := write(timeout)
		w.Data = randomData(size)
		for _, w.Condition = range []backends.Condition{backends.IfUnlocked, backends.IfMissing, backends.IfCookie} {
			s.isMoved("Set", store.Set(s.ctx, key, newToken(), w))
			s.isMoved("Set of a new session", store.Set(s.ctx, backends.Key{App: s.app, ID: "new"}, newToken(), w))
		}
	}
	s.isMoved("Remove", store.Remove(s.ctx, key, newToken(), 1, backends.IfCookie))
	for _, name := range []string{"/lm/w3svc/1/root", "/unknown"} {
		for _, create := range []bool{false, true} {
			_, err := store.Application(s.ctx, name, create)
			s.isMoved("Application", err)
		}
	}
	if shared, ok := store.(backends.Shared); ok {
		_, err := shared.Expect(s.ctx, key)
		s.isMoved("Expect", err)
		s.within("Listen", func() {
			err = shared.Listen(s.ctx, func() {}, func(backends.Key) {})
		})
		s.isMoved("Listen", err)
	}
}

// snapshot is what List tells, but for what goes by with time.
func (s *suite) snapshot() (all []backends.Session) {
	s.Helper()
	all = s.list(backends.Query{Data: true, Limit: 10_000})
	for i := range all {
		all[i].Left, all[i].LockAge = 0, 0
	}
	return all
}

var leaveCases = []testCase{
	{"before any move there is none", func(s *suite) {
		s.moves(backends.Move{}, backends.Move{})
	}},
	{"ends every operation, on every session", func(s *suite) {
		key, lockedKey, expired := s.key(), s.key(), s.key()
		s.create(key)
		s.createLocked(lockedKey)
		s.createLocked(expired)
		s.expire(expired, timeout)
		due := s.key()
		s.createUninitialized(due)
		s.backdate(due, timeout*3/5) // an operation would renew it
		m := move("one")
		s.leave(m)
		s.moves(at(m, backends.Moving), backends.Move{})
		before := s.snapshot()
		for _, key := range []backends.Key{key, lockedKey, expired, due} {
			s.left(s.Store, key)
		}
		s.sameKeys("what is there", s.list(backends.Query{}), keysOf(before)...)
		if !reflect.DeepEqual(s.snapshot(), before) {
			s.Fatal("operations have changed a store that was left")
		}
		s.between("what is left", s.inspect(due).Left, 0, timeout*2/5+backends.Slack(timeout))
		if session := s.inspect(due); !session.Uninitialized {
			s.Fatal("an operation has cleared a mark in a store that was left")
		}
		if session := s.inspect(lockedKey); !session.Locked {
			s.Fatal("an operation has unlocked a session in a store that was left")
		}
		_, err := s.movable().Inspect(s.ctx, expired)
		s.is("Inspect", err, backends.ErrNotFound)
		if infos := s.applications(); len(infos) != 1 || infos[0].Sessions != 3 || infos[0].Locked != 1 {
			s.Fatalf("Applications: %v", infos)
		}
		s.leave(m)
		s.moves(at(m, backends.Moving), backends.Move{})
		s.complete("one")
		s.moves(at(m, backends.Moved), backends.Move{})
		s.left(s.Store, key)
		s.leave(m)
		s.complete("one")
		s.moves(at(m, backends.Moved), backends.Move{})
		if _, err := s.movable().Import(s.ctx, "", []backends.Session{before[0]}); !errors.Is(err, backends.ErrMoved) {
			s.Fatalf("Import into a store that was left: %v", err)
		}
		s.is("Close", s.Store.Close(), nil)
	}},
	{"lets sessions expire, and forgets none before", func(s *suite) {
		short, long := s.key(), s.key()
		s.set(short, write(minute))
		s.create(long)
		s.leave(move("one"))
		s.expire(short, minute)
		_, err := s.movable().Inspect(s.ctx, short)
		s.is("Inspect", err, backends.ErrNotFound)
		s.sameKeys("List", s.list(backends.Query{}), long)
	}},
	{"is final: no other move leaves, or is repeated under another name", func(s *suite) {
		s.leave(move("one"))
		for range 2 {
			s.isMoved("Leave", s.movable().Leave(s.ctx, move("two")))
			s.isMoved("Enter", s.movable().Enter(s.ctx, move("one")))
			s.is("Complete", s.movable().Complete(s.ctx, completed("two")), backends.ErrPermanent)
			s.moves(at(move("one"), backends.Moving), backends.Move{})
		}
		s.complete("one")
		s.isMoved("Leave", s.movable().Leave(s.ctx, move("two")))
		s.moves(at(move("one"), backends.Moved), backends.Move{})
	}},
	{"is refused while sessions still come in", func(s *suite) {
		s.enter(move("one"))
		s.isMoved("Leave", s.movable().Leave(s.ctx, move("two")))
		s.create(s.key())
		s.complete("one")
		s.leave(move("two"))
		s.moves(at(move("two"), backends.Moving), at(move("one"), backends.Moved))
	}},
	{"while requests run, keeps all that was acknowledged and nothing later", func(s *suite) {
		const workers = 16
		type session struct {
			key    backends.Key
			data   []byte
			cookie backends.Cookie
			begun  atomic.Int64 // pages
		}
		var all [workers]session
		for i := range all {
			all[i].key = s.key()
			w := s.create(all[i].key)
			all[i].data, all[i].cookie = w.Data, 1
		}
		var gone atomic.Bool // Leave has returned
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() {
				own := &all[i]
				for {
					late := gone.Load()
					item, err := s.Store.GetExclusive(s.ctx, own.key, newToken())
					if err == nil {
						own.cookie = item.LockCookie
						w := write(timeout)
						if i == 0 {
							w.Data = randomData(300_000)
						}
						w.LockCookie = item.LockCookie
						lateSet := gone.Load()
						if err = s.Store.Set(s.ctx, own.key, newToken(), w); err == nil {
							own.data = w.Data
							if lateSet {
								s.Error("a Set succeeds after Leave has returned")
							}
						}
						if late {
							s.Error("a GetExclusive succeeds after Leave has returned")
						}
					}
					own.begun.Add(1)
					if err != nil {
						if !errors.Is(err, backends.ErrMoved) {
							s.Errorf("a page fails with %v", err)
						}
						return
					}
				}
			})
		}
		for i := range all {
			for all[i].begun.Load() < 5 { // they are well under way
				s.lockAndRelease()
			}
		}
		s.leave(move("one"))
		gone.Store(true)
		before := s.snapshot()
		wg.Wait()
		if !reflect.DeepEqual(s.snapshot(), before) {
			s.Fatal("something has changed after Leave had returned")
		}
		for i := range all {
			got := s.inspect(all[i].key)
			if !bytes.Equal(got.Data, all[i].data) || got.LockCookie != all[i].cookie {
				s.Fatalf("session %d holds %s with cookie %d, acknowledged were %s and %d", i, brief(got.Data), got.LockCookie, brief(all[i].data), all[i].cookie)
			}
		}
	}},
	{"repeats the answers of what was applied before, and applies nothing", func(s *suite) {
		const rounds = 60
		type request struct {
			key  backends.Key
			kind int
			do   func(ctx context.Context) error
			item backends.Item
			data []byte
		}
		in := &interruption{typical: 200_000}
		var mu sync.Mutex
		var all []*request
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				s := s.forWorker()
				for i := range rounds {
					r := &request{key: s.key(), kind: i % 4}
					w := s.createUninitialized(r.key)
					tok := newToken()
					switch r.kind {
					case 0:
						r.do = func(ctx context.Context) (err error) {
							r.item, err = s.Store.GetExclusive(ctx, r.key, tok)
							return err
						}
					case 1:
						w.Data, w.Condition = randomData(100), backends.IfUnlocked
						r.do = func(ctx context.Context) error { return s.Store.Set(ctx, r.key, tok, w) }
					case 2:
						r.do = func(ctx context.Context) error {
							return s.Store.Remove(ctx, r.key, tok, 1, backends.IfUnlocked)
						}
					default:
						r.do = func(ctx context.Context) (err error) {
							r.item, err = s.Store.Get(ctx, r.key, tok)
							return err
						}
					}
					r.data = w.Data
					if _, answered := in.try(s, "a request", r.do); !answered {
						mu.Lock()
						all = append(all, r)
						mu.Unlock()
					}
				}
			})
		}
		wg.Wait()
		s.leave(move("one"))
		before, applied := s.snapshot(), 0
		for _, r := range all {
			session, err := s.movable().Inspect(s.ctx, r.key)
			there := err == nil
			var did bool
			switch r.kind {
			case 0:
				did = session.Locked
			case 1:
				did = bytes.Equal(session.Data, r.data)
			case 2:
				did = !there
			default:
				did = !session.Uninitialized
			}
			err = r.do(s.ctx)
			if !did {
				s.isMoved(fmt.Sprintf("request %d that was not applied", r.kind), err)
				continue
			}
			applied++
			s.is(fmt.Sprintf("request %d that was applied", r.kind), err, nil)
			if r.kind%3 == 0 && (!r.item.Uninitialized || !bytes.Equal(r.item.Data, r.data)) {
				s.Fatalf("the answer that was lost is repeated as %+v", r.item)
			}
			if r.kind == 0 && r.item.LockCookie != 2 {
				s.Fatalf("the lock that was taken is repeated with cookie %d", r.item.LockCookie)
			}
		}
		s.Logf("%d requests were cut short, %d of them were applied", len(all), applied)
		if !reflect.DeepEqual(s.snapshot(), before) {
			s.Fatal("retries have changed a store that was left")
		}
	}},
}

// lockAndRelease is a page of its own.
func (s *suite) lockAndRelease() {
	s.Helper()
	key := s.key()
	s.create(key)
	s.release(key, s.lock(key))
}

// counter reads what counterData wrote.
func counter(data []byte) uint64 { return binary.LittleEndian.Uint64(data) }
