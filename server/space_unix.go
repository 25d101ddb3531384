//go:build unix

package server

import "syscall"

const canTryRead = true

// tryRead reads what has arrived at a connection that does not block; where nothing has, the error is EAGAIN.
func tryRead(fd uintptr, p []byte) (n int, err error) {
	for {
		if n, err = syscall.Read(int(fd), p); err != syscall.EINTR {
			return n, err
		}
	}
}
