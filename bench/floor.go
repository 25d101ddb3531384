package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
)

// serveFloor answers the state server's protocol with fixed bytes: it finds where a request ends, and nothing else. It allocates
// nothing for a request, keeps nothing and looks nothing up. No server in Go behind a socket does less, so it is the
// ceiling for all of them. Every item has size bytes.
func serveFloor(ln net.Listener, size int) error {
	item := make([]byte, size)
	for i := range item {
		item[i] = byte(rand.Uint32())
	}
	got := fmt.Appendf(nil, "200 OK\r\nX-AspNet-Version: 4.0.30319\r\nLockCookie: 2\r\nTimeout: 20\r\nCache-Control: private\r\nContent-Length: %d\r\n\r\n%s", size, item)
	done := []byte("200 OK\r\nX-AspNet-Version: 4.0.30319\r\nCache-Control: private\r\nContent-Length: 0\r\n\r\n")
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			floorConn(conn, got, done)
		}()
	}
}

func floorConn(conn net.Conn, got, done []byte) {
	buf := make([]byte, 64<<10)
	for have := 0; ; {
		n, err := conn.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		head := bytes.Index(buf[:have], []byte("\r\n\r\n"))
		if head < 0 {
			if have == len(buf) {
				return
			}
			continue
		}
		head += 4
		body := 0
		answer := got
		if buf[0] != 'G' {
			answer = done
			if at := bytes.Index(buf[:head], []byte("Content-Length:")); at >= 0 {
				body = int(number(buf[at+len("Content-Length:") : head]))
			}
		}
		for rest := head + body - have; rest > 0; rest -= n {
			if n, err = conn.Read(buf[:min(rest, len(buf))]); err != nil {
				return
			}
		}
		have = 0
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}
