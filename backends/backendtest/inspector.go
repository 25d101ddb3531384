package backendtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"aspstate/backends"
)

func (s *suite) inspect(key backends.Key) backends.Session {
	s.Helper()
	session, err := s.Store.(backends.Inspector).Inspect(s.ctx, key)
	s.is("Inspect", err, nil)
	return session
}

func (s *suite) list(q backends.Query) []backends.Session {
	s.Helper()
	if q.Limit == 0 {
		q.Limit = 1000
	}
	sessions, err := s.Store.(backends.Inspector).List(s.ctx, q)
	s.is("List", err, nil)
	return sessions
}

func (s *suite) applications() []backends.ApplicationInfo {
	s.Helper()
	infos, err := s.Store.(backends.Inspector).Applications(s.ctx)
	s.is("Applications", err, nil)
	names, err := backends.Names(s.ctx, s.Store.(backends.Inspector))
	s.is("Names", err, nil)
	same := func(a, b backends.ApplicationInfo) bool { return a.ID == b.ID && a.Name == b.Name }
	if !slices.EqualFunc(infos, names, same) {
		s.Fatalf("Applications and Names differ: %v, %v", infos, names)
	}
	return infos
}

// between fails the case unless from <= d <= to.
func (s *suite) between(what string, d, from, to time.Duration) {
	s.Helper()
	if d < from || d > to {
		s.Fatalf("%s is %v, want %v to %v", what, d, from, to)
	}
}

// isSession asserts what Inspect or List tells of a session that was touched within margin, but for its lock.
func (s *suite) isSession(got backends.Session, key backends.Key, w backends.Write) {
	s.Helper()
	if got.Key != key {
		s.Fatalf("key is %v, want %v", got.Key, key)
	}
	if !bytes.Equal(got.Data, w.Data) || got.Size != len(w.Data) {
		s.Fatalf("data are %s, size %d, want %s", brief(got.Data), got.Size, brief(w.Data))
	}
	if got.Timeout != w.Timeout {
		s.Fatalf("timeout is %v, want %v", got.Timeout, w.Timeout)
	}
	if w.Timeout == backends.NeverExpires {
		s.between("what is left", got.Left, 0, 0)
	} else {
		s.between("what is left", got.Left, w.Timeout-margin, w.Timeout+backends.Slack(w.Timeout))
	}
}

func (s *suite) isLock(got backends.Session, locked bool, cookie backends.Cookie, age time.Duration) {
	s.Helper()
	if got.Locked != locked || got.LockCookie != cookie {
		s.Fatalf("locked is %t with cookie %d, want %t with cookie %d", got.Locked, got.LockCookie, locked, cookie)
	}
	s.between("the lock's age", got.LockAge, age, age+margin)
}

// orders are all orders, with what makes a session come before another.
var orders = []struct {
	order   backends.Order
	name    string
	compare func(a, b backends.Session) int
}{
	{backends.ByKey, "by key", func(a, b backends.Session) int { return a.Key.Compare(b.Key) }},
	{backends.BySize, "by size", func(a, b backends.Session) int {
		return cmp.Or(b.Size-a.Size, a.Key.Compare(b.Key))
	}},
	{backends.ByLockAge, "by lock age", func(a, b backends.Session) int { return cmp.Compare(b.LockAge, a.LockAge) }},
	{backends.ByCreated, "by creation", func(a, b backends.Session) int { return a.Created.Compare(b.Created) }},
}

// keysOf shortens lists for comparison.
func keysOf(sessions []backends.Session) (keys []backends.Key) {
	for _, session := range sessions {
		keys = append(keys, session.Key)
	}
	return keys
}

func (s *suite) sameKeys(what string, got []backends.Session, want ...backends.Key) {
	s.Helper()
	if !slices.Equal(keysOf(got), want) {
		s.Fatalf("%s: %v, want %v", what, keysOf(got), want)
	}
}

