package memory

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"aspstate/backends"
)

func write(size int) backends.Write {
	return backends.Write{Data: make([]byte, size), Timeout: time.Hour, LockCookie: backends.NoCookie}
}

func TestBound(t *testing.T) {
	const size = 1000
	one := int64(size + len("a") + overhead)
	s := New(2 * one)
	ctx := t.Context()
	a, b, c := backends.Key{ID: "a"}, backends.Key{ID: "b"}, backends.Key{ID: "c"}
	set := func(key backends.Key, size int, want error) {
		t.Helper()
		w := write(size)
		w.LockCookie = 2
		if err := s.Set(ctx, key, tok, w); !errors.Is(err, want) {
			t.Fatalf("Set of %d bytes: %v, want %v", size, err, want)
		}
	}
	set(a, size+size+overhead+2, backends.ErrFull)
	set(a, size, nil)
	set(b, size, nil)
	if s.bytes.Load() != 2*one {
		t.Fatalf("%d bytes are counted, want %d", s.bytes.Load(), 2*one)
	}
	set(c, 1, backends.ErrFull)
	set(b, size+1, backends.ErrFull)

	// A refused write changes nothing: not the lock, the timeout or the content.
	if _, err := s.GetExclusive(ctx, a, tok); err != nil {
		t.Fatal(err)
	}
	w := write(size + 1)
	w.LockCookie, w.Timeout = 2, time.Minute
	if err := s.Set(ctx, a, tok, w); !errors.Is(err, backends.ErrFull) || !backends.IsAnswer(err) {
		t.Fatalf("Set: %v, want ErrFull", err)
	}
	if _, err := s.GetExclusive(ctx, a, tok); backends.IsAnswer(err) && errors.Is(err, backends.ErrNotFound) || err == nil {
		t.Fatalf("GetExclusive: %v, want a LockedError", err)
	}
	if _, err := s.Release(ctx, a, tok, 2, backends.IfUnlocked); err != nil {
		t.Fatal(err)
	}
	if item, err := s.Get(ctx, a, tok); err != nil || len(item.Data) != size || item.Timeout != time.Hour {
		t.Fatalf("Get: %d bytes, timeout %v, %v", len(item.Data), item.Timeout, err)
	}

	// Room that is given back can be used again.
	set(a, size-1, nil)
	set(b, size+1, nil)
	set(a, size, backends.ErrFull)
	if err := s.Remove(ctx, b, tok, 2, backends.IfUnlocked); err != nil {
		t.Fatal(err)
	}
	set(c, size+1, nil)
	for _, key := range []backends.Key{a, c} {
		if err := s.Remove(ctx, key, tok, 2, backends.IfUnlocked); err != nil {
			t.Fatal(err)
		}
	}
	empty(t, s)
}

// A shrinking write is never refused, even if the store is at its bound.
func TestBoundLetsSessionsShrink(t *testing.T) {
	s := New(overhead + 1 + 1000)
	key := backends.Key{ID: "a"}
	for size := 1000; size > 0; size -= 100 {
		if err := s.Set(t.Context(), key, tok, write(size)); err != nil {
			t.Fatalf("Set of %d bytes: %v", size, err)
		}
	}
}

// Expired sessions make room where they are found, live ones never.
func TestBoundEvictsNothingLive(t *testing.T) {
	s := New(3 * (overhead + 100))
	expired, live, more := keyIn(t, s, &s.shards[0], 0), keyIn(t, s, &s.shards[0], 1), keyIn(t, s, &s.shards[0], 2)
	mustSet(t, s, live, time.Hour)
	mustSet(t, s, expired, -1)
	w := write(int(s.maxBytes-s.bytes.Load()) - overhead - len(more.ID) + 1)
	if err := s.Set(t.Context(), more, tok, w); err != nil {
		t.Fatalf("Set with an expired session in the way: %v", err)
	}
	if !exists(t, s, live) || !exists(t, s, more) {
		t.Fatal("a live session is gone")
	}
	for i := range 1000 {
		key := backends.Key{ID: fmt.Sprint("new", i)}
		if err := s.Set(t.Context(), key, tok, write(300)); !errors.Is(err, backends.ErrFull) {
			t.Fatalf("Set: %v, want ErrFull", err)
		}
	}
	if !exists(t, s, live) || !exists(t, s, more) {
		t.Fatal("a live session was evicted")
	}
}

// The count never passes the bound, and what fits is never refused because of what does not.
func TestReserveUnderRace(t *testing.T) {
	s := New(1000)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 300_000 {
				if s.reserve(1001) {
					t.Error("more than the bound was reserved")
				}
				if !s.reserve(100) { // four times fit
					t.Error("what fits was refused")
					return
				}
				s.reserve(-100)
			}
		})
		wg.Go(func() {
			for range 300_000 {
				if s.reserve(600) { // fits once at most
					if n := s.bytes.Load(); n > s.maxBytes {
						t.Errorf("%d bytes are counted, the bound is %d", n, s.maxBytes)
					}
					s.reserve(-600)
				}
			}
		})
	}
	wg.Wait()
	if n := s.bytes.Load(); n != 0 {
		t.Errorf("%d bytes are counted in the end", n)
	}
}

// Reads happen on every page, and waiters poll.
func TestReadsDoNotAllocate(t *testing.T) {
	s := New(0)
	ctx := t.Context()
	key := backends.Key{App: 1, ID: "bpr4mimb2vjnvtn2jc4yp3uo"}
	mustSet(t, s, key, time.Hour)
	reads := map[string]func(){
		"Get": func() {
			if _, err := s.Get(ctx, key, tok); err != nil {
				t.Error(err)
			}
		},
		"GetExclusive and Release": func() {
			item, err := s.GetExclusive(ctx, key, tok)
			if err != nil {
				t.Error(err)
			}
			if _, err := s.Release(ctx, key, tok, item.LockCookie, backends.IfUnlocked); err != nil {
				t.Error(err)
			}
		},
		"ResetTimeout": func() {
			if err := s.ResetTimeout(ctx, key); err != nil {
				t.Error(err)
			}
		},
	}
	for name, read := range reads {
		if n := testing.AllocsPerRun(1000, read); n != 0 {
			t.Errorf("%s allocates %v times, want 0", name, n)
		}
	}
}

// What maxBytes counts is near what the process uses, and small.
func TestBytesPerSession(t *testing.T) {
	const idLen, size = 24, 64 // both as large as what the allocator gives for them
	s := New(0)
	before := heapInUse()
	n := 0
	for _, upto := range []int{100_000, 150_000, 200_000, 250_000, 300_000} { // maps and queues grow in steps
		for ; n < upto; n++ {
			if err := s.Set(t.Context(), backends.Key{App: 1, ID: fmt.Sprintf("%024d", n)}, tok, write(size)); err != nil {
				t.Fatal(err)
			}
		}
		each := int(heapInUse()-before)/n - idLen - size
		if each > 250 || each > overhead*5/4 || each < overhead/2 {
			t.Errorf("%d sessions take %d bytes each beyond ID and data, and are counted with %d", n, each, overhead)
		}
	}
	runtime.KeepAlive(s)
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Failures must not be taken for answers, and say that nothing has happened.
func TestClosed(t *testing.T) {
	s := New(0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := s.Set(t.Context(), backends.Key{}, tok, write(1))
	if backends.IsAnswer(err) || !errors.Is(err, backends.ErrNotApplied) || errors.Is(err, backends.ErrPermanent) {
		t.Fatalf("Set on a closed store: %v", err)
	}
}
