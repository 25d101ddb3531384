//go:build unix

package harness

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// tally counts what the tests have done, for the summary of a soak.
var tally struct {
	operations atomic.Int64 // answered requests of recorded histories, crash rounds and full disks
	histories  atomic.Int64
	crashes    atomic.Int64
	violations atomic.Int64
	faults     counts
}

// counts counts by kind.
type counts struct {
	mu sync.Mutex
	of map[string]int
}

func (c *counts) add(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]int{}
	}
	c.of[kind]++
}

func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var text []string
	for _, kind := range slices.Sorted(maps.Keys(c.of)) {
		text = append(text, fmt.Sprintf("%s %d", kind, c.of[kind]))
	}
	return strings.Join(text, ", ")
}
