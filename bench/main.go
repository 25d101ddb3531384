// Bench measures aspstate and compares it with others in the same run: a floor that no server can pass, Redis as its ASP.NET session
// provider uses it, and PostgreSQL asked directly. It runs on Linux.
//
//	bench load -addr HOST:PORT …   send a load to any state server, or with -dialect redis to a Redis
//	bench floor -addr HOST:PORT    be the floor
//	bench compare …                compare, and write the results
//	bench report FILE              write the pages and the charts of results again
//	bench plan … FILE              tell what a farm needs, by the costs in results
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	usage := errors.New("say load, floor, compare, report or plan; -h after it tells its flags")
	if len(args) == 0 {
		return usage
	}
	switch args[0] {
	case "load":
		return runLoad(args[1:])
	case "floor":
		return runFloor(args[1:])
	case "compare":
		return runCompare(args[1:])
	case "report":
		return runReport(args[1:])
	case "plan":
		return runPlan(args[1:])
	}
	return usage
}

func runLoad(args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	var l Load
	address := flags.String("addr", "127.0.0.1:42424", "the server's `address`")
	kind := flags.String("dialect", "asp", "asp, the state server's protocol, or redis")
	flags.StringVar(&l.Op, "op", "cycle", "cycle (GetExclusive, Set), get, head, or poll (GetExclusive of locked sessions)")
	flags.IntVar(&l.Conns, "conns", 32, "connections")
	flags.IntVar(&l.Size, "size", 1024, "`bytes` of an item")
	flags.IntVar(&l.Sessions, "sessions", 1000, "sessions, which are created first")
	flags.Float64Var(&l.Rate, "rate", 0, "units per second, begun at random times whatever the server does; 0 asks again after each answer")
	flags.DurationVar(&l.For, "for", 5*time.Second, "how long to measure")
	flags.DurationVar(&l.Warm, "warm", time.Second, "how long to send before that")
	filled := flags.Bool("filled", false, "the sessions are there already")
	pid := flags.Int("pid", 0, "the server's process, if it runs here: its processor time and memory are told")
	asJSON := flags.Bool("json", false, "print JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if l.Conns < 1 || l.Sessions < l.Conns || l.Size < 1 {
		return errors.New("load: there must be a connection, a session for each, and a byte in an item")
	}
	var d dialect = newASPDialect(l.Size)
	if *kind == "redis" {
		redis, err := newRedisDialect(*address, l.Size)
		if err != nil {
			return err
		}
		d = redis
	}
	pids := func() []int { return []int{*pid} }
	if !*filled {
		if err := l.prepare(*address, d); err != nil {
			return err
		}
	}
	r, err := l.send(*address, d, metered(pids, noProcesses), nil)
	if err != nil {
		return err
	}
	r.ServerRSS = memoryOf(*pid, "status", "VmRSS:")
	if *asJSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	fmt.Printf("%v\n%.0f/s   p50 %v  p99 %v  p99.9 %v  max %v\nCPU per unit: server %v, client %v   memory of the server: %s\n",
		l, r.PerSecond, r.P50, r.P99, r.P999, r.Max, r.ServerCPU, r.ClientCPU, bytesText(int(r.ServerRSS)))
	return nil
}

func runFloor(args []string) error {
	flags := flag.NewFlagSet("floor", flag.ContinueOnError)
	address := flags.String("addr", "127.0.0.1:42425", "the `address` to listen on")
	size := flags.Int("size", 1024, "`bytes` of every item")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	return serveFloor(ln, *size)
}
