//go:build linux

package harness

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aspstate/server/stateserver/client"
)

// hostility says how many hostile clients of each kind there are.
type hostility struct {
	idle      int // say nothing
	halves    int // send half a request's head
	announced int // announce a large item and send little of it
	unread    int // ask for a large item, again and again, and read nothing
	floods    int // send requests one behind the other and read the answers only now and then
	others    int // garbage, TLS and HTTP in turn, and waiters for a lock that go away: one a hundredth of a second
}

func (h hostility) connections() int { return h.idle + h.halves + h.announced + h.unread + h.floods }

const (
	largeBody = 4 << 20
	manyPages = 200 // of one flood, before it reads
)

// crowd are hostile clients at work.
type crowd struct {
	address string
	look    time.Duration // between two looks whether the server has closed a connection
	spread  time.Duration // over which the first connections are made
	stop    chan struct{}
	working sync.WaitGroup
}

// attack begins hostilities. They end with stop.
func attack(t *testing.T, address string, h hostility) (stop func()) {
	t.Helper()
	c := &crowd{address: address, look: max(250*time.Millisecond, time.Duration(h.connections())*time.Millisecond/2),
		spread: time.Duration(h.connections()) * time.Millisecond / 2, stop: make(chan struct{})}
	large, locked := client.Target("/hostile", "large"), client.Target("/hostile", "locked"+rand.Text())
	own, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for target, size := range map[string]int{large: largeBody, locked: 100} {
		if a, err := own.Set(target, bytes.Repeat([]byte("x"), size), 20*time.Minute, 0); err != nil || a.Status != 200 {
			t.Fatalf("answer %d, %v", a.Status, err)
		}
	}
	if a, err := own.GetExclusive(locked); err != nil || a.Status != 200 {
		t.Fatalf("answer %d, %v", a.Status, err)
	}
	get := "GET " + large + " HTTP/1.1\r\n\r\n"
	head := strings.Repeat("HEAD "+locked+" HTTP/1.1\r\n\r\n", manyPages)
	c.each(h.idle, func(net.Conn) bool { return true })
	c.each(h.halves, func(conn net.Conn) bool { return say(conn, "GET "+large+" HTTP/1.1\r\nHost: x\r\nExclu") })
	c.each(h.announced, func(conn net.Conn) bool {
		return say(conn, "PUT "+large+" HTTP/1.1\r\nContent-Length: "+strconv.Itoa(largeBody)+"\r\n\r\nbut little of it comes")
	})
	c.each(h.unread, func(conn net.Conn) bool {
		conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		return say(conn, get+get+get)
	})
	for range h.floods {
		c.working.Go(func() { c.flood(head) })
	}
	for i := range h.others {
		c.working.Go(func() { c.other(i, locked) })
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			close(c.stop)
			c.working.Wait()
		})
	}
	t.Cleanup(stop)
	return stop
}

// each keeps n connections that open says something to, and opens one anew when the server closes it.
func (c *crowd) each(n int, open func(net.Conn) bool) {
	for range n {
		c.working.Go(func() {
			c.rest(mathrand.N(c.spread))
			for c.going() {
				conn, err := net.Dial("tcp", c.address)
				if err != nil {
					c.rest(100 * time.Millisecond)
					continue
				}
				if open(conn) {
					c.untilClosed(conn)
				}
				conn.Close()
				c.rest(10 * time.Millisecond)
			}
		})
	}
}

// untilClosed waits until the server has closed the connection, without reading from it, or for the end.
func (c *crowd) untilClosed(conn net.Conn) {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return
	}
	for ended := false; !ended && c.going(); c.rest(c.look) {
		raw.Control(func(fd uintptr) {
			info, err := tcpState(int(fd))
			ended = err != nil || info != tcpEstablished
		})
	}
}

const tcpEstablished = 1

// tcpState is the first byte of TCP_INFO: the connection's state.
func tcpState(fd int) (byte, error) {
	n, err := syscall.GetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_INFO) // its first four bytes
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(n))
	return b[0], err
}

func (c *crowd) going() bool {
	select {
	case <-c.stop:
		return false
	default:
		return true
	}
}

func (c *crowd) rest(d time.Duration) {
	select {
	case <-c.stop:
	case <-time.After(d):
	}
}

func say(conn net.Conn, text string) bool {
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := io.WriteString(conn, text)
	return err == nil
}

// flood sends many requests at once, reads the answers, and begins anew.
func (c *crowd) flood(requests string) {
	for c.going() {
		conn, err := net.Dial("tcp", c.address)
		if err != nil {
			c.rest(100 * time.Millisecond)
			continue
		}
		for c.going() && say(conn, requests) {
			c.rest(100 * time.Millisecond)
			conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			tally.faults.add("flood")
			io.CopyN(io.Discard, conn, 1<<20)
		}
		conn.Close()
	}
}

