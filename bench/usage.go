package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// costs are what a load has cost.
type costs struct {
	server, database time.Duration // processor time; the server's is with its database's
	written          int64         // bytes that both gave to the file system
	flushes          int64         // of the disk, by anybody on the machine
	network          int64         // bytes over the loopback interface with their headers, by anybody on the machine
}

// meter begins to measure, and returns what tells the costs since.
type meter func() func() costs

// nobody costs nothing that matters.
func nobody() func() costs { return func() costs { return costs{} } }

// metered measures the processes of a server, and those of its database.
func metered(server, database func() []int) meter {
	return func() func() costs {
		own, others, before := cpu(server), cpu(database), written(server, database)
		flushes, network := diskFlushes(), loopbackBytes()
		return func() costs {
			c := costs{database: others(), flushes: diskFlushes() - flushes, network: loopbackBytes() - network}
			c.server = own() + c.database
			for pid, n := range written(server, database) {
				c.written += n - before[pid]
			}
			return c
		}
	}
}

// stolenTime is the processor time that the machine's host has given to others since the machine began.
func stolenTime() time.Duration {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	if fields := strings.Fields(line); len(fields) > 8 { // cpu user nice system idle iowait irq softirq steal
		ticks, _ := strconv.ParseInt(fields[8], 10, 64)
		return time.Duration(ticks) * tick
	}
	return 0
}

func noProcesses() []int { return nil }

// written are the bytes that each process gave to the file system, written to the disk by now or later.
func written(groups ...func() []int) map[int]int64 {
	m := map[int]int64{}
	for _, pids := range groups {
		for _, pid := range pids() {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
			for line := range strings.Lines(string(text)) {
				if rest, ok := strings.CutPrefix(line, "write_bytes:"); ok {
					m[pid], _ = strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
				}
			}
		}
	}
	return m
}

// diskFlushes is how often the disk with the temporary files was told to make its writes durable.
func diskFlushes() int64 {
	var at syscall.Stat_t
	if err := syscall.Stat(os.TempDir(), &at); err != nil {
		return 0
	}
	major, minor := fmt.Sprint(at.Dev>>8&0xfff), fmt.Sprint(at.Dev&0xff|at.Dev>>12&0xfff00)
	text, _ := os.ReadFile("/proc/diskstats")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 18 && f[0] == major && f[1] == minor {
			n, _ := strconv.ParseInt(f[18], 10, 64)
			return n
		}
	}
	return 0
}

// loopbackBytes are those that the loopback interface has carried. What is sent counts once.
func loopbackBytes() int64 {
	text, _ := os.ReadFile("/proc/net/dev")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "lo:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// sqliteSize is the size of a database once its log is written back to it, in bytes. The log's frames tell it.
func sqliteSize(file string) (size int64) {
	if info, err := os.Stat(file); err == nil {
		size = info.Size()
	}
	log, err := os.Open(file + "-wal")
	if err != nil {
		return size
	}
	defer log.Close()
	const head, frameHead = 32, 24
	header := make([]byte, head)
	if _, err := log.ReadAt(header, 0); err != nil {
		return size
	}
	page := int64(binary.BigEndian.Uint32(header[8:]))
	for at := int64(head); ; at += frameHead + page {
		if _, err := log.ReadAt(header[:frameHead], at); err != nil || page == 0 {
			return size
		}
		size = max(size, page*int64(binary.BigEndian.Uint32(header[4:]))) // 0 but at a commit
	}
}

// postgresSize is the size of a database in bytes.
func postgresSize(url string) (size int64) {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0
	}
	defer conn.Close(ctx)
	if err := conn.QueryRow(ctx, "SELECT pg_database_size(current_database())").Scan(&size); err != nil {
		return 0
	}
	return size
}

// perUnit shares a cost among the units.
func perUnit(total int64, units uint64) float64 {
	if units == 0 {
		return 0
	}
	return float64(total) / float64(units)
}
