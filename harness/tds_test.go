//go:build unix

package harness

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"aspstate/backends"
	"aspstate/server/stateserver/client"
	"aspstate/server/stateserver/transcript"
	"aspstate/server/tds"
)

const tdsPassword = "harness: secret"

var tdsHash = sync.OnceValues(func() (string, error) { return tds.HashPassword(tdsPassword) })

// bothPorts starts the servers of a fresh database as processes does, and has them answer mode="SQLServer" as well.
func bothPorts(t *testing.T, s store, lockWait string) (servers []*process) {
	t.Helper()
	hash, err := tdsHash()
	if err != nil {
		t.Fatal(err)
	}
	flags := append(s.flags(t, straight), "--request-budget="+s.budget().String(), "--lock-wait="+lockWait, "--sweep-interval=1s",
		"--tds-listen=127.0.0.1:0", "--tds-users=harness:"+hash)
	n := 1
	if s.shared {
		n = 2
	}
	for range n {
		servers = append(servers, serve(t, program, flags...))
	}
	return servers
}

// tdsClient asks a server as mode="SQLServer" does.
type tdsClient struct {
	t      testing.TB
	db     *sql.DB
	store  store // the server's
	suffix string
}

func dialTDS(t testing.TB, s store, address, options string) *tdsClient {
	t.Helper()
	u := url.URL{Scheme: "sqlserver", User: url.UserPassword("harness", tdsPassword), Host: address, RawQuery: "database=ASPState&" + options}
	db, err := sql.Open("sqlserver", u.String())
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	var id int32
	if _, err := db.Exec("dbo.TempGetAppID", sql.Named("appName", mssql.VarChar(appID)), sql.Named("appId", sql.Out{Dest: &id})); err != nil {
		t.Fatal(err)
	}
	return &tdsClient{t, db, s, backends.AppID(id).Suffix()}
}

func (c *tdsClient) ask(req request) (answer, bool) {
	begun := time.Now()
	ans, err := c.call(req)
	if err != nil {
		c.t.Errorf("%v: %v", req, err)
		return answer{result: unknown}, true
	}
	ans.terse = true
	if req.verb == release && time.Since(begun) > c.store.budget()/2 {
		return answer{result: unknown}, true
	}
	return ans, true
}

func (c *tdsClient) call(req request) (ans answer, err error) {
	id, cookie := sql.Named("id", req.key+c.suffix), sql.Named("lockCookie", int32(req.cookie))
	minutes := sql.Named("timeout", int32(req.timeout/time.Minute))
	switch req.verb {
	case get:
		return c.get("dbo.TempGetStateItem3", id)
	case getExclusive:
		return c.get("dbo.TempGetStateItemExclusive3", id)
	case release:
		return c.change("dbo.TempReleaseStateItemExclusive", id, cookie)
	case remove:
		return c.change("dbo.TempRemoveStateItem", id, cookie)
	case resetTimeout:
		ans, err := c.change("dbo.TempResetTimeout", id)
		if ans.result == silent {
			ans.result = missing
		}
		return ans, err
	}
	item := data(req.content)
	if req.condition == backends.IfMissing {
		ans, err = c.change("dbo.TempInsertUninitializedItem", id, sql.Named("itemShort", item), minutes)
		if e, ok := errors.AsType[mssql.Error](err); ok && e.Number == 2627 {
			return answer{result: exists}, nil
		}
		return ans, err
	}
	if len(item) > 7000 {
		return c.change("dbo.TempUpdateStateItemLongNullShort", id, sql.Named("itemLong", item), minutes, cookie)
	}
	return c.change("dbo.TempUpdateStateItemShortNullLong", id, sql.Named("itemShort", item), minutes, cookie)
}

func (c *tdsClient) change(procedure string, args ...any) (answer, error) {
	result, err := c.db.Exec(procedure, args...)
	if err != nil {
		return answer{}, err
	}
	switch n, _ := result.RowsAffected(); n {
	case 0:
		return answer{result: silent}, nil
	case 1:
		return answer{}, nil
	default:
		return answer{}, fmt.Errorf("%d rows were changed", n)
	}
}

func (c *tdsClient) get(procedure string, id sql.NamedArg) (ans answer, err error) {
	item, isLocked, cookie, flags, err := c.fetch(context.Background(), procedure, id)
	switch {
	case err != nil:
		return ans, err
	case !isLocked.Valid:
		return answer{result: missing}, nil
	}
	ans = answer{cookie: backends.Cookie(cookie.Int32), mark: flags.Int32 == 1}
	if isLocked.Bool {
		ans.result = locked
	} else {
		ans.content = content(c.t, item)
	}
	return ans, nil
}

func (c *tdsClient) fetch(ctx context.Context, procedure string, id sql.NamedArg) (item []byte, locked sql.NullBool, cookie, flags sql.NullInt32, err error) {
	var age sql.NullInt32
	rows, err := c.db.QueryContext(ctx, procedure, id, sql.Named("itemShort", sql.Out{Dest: &item}), sql.Named("locked", sql.Out{Dest: &locked}),
		sql.Named("lockAge", sql.Out{Dest: &age}), sql.Named("lockCookie", sql.Out{Dest: &cookie}), sql.Named("actionFlags", sql.Out{Dest: &flags}))
	if err != nil {
		return
	}
	defer rows.Close()
	var long []byte
	for rows.Next() {
		if err = rows.Scan(&long); err != nil {
			return
		}
	}
	if err = errors.Join(rows.Err(), rows.Close()); long != nil {
		item = long
	}
	return
}

