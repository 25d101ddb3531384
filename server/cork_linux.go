package server

import (
	"net"
	"syscall"
)

// cork holds back what is written to the connection until its sending half is closed. It may fail: then the end comes
// in a packet of its own.
func cork(tcp *net.TCPConn) {
	if raw, err := tcp.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, 1) })
	}
}
