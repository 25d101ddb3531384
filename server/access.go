package server

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// AccessList says which addresses may connect: loopback always, and the
// prefixes of the list. An IPv4 address written as ::ffff:a.b.c.d is the IPv4 address.
type AccessList struct {
	log      *slog.Logger
	prefixes prefixes
	refusals atomic.Uint64

	mu      sync.Mutex
	minute  time.Time               // when the current one began
	refused map[netip.Addr]struct{} // logged in it
}

// prefixes is a list that can be replaced while it is in use.
type prefixes struct {
	list atomic.Pointer[[]netip.Prefix]
}

func (l *prefixes) set(prefixes []netip.Prefix) {
	list := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		list[i] = p.Masked()
	}
	l.list.Store(&list)
}

// contain takes an address of plain.
func (l *prefixes) contain(ip netip.Addr) bool {
	list := l.list.Load()
	return list != nil && slices.ContainsFunc(*list, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// plain is an address as lists have it: without zone, and IPv4 as such.
func plain(addr *net.TCPAddr) netip.Addr { return addr.AddrPort().Addr().Unmap().WithZone("") }

// maxRefused bounds the addresses whose refusals are remembered.
const maxRefused = 4096

// NewAccessList returns a list that allows loopback only. Refusals are logged
// once an address and minute.
func NewAccessList(log *slog.Logger) *AccessList {
	return &AccessList{log: log, refused: make(map[netip.Addr]struct{})}
}

// Allow replaces the list; it applies to connections accepted from now on.
func (a *AccessList) Allow(prefixes []netip.Prefix) { a.prefixes.set(prefixes) }

// Allowed reports whether a client at addr may connect, and logs it if not.
func (a *AccessList) Allowed(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok { // a Unix socket, or a pipe in a test: its file mode is its access list
		return true
	}
	ip := plain(tcp)
	if ip.IsLoopback() || a.prefixes.contain(ip) {
		return true
	}
	a.refusals.Add(1)
	if a.remember(ip, time.Now()) {
		a.log.Warn("connection refused: the address is not in the allow list", "client", ip.String(), "setting", "allow")
	}
	return false
}

// Refusals returns how many connections were refused since the start.
func (a *AccessList) Refusals() uint64 { return a.refusals.Load() }

// remember reports whether a refusal of ip is to be logged: the first in a minute is,
// unless too many addresses are refused to remember them all.
func (a *AccessList) remember(ip netip.Addr, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.minute) >= time.Minute {
		a.minute = now
		clear(a.refused)
	}
	if _, known := a.refused[ip]; known || len(a.refused) >= maxRefused {
		return false
	}
	a.refused[ip] = struct{}{}
	return true
}
