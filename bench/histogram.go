package main

import (
	"math/bits"
	"time"
)

// Histogram counts durations, each to within one in 128: linear within a power of two, logarithmic over
// all. The longest it tells from longer ones is 2^43 ns, more than two hours. Adding allocates nothing. It is not safe for
// concurrent use.
type Histogram struct {
	counts [buckets]uint64
	n      uint64
	max    int64
}

const (
	fineBits = 7
	topBits  = 43
	buckets  = (topBits - fineBits + 1) << fineBits
)

// Add counts a duration. One that is below zero counts as zero.
func (h *Histogram) Add(d time.Duration) {
	v := min(max(0, int64(d)), 1<<topBits-1)
	h.counts[bucket(v)]++
	h.n++
	h.max = max(h.max, v)
}

// bucket is where a value is counted. Values below 2^8 have a bucket each.
func bucket(v int64) int {
	exponent := max(0, bits.Len64(uint64(v))-fineBits-1)
	return exponent<<fineBits + int(v>>exponent)
}

// top is the largest value of a bucket.
func top(bucket int) int64 {
	exponent := max(0, bucket>>fineBits-1)
	return int64(bucket-exponent<<fineBits+1)<<exponent - 1
}

// Merge adds what other has counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.n += other.n
	h.max = max(h.max, other.max)
}

// Count is how many durations were added.
func (h *Histogram) Count() uint64 { return h.n }

// Quantile is the least duration that at least the share q of all do not exceed: 0.99 for p99. It is 0 where
// nothing was added.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q*float64(h.n) + 0.999999)
	rank = min(max(1, rank), h.n)
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += n; n > 0 && seen >= rank {
			return time.Duration(min(top(i), h.max))
		}
	}
	return 0
}
