package main

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A web server that vanishes without a word is noticed: TCP asks after it, on sockets of our own and on those of systemd.
func TestKeepAlive(t *testing.T) {
	own, err := listen(t.Context(), []string{"127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(own)
	file, err := own[0].(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	handedOver, err := net.FileListener(file) // as inherited does
	if err != nil {
		t.Fatal(err)
	}
	defer handedOver.Close()
	for name, ln := range map[string]net.Listener{"own": own[0], "systemd's": handedOver} {
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		raw, err := accepted.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			if err != nil || on != 1 {
				t.Errorf("%s: SO_KEEPALIVE is %d, %v", name, on, err)
			}
			idle, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			if err != nil || idle > 60 {
				t.Errorf("%s: it asks after %d s, %v", name, idle, err)
			}
		})
	}
}
