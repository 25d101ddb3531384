package server

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAccessList(t *testing.T) {
	a := NewAccessList(slog.New(slog.DiscardHandler))
	a.Allow([]netip.Prefix{
		netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("::ffff:198.51.100.0/120"),
		netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("203.0.113.9/32"),
	})
	for address, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"192.0.2.1": true, "::ffff:192.0.2.200": true, "192.0.3.1": false,
		"198.51.100.7": true, "::ffff:198.51.100.7": true, "198.51.101.7": false,
		"203.0.113.9": true, "203.0.113.8": false,
		"2001:db8:1::5": true, "2001:db8:1::5%eth0": true, "2001:db8:2::5": false, "10.0.0.1": false,
	} {
		if got := a.Allowed(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 1))); got != want {
			t.Errorf("%s allowed: %v, want %v", address, got, want)
		}
	}
	a.Allow(nil)
	if a.Allowed(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}) || !a.Allowed(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}) {
		t.Error("an empty list must allow loopback only")
	}
}

func TestRefusalsAreLoggedOnceAnAddressAndMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := NewAccessList(slog.New(slog.NewTextHandler(&log, nil)))
		refuse := func(ip byte) { a.Allowed(&net.TCPAddr{IP: net.IPv4(192, 0, 2, ip)}) }
		for range 10 {
			refuse(1)
			refuse(2)
		}
		time.Sleep(time.Minute)
		refuse(1)
		if got := strings.Count(log.String(), "192.0.2.1"); got != 2 {
			t.Errorf("192.0.2.1 was logged %d times, want 2", got)
		}
		if got := strings.Count(log.String(), "192.0.2.2"); got != 1 {
			t.Errorf("192.0.2.2 was logged %d times, want 1", got)
		}
		for i := range 3 * maxRefused {
			a.Allowed(&net.TCPAddr{IP: net.IPv4(10, 0, byte(i>>8), byte(i))})
		}
		if len(a.refused) > maxRefused {
			t.Errorf("%d addresses are remembered, want at most %d", len(a.refused), maxRefused)
		}
	})
}
