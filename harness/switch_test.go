//go:build unix

package harness

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aspstate/backends/postgres/pgtest"
	"aspstate/backends/sqlserver/mssqltest"
)

// TestSwitch checks histories during which the servers switch from store to store.
func TestSwitch(t *testing.T) {
	sqlite := func(t *testing.T) string {
		return "sqlConnectionString: sqlite:" + filepath.Join(t.TempDir(), "aspstate.db")
	}
	postgres := func(t *testing.T) string { return "sqlConnectionString: " + pgtest.Shared(t).Database(t) }
	t.Run("memory, SQLite, PostgreSQL and back", func(t *testing.T) {
		several(t, rand.Uint64, 1, stores[0], func(t *testing.T, s store, rng *rand.Rand) {
			const memory = "mode: StateServer"
			file, database := sqlite(t), postgres(t)
			switchHistory(t, s, rng, 1, memory, file, database, memory, database, file)
		})
	})
	t.Run("two servers from PostgreSQL to PostgreSQL", func(t *testing.T) {
		several(t, rand.Uint64, 1, stores[0], func(t *testing.T, s store, rng *rand.Rand) {
			a, b := postgres(t), postgres(t)
			switchHistory(t, s, rng, 2, a, b, a, b)
		})
	})
	sqlserver := func(t *testing.T) string {
		file := filepath.Join(t.TempDir(), "dsn")
		if err := os.WriteFile(file, []byte(mssqltest.Database(t)), 0o600); err != nil {
			t.Fatal(err)
		}
		return "sqlConnectionString: file:" + file
	}
	t.Run("memory, SQL Server, SQLite and back", func(t *testing.T) {
		several(t, rand.Uint64, 1, store{slow: true}, func(t *testing.T, s store, rng *rand.Rand) {
			file, database := sqlite(t), sqlserver(t)
			switchHistory(t, s, rng, 1, "mode: StateServer", database, file, database)
		})
	})
	t.Run("two servers from SQL Server to SQL Server", func(t *testing.T) {
		several(t, rand.Uint64, 1, store{slow: true}, func(t *testing.T, s store, rng *rand.Rand) {
			a, b := sqlserver(t), sqlserver(t)
			switchHistory(t, s, rng, 2, a, b)
		})
	})
}

// switchHistory has servers switch from the first of the places, by their settings, to the others.
func switchHistory(t *testing.T, s store, rng *rand.Rand, servers int, places ...string) {
	t.Helper()
	settings := filepath.Join(t.TempDir(), "aspstate.yaml")
	write := func(place string) {
		text := fmt.Sprintf("%s\nautoMigrate: true\nlockWait: 20ms\nrequestBudget: %v\nadmin: {listen: off}\nlog: {level: debug}\nsweep: {interval: 1s}\n", place, s.budget())
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(places[0])
	var processes []*process
	var addresses []string
	for range servers {
		p := serve(t, program, "--config="+settings)
		processes = append(processes, p)
		addresses = append(addresses, p.address)
	}
	history := newRecorder()
	clients := wireClients(t, s, addresses, rng, history, false)
	burst(clients, 10, false)
	for i, place := range places[1:] {
		write(place)
		processes[0].cmd.Process.Signal(syscall.SIGHUP)
		for begun := time.Now(); ; {
			burst(clients, 3, rng.IntN(2) == 0)
			complete := true
			for _, p := range processes {
				complete = complete && strings.Count(p.log.String(), "the switch is complete")+strings.Count(p.log.String(), "served from another store now\" ") > i
			}
			if complete {
				break
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("the switch to %s is not complete after a minute", place)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	burst(clients, 10, true)
	history.addGhosts(false)
	history.check(t, &model{abandoned: history.abandoned()})
	tally.faults.add("switched to another store")
}
