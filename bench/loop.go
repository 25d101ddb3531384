package main

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// The load generator shares the cores with the server that it measures, so it must cost little: an epoll loop a thread, a
// read and a write for a request, no allocation.

// link is one connection and the session that it is about.
type link struct {
	file   *os.File
	fd     int
	number int // of the connection
	index  int // in the worker's links

	next   int // how many of its own sessions it has walked through
	id     [idLength]byte
	cookie int64
	step   int
	begun  time.Duration // since the start; when open, when the unit was due

	out  []byte // out[sent:] is to be sent
	sent int
	in   []byte // in[:have] has come
	have int
	need int // bytes of in without which no answer is complete
}

// worker is a thread of the load generator.
type worker struct {
	load  *Load
	dial  dialect
	steps []step
	pool  []byte // random bytes, of which items are slices
	once  bool   // every session once, instead of for a time
	rate  float64

	failed *atomic.Bool // another worker has

	poll      int
	links     []*link
	events    []syscall.EpollEvent
	random    uint64
	histogram Histogram

	start    time.Time
	from, to time.Duration
	now      time.Duration // since start
	due      time.Duration // the next unit, where there is a rate
	idle     []*link
	busy     int
}

func newWorker(l *Load, d dialect, steps []step, pool []byte) (*worker, error) {
	poll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &worker{load: l, dial: d, steps: steps, pool: pool, poll: poll,
		events: make([]syscall.EpollEvent, 256), random: uint64(time.Now().UnixNano())}, nil
}

// connect adds connection number n.
func (w *worker) connect(address string, n int) error {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	file, err := conn.(*net.TCPConn).File() // a copy, of which the runtime's own poller knows nothing
	conn.Close()
	if err != nil {
		return err
	}
	l := &link{file: file, fd: int(file.Fd()), number: n, index: len(w.links), in: make([]byte, 4<<10), need: 1}
	if err := syscall.SetNonblock(l.fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	w.links = append(w.links, l)
	return w.watch(l, syscall.EPOLL_CTL_ADD, syscall.EPOLLIN)
}

func (w *worker) watch(l *link, op int, events uint32) error {
	event := syscall.EpollEvent{Events: events, Fd: int32(l.index)}
	return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(w.poll, op, l.fd, &event))
}

func (w *worker) close() {
	for _, l := range w.links {
		l.file.Close()
	}
	syscall.Close(w.poll)
}

// run sends the load. Units are counted if they began in the time that is measured where there is a rate, and if they ended in it where
// there is none.
func (w *worker) run(start, from, to time.Time) error {
	w.start, w.from, w.to = start, from.Sub(start), to.Sub(start)
	w.now = time.Since(start)
	w.due = w.now
	for _, l := range w.links {
		if w.rate > 0 {
			w.idle = append(w.idle, l)
		} else if err := w.begin(l, w.now); err != nil {
			return err
		}
	}
	for giveUp := w.to + 30*time.Second; ; {
		if err := w.beginDue(); err != nil {
			return err
		}
		if w.busy == 0 && (w.rate == 0 || w.now >= w.to) {
			return nil
		}
		if w.failed.Load() {
			return nil
		}
		if w.now > giveUp {
			return fmt.Errorf("%d connections wait for an answer for more than 30 s", w.busy)
		}
		n, err := w.wait()
		if err != nil {
			return err
		}
		w.now = time.Since(w.start)
		for i := range n {
			if err := w.handle(w.links[w.events[i].Fd], w.events[i].Events); err != nil {
				return err
			}
		}
	}
}

// beginDue begins the units that are due.
func (w *worker) beginDue() error {
	for w.rate > 0 && w.due <= w.now && w.due < w.to && len(w.idle) > 0 {
		l := w.idle[len(w.idle)-1]
		w.idle = w.idle[:len(w.idle)-1]
		if err := w.begin(l, w.due); err != nil {
			return err
		}
		w.due += time.Duration(-math.Log(1-float64(w.rand()>>11)/(1<<53)) / w.rate * 1e9)
	}
	return nil
}