// TestBothPorts checks histories of clients of both modes on the same sessions.
func TestBothPorts(t *testing.T) {
	for _, s := range stores {
		t.Run(s.name+"/answered at once", func(t *testing.T) { several(t, rand.Uint64, 1, s, bothPortsHistories("0s")) })
		t.Run(s.name+"/waiting for locks", func(t *testing.T) { several(t, rand.Uint64, 1, s, bothPortsHistories("100ms")) })
	}
}

func bothPortsHistories(lockWait string) scenario {
	return func(t *testing.T, s store, rng *rand.Rand) {
		servers := bothPorts(t, s, lockWait)
		for range often(1, 3) {
			history := newRecorder()
			id := transcript.NewID()
			keys := []string{id, strings.ToUpper(id)}
			var clients []*webServer
			for i := range 6 {
				p := servers[i%len(servers)]
				var asks asker
				if i >= 3 {
					asks = dialTDS(t, s, p.tds, "encrypt=disable")
				} else {
					w := &wire{t: t, store: s, address: p.address}
					t.Cleanup(func() {
						if w.conn != nil {
							w.conn.Close()
						}
					})
					asks = w
				}
				c := newWebServer(i, asks, newRand(rng.Uint64()), history, keys, []time.Duration{20 * time.Minute, time.Hour})
				c.ifCookie = i >= 3
				clients = append(clients, c)
			}
			for i := 0; i < 8 || history.overlapping() < enough && i < 300; i++ {
				burst(clients, 5+rng.IntN(8), rng.IntN(2) == 0)
			}
			m := &model{abandoned: history.abandoned()}
			history.addGhosts(false)
			history.check(t, m)
		}
	}
}

// TestNoUpdateIsLostOverBothPorts counts in one session from both sides.
func TestNoUpdateIsLostOverBothPorts(t *testing.T) {
	const clients, increments = 6, 40
	for _, s := range stores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			servers := bothPorts(t, s, "1s")
			id := transcript.NewID()
			target := client.Target(appID, id)
			first, err := s.dial(servers[0].address)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			if a, err := first.Set(target, counter(0, 10), 20*time.Minute, 0); err != nil || a.Status != 200 {
				t.Fatal(a, err)
			}
			var wg sync.WaitGroup
			for i := range clients {
				p := servers[i/2%len(servers)]
				increment := overTDS(t, dialTDS(t, s, p.tds, "encrypt=disable"), id)
				if i%2 == 0 {
					increment = overStateServer(t, s, p.address, target)
				}
				wg.Go(func() {
					for n := 0; n < increments; {
						if increment() {
							n++
						}
						if t.Failed() {
							return
						}
					}
				})
			}
			wg.Wait()
			a, err := first.Get(target)
			if err != nil || a.Status != 200 || binary.BigEndian.Uint32(a.Body) != clients*increments {
				t.Errorf("the counter is at %d (%s), want %d: %v", binary.BigEndian.Uint32(a.Body), a.StatusLine, clients*increments, err)
			}
			item, locked, _, _, err := dialTDS(t, s, servers[0].tds, "encrypt=true&TrustServerCertificate=true").fetch(t.Context(), "TempGetStateItem3", sql.Named("id", id+suffix(t, s, servers[0])))
			if err != nil || !locked.Valid || locked.Bool || len(item) < 4 || binary.BigEndian.Uint32(item) != clients*increments {
				t.Errorf("over TDS there are %d bytes, locked %v: %v", len(item), locked, err)
			}
		})
	}
}

func suffix(t *testing.T, s store, p *process) string {
	return dialTDS(t, s, p.tds, "encrypt=disable").suffix
}

// counter is an item with a number, sometimes short and sometimes long.
func counter(n uint32, size int) []byte {
	return append(binary.BigEndian.AppendUint32(nil, n), make([]byte, size)...)
}

func sizeOf(n uint32) int { return int(n % 3 * 5000) }

func overStateServer(t *testing.T, s store, address, target string) func() bool {
	conn, err := s.dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() bool {
		a, err := conn.GetExclusive(target)
		if err != nil || a.Status != 200 {
			if err != nil || a.Status != 423 {
				t.Errorf("GetExclusive: %q, %v", a.StatusLine, err)
			}
			return false
		}
		n := binary.BigEndian.Uint32(a.Body) + 1
		if s, err := conn.Set(target, counter(n, sizeOf(n)), 20*time.Minute, a.LockCookie); err != nil || s.Status != 200 {
			t.Errorf("Set: %q, %v", s.StatusLine, err)
		}
		return true
	}
}

func overTDS(t *testing.T, c *tdsClient, id string) func() bool {
	named := sql.Named("id", id+c.suffix)
	return func() bool {
		item, locked, cookie, _, err := c.fetch(context.Background(), "dbo.TempGetStateItemExclusive3", named)
		if err != nil || !locked.Valid {
			t.Errorf("TempGetStateItemExclusive3: locked %v, %v", locked, err)
			return false
		}
		if locked.Bool {
			return false
		}
		n := binary.BigEndian.Uint32(item) + 1
		next, parameter, procedure := counter(n, sizeOf(n)), "itemShort", "dbo.TempUpdateStateItemShortNullLong"
		if len(next) > 7000 {
			parameter, procedure = "itemLong", "dbo.TempUpdateStateItemLongNullShort"
		}
		ans, err := c.change(procedure, named, sql.Named(parameter, next), sql.Named("timeout", 20), sql.Named("lockCookie", cookie.Int32))
		if err != nil || ans.result != done {
			t.Errorf("%s: %v, %v", procedure, ans, err)
		}
		return true
	}
}