var inspectorCases = []testCase{
	{"tells all of a session", func(s *suite) {
		for _, timeout := range []time.Duration{timeout, minute, 525600 * minute, backends.NeverExpires} {
			key := s.key()
			w := write(timeout)
			w.Uninitialized = true
			s.set(key, w)
			see := func(locked bool, cookie backends.Cookie, age time.Duration) backends.Session {
				s.Helper()
				session := s.inspect(key)
				s.isSession(session, key, w)
				s.isLock(session, locked, cookie, age)
				return session
			}
			session := see(false, 1, 0)
			if !session.Uninitialized {
				s.Fatal("the mark is not told")
			}
			s.between("the creation", time.Since(session.Created), -margin, margin)
			s.backdate(key, 30*time.Second)
			s.lock(key)
			if session = see(true, 2, 0); session.Uninitialized {
				s.Fatal("a mark is told that was cleared")
			}
			s.between("the creation", time.Since(session.Created), 30*time.Second-margin, 30*time.Second+margin)
			s.backdate(key, 30*time.Second)
			s.release(key, 2)
			see(false, 2, 30*time.Second)
			s.set(key, w)
			see(false, 2, 30*time.Second)
		}
	}},
	{"tells what is left, and the age of a lock, exactly", func(s *suite) {
		key := s.key()
		s.createLocked(key)
		before := s.inspect(key)
		s.backdate(key, 5*minute)
		after := s.inspect(key)
		s.between("what is gone", before.Left-after.Left, 5*minute, 5*minute+margin)
		s.between("what the lock has aged", after.LockAge-before.LockAge, 5*minute, 5*minute+margin)
		if age := s.locked(key, 2).Age; age < after.LockAge || age > after.LockAge+margin {
			s.Fatalf("the lock is told to be %v old, and the next request hears %v", after.LockAge, age)
		}
	}},
	{"gives a session that was never locked the age of its creation", func(s *suite) {
		key := s.key()
		s.create(key)
		s.backdate(key, 7*minute)
		s.isLock(s.inspect(key), false, 1, 7*minute)
	}},
	{"changes nothing", func(s *suite) {
		look := func(key backends.Key) {
			s.Helper()
			s.inspect(key)
			for _, o := range orders {
				s.list(backends.Query{Order: o.order, Data: true})
			}
			s.applications()
		}
		for range 3 {
			key := s.key()
			s.createUninitialized(key)
			look(key)
			if !s.get(key).Uninitialized {
				s.Fatal("a look has cleared the mark")
			}
			s.backdate(key, timeout*3/5)
			look(key)
			s.backdate(key, timeout*3/5)
			s.missing(key)
		}
	}},
	{"does not find what has expired", func(s *suite) {
		for _, d := range dead {
			key := s.key()
			d.make(s, key)
			_, err := s.Store.(backends.Inspector).Inspect(s.ctx, key)
			s.is(d.name+": Inspect", err, backends.ErrNotFound)
			for _, o := range orders {
				s.sameKeys(d.name+": List "+o.name, s.list(backends.Query{Order: o.order}))
			}
			if got, want := s.applications(), (backends.ApplicationInfo{ID: s.app, Name: "/lm/w3svc/1/root"}); len(got) != 1 || got[0] != want {
				s.Fatalf("%s: Applications: %v, want %v", d.name, got, want)
			}
		}
		live := s.key()
		s.create(live)
		s.sameKeys("List", s.list(backends.Query{Limit: 1}), live)
	}},
	{"lists in every order", func(s *suite) {
		for i := range 40 {
			key := s.key()
			w := write(timeout)
			w.Data = randomData(1 + i*7919%40*300/(1+i%3))
			s.set(key, w)
			s.backdate(key, time.Duration(i*7919%40)*10*time.Second)
			if i%3 != 0 {
				s.lock(key)
				s.backdate(key, time.Duration(i*104729%40)*10*time.Second)
			}
		}
		all := s.list(backends.Query{Data: true})
		for _, o := range orders {
			want := slices.Clone(all)
			if o.order == backends.ByLockAge {
				want = slices.DeleteFunc(want, func(session backends.Session) bool { return !session.Locked })
			}
			slices.SortStableFunc(want, o.compare)
			for _, n := range []int{1, 7, 26, 39, 40, 1000} {
				got := s.list(backends.Query{Order: o.order, Limit: n})
				// Equal ages may be a tick apart, one way or the other.
				same := slices.EqualFunc(got, want[:min(n, len(want))], func(a, b backends.Session) bool {
					return a.Key == b.Key || o.order == backends.ByLockAge && (a.LockAge-b.LockAge).Abs() < tick ||
						o.order == backends.ByCreated && a.Created.Sub(b.Created).Abs() < tick
				})
				if !same {
					s.Fatalf("%d %s: %v, want %v", n, o.name, keysOf(got), keysOf(want))
				}
			}
		}
	}},
	{"lists what Inspect tells, and data only if asked", func(s *suite) {
		for i := range 10 {
			key := s.key()
			w := write(timeout + time.Duration(i)*minute)
			w.Uninitialized = i%2 == 0
			w.Data = randomData(1 + i*3000)
			s.set(key, w)
			if i%3 == 0 {
				s.lock(key)
				s.backdate(key, minute)
			}
		}
		for _, o := range orders {
			for _, data := range []bool{false, true} {
				for _, got := range s.list(backends.Query{Order: o.order, Data: data}) {
					want := s.inspect(got.Key)
					s.between("what has gone since", got.Left-want.Left, 0, margin)
					s.between("what the lock has aged since", want.LockAge-got.LockAge, 0, margin)
					if data != (got.Data != nil) || data && !bytes.Equal(got.Data, want.Data) {
						s.Fatalf("%s: data are %s, want %s if %t", o.name, brief(got.Data), brief(want.Data), data)
					}
					got.Data, got.Left, got.LockAge = want.Data, want.Left, want.LockAge
					if !reflect.DeepEqual(got, want) {
						s.Fatalf("%s: %v, want %v", o.name, got, want)
					}
				}
			}
		}
	}},
	{"pages by key, over applications of both signs", func(s *suite) {
		apps := []backends.AppID{s.app}
		for i := 0; len(apps) < 4 || apps[0] >= 0 || apps[len(apps)-1] < 0; i++ {
			apps = append(apps, s.application(fmt.Sprintf("/lm/w3svc/%d/root", i+2)))
			slices.Sort(apps)
		}
		var keys []backends.Key
		for _, app := range apps {
			for _, id := range []string{"a", "B", "aa", "ab", "é", "\U0010ffff", "a\uffff", "%", "_", "A", "~", strings.Repeat("z", 80)} {
				keys = append(keys, backends.Key{App: app, ID: id})
			}
		}
		for _, key := range keys {
			s.create(key)
		}
		slices.SortFunc(keys, backends.Key.Compare)
		for _, n := range []int{1, 2, 5, len(keys) - 1, len(keys), len(keys) + 1} {
			var got []backends.Session
			q := backends.Query{Limit: n}
			for {
				page := s.list(q)
				got = append(got, page...)
				if len(page) < n {
					break
				}
				if len(page) > n || len(got) > len(keys) {
					s.Fatalf("pages of %d: one has %d sessions, and all have %d", n, len(page), len(got))
				}
				q.After = page[n-1].Key
			}
			s.sameKeys(fmt.Sprint("pages of ", n), got, keys...)
		}
		// What is removed meanwhile is left out, what is behind is not.
		first := s.list(backends.Query{Limit: 10})
		for _, key := range keys[5:15] {
			s.is("Remove", s.Store.Remove(s.ctx, key, newToken(), 1, backends.IfUnlocked), nil)
		}
		s.sameKeys("the page behind", s.list(backends.Query{After: first[9].Key, Limit: 10}), keys[15:25]...)
		s.sameKeys("the page after the last", s.list(backends.Query{After: keys[len(keys)-1]}))
	}},
	{"lists only what is asked for", func(s *suite) {
		other := s.application("/lm/w3svc/2/root")
		var all []backends.Session
		for i, id := range []string{"a", "ab", "abc", "aB", "b", "ba", "é", "éa", "%", "%a", "_", "a%", "ab\uffff", "\U0010ffff", "\U0010ffffa"} {
			for _, app := range []backends.AppID{s.app, other} {
				key := backends.Key{App: app, ID: id}
				s.create(key)
				if i%2 == 0 == (app == s.app) {
					s.lock(key)
				}
				all = append(all, s.inspect(key))
			}
		}
		slices.SortFunc(all, func(a, b backends.Session) int { return a.Key.Compare(b.Key) })
		for _, o := range orders {
			for _, app := range []*backends.AppID{nil, &s.app, &other} {
				for _, id := range []string{"", "a", "ab", "abcd", "é", "\xc3", "%", "_", "\U0010ffff"} {
					for _, locked := range []bool{false, true} {
						for _, after := range []backends.Key{{}, all[7].Key, all[20].Key} {
							q := backends.Query{App: app, ID: id, Locked: locked, Order: o.order, Limit: 1000}
							if o.order == backends.ByKey {
								q.After = after
							}
							want := map[backends.Key]bool{}
							for _, session := range all {
								want[session.Key] = (app == nil || session.App == *app) && strings.HasPrefix(session.ID, id) &&
									(session.Locked || !locked && o.order != backends.ByLockAge) &&
									(q.After == backends.Key{} || session.Key.Compare(q.After) > 0)
							}
							for _, session := range s.list(q) {
								if !want[session.Key] {
									s.Fatalf("%+v: %v is listed", q, session.Key)
								}
								delete(want, session.Key)
							}
							for key, missed := range want {
								if missed {
									s.Fatalf("%+v: %v is not listed", q, key)
								}
							}
						}
					}
				}
			}
		}
	}},
	{"counts applications", func(s *suite) {
		names := []string{"/lm/w3svc/1/root", "/LM/W3SVC/1/ROOT", "/", "é", "/lm/w3svc/1/root/a", "empty"}
		slices.Sort(names)
		var want []backends.ApplicationInfo
		for i, name := range names {
			info := backends.ApplicationInfo{ID: s.application(name), Name: name}
			for n := range i {
				key := s.key()
				key.App = info.ID
				w := write(timeout)
				w.Data = randomData(1 + 5000*n)
				s.set(key, w)
				info.Sessions++
				info.Bytes += int64(len(w.Data))
				if n%2 == 1 {
					s.lock(key)
					info.Locked++
				}
			}
			gone := s.key()
			gone.App = info.ID
			s.createLocked(gone)
			if i%2 == 0 {
				s.expire(gone, timeout)
			} else {
				s.is("Remove", s.Store.Remove(s.ctx, gone, newToken(), 2, backends.IfUnlocked), nil)
			}
			want = append(want, info)
		}
		if got := s.applications(); !slices.Equal(got, want) {
			s.Fatalf("Applications: %v, want %v", got, want)
		}
	}},
	{"fails, and does not answer, when the context is over or the store is closed", func(s *suite) {
		key := s.key()
		s.create(key)
		inspector := s.Store.(backends.Inspector)
		calls := map[string]func(ctx context.Context) error{
			"Inspect": func(ctx context.Context) error {
				_, err := inspector.Inspect(ctx, key)
				return err
			},
			"Inspect of a missing session": func(ctx context.Context) error {
				_, err := inspector.Inspect(ctx, s.key())
				if errors.Is(err, backends.ErrNotFound) && ctx.Err() == nil {
					return nil
				}
				return err
			},
			"List": func(ctx context.Context) error {
				_, err := inspector.List(ctx, backends.Query{Limit: 1})
				return err
			},
			"List by size": func(ctx context.Context) error {
				_, err := inspector.List(ctx, backends.Query{Limit: 1, Order: backends.BySize})
				return err
			},
			"Applications": func(ctx context.Context) error {
				_, err := inspector.Applications(ctx)
				return err
			},
			"Names": func(ctx context.Context) error {
				_, err := backends.Names(ctx, inspector)
				return err
			},
		}
		for name, call := range calls {
			s.is(name, call(s.ctx), nil)
			ctx, cancel := context.WithCancel(s.ctx)
			cancel()
			if err := call(ctx); err != nil {
				s.is(name, err, context.Canceled)
			}
		}
		s.is("Close", s.Store.Close(), nil)
		for name, call := range calls {
			s.within(name, func() {
				if err := call(s.ctx); backends.IsAnswer(err) {
					s.Errorf("%s of a closed store answers %v", name, err)
				}
			})
		}
	}},
}