// wait waits for answers, or until the next unit is due, and for a second at most.
func (w *worker) wait() (n int, err error) {
	timeout := time.Second
	if w.rate > 0 && len(w.idle) > 0 {
		timeout = max(0, min(w.due, w.to)-w.now)
	}
	const epollPwait2 = 441
	spec := syscall.NsecToTimespec(int64(timeout))
	got, _, errno := syscall.Syscall6(epollPwait2, uintptr(w.poll), uintptr(unsafe.Pointer(&w.events[0])), uintptr(len(w.events)),
		uintptr(unsafe.Pointer(&spec)), 0, 0)
	if errno == syscall.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, os.NewSyscallError("epoll_pwait2", errno)
	}
	return int(got), nil
}

// rand is a random number (xorshift64*).
func (w *worker) rand() uint64 {
	w.random ^= w.random >> 12
	w.random ^= w.random << 25
	w.random ^= w.random >> 27
	return w.random * 0x2545f4914f6cdd1d
}

// begin begins a unit on one of the link's own sessions, if there is one left.
func (w *worker) begin(l *link, at time.Duration) error {
	own := (w.load.Sessions - l.number%w.load.Sessions + w.load.Conns - 1) / w.load.Conns
	nth := l.next
	if w.once {
		if nth >= own || l.number >= w.load.Sessions {
			return nil
		}
		l.next++
	} else {
		nth = int(w.rand() % uint64(own))
	}
	l.id = sessionID(w.load.first + uint64(l.number%w.load.Sessions+nth*w.load.Conns))
	l.step = 0
	l.begun = at
	w.busy++
	return w.ask(l)
}

func (w *worker) ask(l *link) error {
	from := w.rand() % uint64(len(w.pool)-w.load.Size)
	l.out = w.dial.ask(l.out[:0], w.steps[l.step], l, w.pool[from:from+uint64(w.load.Size)])
	l.sent = 0
	return w.send(l)
}

// send sends what the socket takes. The rest goes when it takes more.
func (w *worker) send(l *link) error {
	waited := l.sent > 0
	for l.sent < len(l.out) {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(l.fd), uintptr(unsafe.Pointer(&l.out[l.sent])), uintptr(len(l.out)-l.sent))
		switch errno {
		case 0:
			l.sent += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return w.watch(l, syscall.EPOLL_CTL_MOD, syscall.EPOLLIN|syscall.EPOLLOUT)
		default:
			return os.NewSyscallError("write", errno)
		}
	}
	if waited {
		return w.watch(l, syscall.EPOLL_CTL_MOD, syscall.EPOLLIN)
	}
	return nil
}

var errClosed = errors.New("the server closed the connection")

// handle reads what has come, and goes on with the next request if that is an answer.
func (w *worker) handle(l *link, events uint32) error {
	if events&syscall.EPOLLOUT != 0 && l.sent < len(l.out) {
		if err := w.send(l); err != nil || events&^syscall.EPOLLOUT == 0 {
			return err
		}
	}
	if l.need > len(l.in) {
		l.in = append(l.in, make([]byte, max(l.need, 2*len(l.in))-len(l.in))...)
	}
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(l.fd), uintptr(unsafe.Pointer(&l.in[l.have])), uintptr(len(l.in)-l.have))
	switch {
	case errno == syscall.EAGAIN || errno == syscall.EINTR:
		return nil
	case errno != 0:
		return os.NewSyscallError("read", errno)
	case n == 0:
		return errClosed
	}
	if l.have += int(n); l.have < l.need {
		return nil
	}
	length, err := w.dial.answer(l.in[:l.have], w.steps[l.step], l)
	if err != nil {
		return fmt.Errorf("%s: %w", w.load.Op, err)
	}
	if l.need = length; length > l.have {
		return nil
	}
	if length < l.have {
		return fmt.Errorf("%s: %d bytes follow the answer", w.load.Op, l.have-length)
	}
	l.have, l.need = 0, 1
	if l.step++; l.step < len(w.steps) {
		return w.ask(l)
	}
	return w.ended(l)
}

// ended counts a unit and begins the next.
func (w *worker) ended(l *link) error {
	w.busy--
	w.now = time.Since(w.start)
	if at := w.now; w.rate > 0 {
		if l.begun >= w.from && l.begun < w.to {
			w.histogram.Add(at - l.begun)
		}
	} else if at >= w.from && at < w.to {
		w.histogram.Add(at - l.begun)
	}
	switch {
	case w.rate > 0:
		w.idle = append(w.idle, l)
		return nil
	case w.now < w.to:
		return w.begin(l, w.now)
	}
	return nil
}
