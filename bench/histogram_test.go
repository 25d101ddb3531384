package main

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogramQuantiles(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var h, other Histogram
	var all []time.Duration
	for i := range 100_000 {
		d := time.Duration(random.ExpFloat64() * float64(time.Millisecond))
		if i == 77 {
			d = 3 * time.Hour
		}
		all = append(all, d)
		if i%3 == 0 {
			other.Add(d)
		} else {
			h.Add(d)
		}
	}
	h.Merge(&other)
	slices.Sort(all)
	if h.Count() != uint64(len(all)) {
		t.Fatalf("%d were counted, want %d", h.Count(), len(all))
	}
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 0.9999} {
		want, got := all[int(q*float64(len(all)))-1], h.Quantile(q)
		if got < want || float64(got) > float64(want)*(1+1.0/128)+1 {
			t.Errorf("quantile %v is %v, want %v or up to 1/128 more", q, got, want)
		}
	}
	if got := h.Quantile(1); got != 1<<topBits-1 {
		t.Errorf("the longest is %v, want the most there is", got)
	}
}

// Every bucket ends where the next one begins, and holds its own top.
func TestHistogramBuckets(t *testing.T) {
	for i := range buckets {
		if bucket(top(i)) != i || i > 0 && bucket(top(i-1)+1) != i {
			t.Fatalf("bucket %d: its top %d is in %d, what follows the one before in %d", i, top(i), bucket(top(i)), bucket(top(max(0, i-1))+1))
		}
	}
	if got := top(buckets - 1); got != 1<<topBits-1 {
		t.Errorf("the last bucket ends at %d", got)
	}
}

func TestHistogramOfNothing(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
	h.Add(-time.Second)
	if got := h.Quantile(0.5); got != 0 || h.Count() != 1 {
		t.Errorf("a negative duration counts as %v", got)
	}
}
