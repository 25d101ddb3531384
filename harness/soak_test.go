//go:build linux

package harness

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	soakFor  = flag.Duration("soak", 0, "how long TestSoak runs")
	soakOf   = flag.String("stores", "", "the only stores that TestSoak runs on, separated by commas")
	soakSeed = flag.Uint64("seed", 0, "seed of TestSoak, which decides what runs in which order; 0 is a random one")
)

// soakCrashes is how often a soak kills servers at least, however short it is.
const soakCrashes = 100

// TestSoak runs all scenarios on all stores in random order, and prints a summary.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("runs with -soak DURATION")
	}
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	rng := newRand(seed)
	chosen := slices.DeleteFunc(slices.Clone(stores), func(s store) bool {
		return *soakOf != "" && !slices.Contains(strings.Split(*soakOf, ","), s.name)
	})
	if len(chosen) == 0 {
		t.Fatalf("none of the stores is called %q", *soakOf)
	}
	crashes := int64(0)
	if slices.ContainsFunc(chosen, func(s store) bool { return s.durable }) {
		crashes = soakCrashes
	}
	fmt.Printf("soak: %v, seed %d\n", *soakFor, seed)
	begun, failed, runs := time.Now(), 0, counts{}
	for _, s := range chosen { // first, while nothing else takes the machine's time
		if !s.slow && !t.Run(s.name+"/hostile", func(t *testing.T) { hostileRounds(t, s) }) {
			failed++
		}
		runs.add(s.name + " hostile clients")
	}
	said := begun
	for i := 0; time.Since(begun) < *soakFor || tally.crashes.Load() < crashes; i++ {
		s := chosen[rng.IntN(len(chosen))]
		name, run, n := soakScenario(s, rng)
		if time.Since(begun) >= *soakFor && name != "crash" {
			continue // only crashes are missing
		}
		ok := t.Run(fmt.Sprintf("%d/%s/%s", i, s.name, name), func(t *testing.T) { several(t, rng.Uint64, n, s, run) })
		runs.add(s.name + " " + name)
		if !ok {
			failed++
			fmt.Printf("soak: number %d, %s %s, has failed\n", i, s.name, name)
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			fmt.Printf("soak: after %v %d operations, %d violations\n", time.Since(begun).Round(time.Second), tally.operations.Load(), tally.violations.Load())
		}
	}
	fmt.Printf(`soak summary
  time        %v
  seed        %d
  scenarios   %v
  operations  %d
  histories   %d
  crashes     %d
  faults      %v
  violations  %d (in %d failed scenarios)
`, time.Since(begun).Round(time.Second), seed, &runs, tally.operations.Load(), tally.histories.Load(), tally.crashes.Load(),
		&tally.faults, tally.violations.Load(), failed)
}

// soakScenario chooses a scenario that the store can take, and how many of it run at once.
func soakScenario(s store, rng *rand.Rand) (name string, run scenario, n int) {
	for {
		switch rng.IntN(15) {
		case 0, 1:
			if !s.wholeMinutes {
				return "expiring", expiringHistory, 8
			}
		case 2, 3:
			return "impatient", impatientHistory, 4
		case 4, 5:
			return "undisturbed", wireHistories, 2
		case 6, 7:
			return "clients disturbed", disturbedClients, 2
		case 8, 9:
			if s.network {
				return "database disturbed", disturbedDatabase, 2
			}
		case 10:
			return "waiting for locks", waitingHistories, 2
		case 11, 12, 13:
			if s.durable {
				return "crash", crashHistory, 1
			}
		default:
			if s.name == "sqlite" {
				return "full disk", func(t *testing.T, _ store, rng *rand.Rand) { fullDisk(t, rng) }, 1
			}
		}
	}
}