// other sends what is no request, or begins to wait for a lock and goes away.
func (c *crowd) other(i int, locked string) {
	for ; c.going(); i++ {
		conn, err := net.Dial("tcp", c.address)
		if err != nil {
			c.rest(100 * time.Millisecond)
			continue
		}
		tally.faults.add("hostile request")
		conn.SetDeadline(time.Now().Add(time.Second))
		switch i % 4 {
		case 0:
			garbage := make([]byte, 2000)
			rand.Read(garbage)
			conn.Write(garbage)
		case 1:
			tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).Handshake()
		case 2:
			say(conn, "GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: scanner\r\nConnection: close\r\n\r\n")
		default:
			say(conn, "GET "+locked+" HTTP/1.1\r\nExclusive: acquire\r\n\r\n")
			conn.(*net.TCPConn).SetLinger(0)
		}
		c.rest(10 * time.Millisecond)
		conn.Close()
	}
}

// visitors are clients that work as web servers do: pages with a pause between them, each on a session of its own.
type visitors struct {
	mu     sync.Mutex
	took   []time.Duration // by pages, since the last call of pages
	faults []string
}

// visit begins n of them. stop ends them.
func visit(t *testing.T, address string, n int, pause time.Duration) (v *visitors, stop func()) {
	t.Helper()
	v = new(visitors)
	ended := make(chan struct{})
	var working sync.WaitGroup
	for i := range n {
		c, err := client.Dial(address)
		if err != nil {
			t.Fatal(err)
		}
		target := client.Target("/shop", fmt.Sprintf("visitor%d", i))
		if a, err := c.Set(target, item(0), 20*time.Minute, 0); err != nil || a.Status != 200 {
			t.Fatalf("answer %d, %v", a.Status, err)
		}
		working.Go(func() {
			defer c.Close()
			for page := uint64(0); ; page++ {
				select {
				case <-ended:
					return
				case <-time.After(pause):
				}
				begun := time.Now()
				if err := v.page(c, target, page); err != nil {
					v.mu.Lock()
					v.faults = append(v.faults, err.Error())
					v.mu.Unlock()
					return
				}
				v.mu.Lock()
				v.took = append(v.took, time.Since(begun))
				v.mu.Unlock()
			}
		})
	}
	return v, func() { close(ended); working.Wait() }
}

// item is the 7 KB that a visitor's session holds after this many pages.
func item(pages uint64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Repeat([]byte("7 KB..."), 1000), pages)
}

func (v *visitors) page(c *client.Conn, target string, page uint64) error {
	a, err := c.GetExclusive(target)
	if err != nil || a.Status != 200 {
		return fmt.Errorf("page %d: get: answer %d, %v", page, a.Status, err)
	}
	if !bytes.Equal(a.Body, item(page)) {
		return fmt.Errorf("page %d: the session has %d bytes that are not what the last page wrote", page, len(a.Body))
	}
	if a, err = c.Set(target, item(page+1), 20*time.Minute, a.LockCookie); err != nil || a.Status != 200 {
		return fmt.Errorf("page %d: set: answer %d, %v", page, a.Status, err)
	}
	tally.operations.Add(2)
	return nil
}

// pages returns how many pages there were since the last call and how long they took, but for one in a hundred.
func (v *visitors) pages() (n int, p99 time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	slices.Sort(v.took)
	if n = len(v.took); n > 0 {
		p99 = v.took[n*99/100]
	}
	v.took = nil
	return n, p99
}

// vitals are what a server takes of its machine.
type vitals struct {
	goroutines, connections int
	resident, most          int64 // bytes
}

var adminAddress = regexp.MustCompile(`msg="serving operators" address=(\S+)`)

