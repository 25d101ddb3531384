//go:build !linux

package server

import "net"

// cork is for Linux.
func cork(*net.TCPConn) {}