// vitals asks the process, which has an admin listener.
func (p *process) vitals(t testing.TB) (v vitals) {
	t.Helper()
	at := adminAddress.FindStringSubmatch(p.log.String())
	if at == nil {
		t.Fatal("the process has no admin listener")
	}
	resp, err := http.Get("http://" + at[1] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	number := func(text []byte, name string) (sum int64) {
		found := regexp.MustCompile(`(?m)^`+name+`(?:\{[^}]*\})?\s+([0-9]+)`).FindAllSubmatch(text, -1)
		if found == nil {
			t.Fatalf("there is no %s", name)
		}
		for _, f := range found {
			n, _ := strconv.ParseInt(string(f[1]), 10, 64)
			sum += n
		}
		return sum
	}
	return vitals{
		goroutines: int(number(text, "go_goroutines")), connections: int(number(text, "aspstate_connections")),
		resident: number(status, "VmRSS:") << 10, most: number(status, "VmHWM:") << 10,
	}
}

const (
	// connectionMemory is the most that a connection may take, but for its item.
	connectionMemory = 48 << 10
	// spareGoroutines are those that are not a connection's; each of at most 50 waiters has one more than its connection.
	spareGoroutines = 150
)

// Hostile clients take no more memory and goroutines than the limits allow, and the pages of others go on without a fault.
func TestHostileClients(t *testing.T) {
	for _, s := range stores {
		if s.slow {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			const inFlight = 48 << 20
			p := serve(t, fastProgram, append(s.flags(t, straight), "--admin-listen=127.0.0.1:0",
				"--limits-body=8MiB", fmt.Sprintf("--limits-bodies-in-flight=%d", inFlight))...)
			v, stop := visit(t, p.address, 4, 5*time.Millisecond)
			before := p.vitals(t)
			h := hostility{idle: 300, halves: 100, announced: 100, unread: 60, floods: 2, others: 8}
			end := attack(t, p.address, h)
			// Long enough for memory to run out and for those who hold it to be cut off.
			until := time.Now().Add(4 * time.Second)
			var worst vitals
			for time.Now().Before(until) {
				now := p.vitals(t)
				worst.goroutines = max(worst.goroutines, now.goroutines-now.connections)
				worst.connections = max(worst.connections, now.connections)
				time.Sleep(50 * time.Millisecond) // between two looks
			}
			worst.most = p.vitals(t).most
			end()
			n, _ := v.pages()
			stop()
			t.Logf("%d pages; %d MiB before, %d MiB at most, %d connections, %d goroutines beside them", n, before.most>>20, worst.most>>20, worst.connections, worst.goroutines)
			for _, fault := range v.faults {
				t.Error(fault)
			}
			if n < 50 {
				t.Errorf("there were only %d pages", n)
			}
			if worst.connections < h.connections()*3/4 {
				t.Errorf("only %d of %d hostile connections were open", worst.connections, h.connections())
			}
			if worst.goroutines > spareGoroutines {
				t.Errorf("%d goroutines beside the connections', want at most %d", worst.goroutines, spareGoroutines)
			}
			// The collector lets garbage grow to as much as is in use, and to 64 MiB more.
			if bound := before.most + int64(worst.connections)*connectionMemory + 3*inFlight + 64<<20; worst.most > bound {
				t.Errorf("%d MiB were resident, want at most %d", worst.most>>20, bound>>20)
			}
			for end := time.Now().Add(20 * time.Second); p.vitals(t).connections > 0; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d connections are left", p.vitals(t).connections)
				}
			}
		})
	}
}

// hostileRounds has clients work in peace and among hostile ones in turn, as many as limits.connections allows, and compares how
// long their pages take.
func hostileRounds(t *testing.T, s store) {
	const rounds, round = 9, 4 * time.Second
	p := serve(t, fastProgram, append(s.flags(t, straight), "--admin-listen=127.0.0.1:0")...)
	v, stop := visit(t, p.address, 8, 50*time.Millisecond) // which leaves the machine time for the hostile ones
	defer stop()
	var peace, siege []time.Duration
	var text strings.Builder
	for range rounds {
		v.pages()
		time.Sleep(round)
		_, quiet := v.pages()
		end := attack(t, p.address, hostility{idle: 8500, halves: 1000, announced: 300, unread: 100, floods: 2, others: 8})
		for until := time.Now().Add(30 * time.Second); p.vitals(t).connections < 9500 && time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		}
		time.Sleep(2 * time.Second) // what can be had of large answers has been taken
		v.pages()
		time.Sleep(round)
		n, besieged := v.pages()
		now := p.vitals(t)
		end()
		if n == 0 || quiet == 0 {
			break // the faults say why
		}
		peace, siege = append(peace, quiet), append(siege, besieged)
		fmt.Fprintf(&text, " %v/%v", besieged.Round(10*time.Microsecond), quiet.Round(10*time.Microsecond))
		if spare := now.goroutines - now.connections; spare > spareGoroutines {
			t.Errorf("%d goroutines beside the connections', want at most %d", spare, spareGoroutines)
		}
		if bound := int64(now.connections)*connectionMemory + 1<<30; now.most > bound {
			t.Errorf("%d MiB were resident, want at most %d", now.most>>20, bound>>20)
		}
		for until := time.Now().Add(30 * time.Second); p.vitals(t).connections > 16 && time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, fault := range v.faults {
		t.Error(fault)
	}
	if len(peace) == 0 {
		t.Fatal("there were no pages")
	}
	slices.Sort(peace)
	slices.Sort(siege)
	ratio := float64(siege[len(siege)/2]) / float64(peace[len(peace)/2])
	fmt.Printf("soak: %s: p99 of pages among hostile clients / in peace:%s, ratio of medians %.2f\n", s.name, &text, ratio)
	if ratio > 2 {
		t.Errorf("pages take %.2f times as long among hostile clients (p99), want at most 2", ratio)
	}
}
