package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"aspstate/config"
	"aspstate/server"
	"aspstate/server/admin"
	"aspstate/server/stateserver"
	"aspstate/server/tds"
)

// drainTime is how long requests under way may take to end when the server
// stops. A variable for the tests' sake.
var drainTime = 10 * time.Second

// moveTime is how long a stop waits for sessions that are being moved out of this process's memory.
const moveTime = time.Minute

func serveCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the state server",
		Long: "serve runs the state server until SIGTERM or SIGINT: then it answers the requests under way and stops.\n" +
			"A second signal ends it at once. On SIGHUP it reads its settings again.",
		Args: cobra.NoArgs,
	}
	load := addSettings(cmd, environ)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		spare := make([]byte, spareSize)
		defer runtime.KeepAlive(spare)
		is, err := asService(cmd.Context(), func(ctx context.Context, reload chan struct{}, log io.Writer, ready func()) error {
			return serve(ctx, load, environ, io.Discard, log, reload, ready)
		})
		if is || err != nil {
			return err
		}
		return serve(cmd.Context(), load, environ, cmd.OutOrStdout(), cmd.ErrOrStderr(), make(chan struct{}, 1), func() {})
	}
	return cmd
}

// spareSize is how much memory is set aside and never touched, so that it costs addresses only (on Windows, a promise of
// memory, too). The collector begins its work when as much garbage has come together as there is memory in use: with
// few sessions it would work all the time.
const spareSize = 64 << 20

var errSecondSignal = errors.New("ended at once by a second signal; requests under way were not answered")

// serve runs the server and minds the signals meanwhile. It calls ready when it serves; reload, with room for one, tells
// it to read the settings again.
func serve(ctx context.Context, load func() (*config.Config, error), environ []string, stdout, stderr io.Writer, reload chan struct{}, ready func()) error {
	c, err := load()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(c.Log.Level)
	p := &process{load: load, environ: environ, config: c, level: level, log: newLogger(stderr, c.Log.Format, level), ready: ready}
	p.systemd = newNotifier(environ, p.log)

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // the last never comes on Windows
	defer signal.Stop(signals)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx, reload, stdout) }()
	for {
		select {
		case err := <-ended:
			return err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				select {
				case reload <- struct{}{}:
				default: // one is due already
				}
			case ctx.Err() != nil:
				return errSecondSignal
			default:
				p.log.Info("stopping, a second signal ends at once", "signal", s.String())
				stop()
			}
		}
	}
}

func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// process is a running server: the settings in force and what they apply to.
type process struct {
	load    func() (*config.Config, error)
	environ []string
	mu      sync.Mutex // for config, and one Reload at a time
	config  *config.Config
	applied atomic.Pointer[config.Config] // config, for who must not wait for mu
	level   *slog.LevelVar
	log     *slog.Logger
	systemd notifier
	ready   func() // called when it serves

	sessions *server.Sessions
	front    *stateserver.Server
	server   *server.Server
	sweeper  *server.Sweeper
	sampler  *server.Sampler
	admin    *admin.Server // nil for none
	tds      *tds.Server   // nil for none

	ownCertificate tls.Certificate            // made up for tds, where the settings have none
	tls            atomic.Pointer[tls.Config] // nil for no such listener

	addresses []string // where it listens for web servers
}

// run serves until ctx ends, and reads the settings again whenever reload says so.
func (p *process) run(ctx context.Context, reload <-chan struct{}, stdout io.Writer) (err error) {
	for _, w := range p.config.Warnings {
		p.log.Warn(w)
	}
	place := p.config.Place()
	store, err := openStore(ctx, place, p.config, p.log)
	if err != nil {
		return err
	}
	p.sessions = server.NewSessions(store, p.config.RequestBudget, p.log)
	defer func() { err = errors.Join(err, p.sessions.Close()) }()
	p.applied.Store(p.config)
	p.sessions.Opens(place.Text(), p.openPlace, p.Show)
	if err := p.enter(ctx); err != nil {
		return err
	}
	if err := p.checkEncryption(ctx, p.sessions.Store(), p.config); err != nil {
		return err
	}
	prefix := ""
	if p.config.StatusLine == "http" {
		prefix = "HTTP/1.1 "
	}
	p.front = stateserver.New(p.sessions, prefix, p.config.ASPNetVersion, p.log)
	p.server = &server.Server{Handle: p.front.Handle, Access: server.NewAccessList(p.log), Log: p.log}
	p.sweeper = &server.Sweeper{Store: p.sessions, Log: p.log}
	p.sampler = &server.Sampler{Sessions: p.sessions, Log: p.log}
	p.apply(nil)

	handedOver, err := inherited(p.environ)
	if err != nil {
		return err
	}
	tdsListeners, handedOver := divide(handedOver, p.config.TDS.Listen)
	tlsListeners, listeners := divide(handedOver, p.config.TLS.Listen)
	closeThem := func() { closeAll(slices.Concat(listeners, tdsListeners, tlsListeners)) }
	if len(listeners) == 0 {
		if listeners, err = listen(ctx, p.config.Listen); err != nil {
			closeThem()
			return err
		}
	}
	p.addresses = addressesOf(listeners)
	if tdsListeners, err = p.listenTDS(ctx, tdsListeners); err != nil {
		closeThem()
		return err
	}
	if tlsListeners, err = p.listenTLS(ctx, tlsListeners); err != nil {
		closeThem()
		return err
	}
	var background sync.WaitGroup
	work, endWork := context.WithCancel(context.WithoutCancel(ctx))
	defer background.Wait()
	defer endWork()
	background.Go(func() { p.sessions.Run(work) })
	background.Go(func() { p.sweeper.Run(work) })
	background.Go(func() { p.sampler.Run(work) })
	background.Go(func() { p.sessions.Probe(work) })
	if err := p.serveAdmin(ctx); err != nil {
		closeThem()
		return err
	}
	failed := make(chan error, len(listeners)+len(tdsListeners)+len(tlsListeners))
	for _, ln := range listeners {
		go func() { failed <- p.server.Serve(ln) }()
		p.log.Info("serving", "address", ln.Addr().String(), "mode", string(p.config.Mode), "version", programVersion())
	}
	for _, ln := range tdsListeners {
		go func() { failed <- p.server.ServeWith(ln, server.TDS, p.tds.Handle) }()
		p.log.Info("serving mode=\"SQLServer\"", "address", ln.Addr().String(), "databases", p.config.TDS.Databases, "users", p.config.TDS.Users.String())
		p.sayReadyTDS(stdout, ln)
	}
	for _, ln := range tlsListeners {
		go func() { failed <- p.server.ServeTLS(ln, p.tlsNow()) }()
		p.log.Info("serving TLS", "address", ln.Addr().String(), "client_certificates", p.config.TLS.Clients != "")
	}
	p.sayReady(stdout, listeners, says(place))
	p.ready()
	p.systemd.tell("READY=1", "STATUS=serving on "+strings.Join(p.addresses, ", "))
	background.Go(func() { p.systemd.watch(work, p.alive) })

	for {
		select {
		case <-reload:
			p.Reload() // logs
			continue
		case err = <-failed:
		case <-ctx.Done():
		}
		break
	}
	p.systemd.tell("STOPPING=1", "STATUS=answering the requests under way")
	p.drain(work)
	return err
}

// apply puts the settings that can change while the server runs into force. was are those before, nil for none.
func (p *process) apply(was *config.Config) {
	c := p.config
	p.applied.Store(c)
	p.applyEncryption(was, c)
	p.applyOrigins(was, c)
	p.level.Set(c.Log.Level)
	p.sessions.SetBudget(c.RequestBudget)
	p.sessions.SetQuotas(quotasOf(c))
	p.sessions.SetLockWait(c.LockWait)
	p.front.Configure(frontSettings(c.Limits))
	p.server.Access.Allow(c.Allow)
	p.server.TrustProxies(c.ProxyProtocol)
	p.server.LimitConnections(c.Limits.Connections)
	p.server.LimitBodies(int64(c.Limits.BodiesInFlight))
	p.sweeper.Configure(c.Sweep.Interval, c.Sweep.Batch)
	p.sessions.SetSlow(c.Log.Slow)
	p.configureAdmin()
	p.configureTDS()
	p.configureTLS()
}

func quotasOf(c *config.Config) server.Quotas {
	q := server.Quotas{Each: server.Quota{Item: int64(c.Quotas.Item), Sessions: c.Quotas.Sessions}, Single: make(map[string]server.Quota)}
	for _, a := range c.Quotas.Applications {
		q.Single[strings.ToLower(a.Name)] = server.Quota{Item: int64(a.Item), Sessions: a.Sessions}
	}
	return q
}

func frontSettings(l config.Limits) stateserver.Settings {
	s := stateserver.DefaultSettings()
	s.RequestLine = int(l.RequestLine)
	s.Headers = int(l.Headers)
	s.Body = int64(l.Body)
	s.Idle = l.Idle
	return s
}

// Reload reads the settings again, and returns the keys of those that are in force now, and of those that need a
// restart. Settings with a fault change nothing.
func (p *process) Reload() (applied, restart []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.systemd.tell("RELOADING=1")
	defer p.systemd.tell("READY=1")
	next, err := p.load()
	if err == nil && !reflect.DeepEqual(next.Encryption, p.config.Encryption) {
		err = p.checkEncryption(context.Background(), p.sessions.Store(), next)
	}
	if err != nil {
		p.log.Error("the settings have faults, those in force stay", "error", explain(err))
		return nil, nil, err
	}
	for _, w := range next.Warnings {
		p.log.Warn(w)
	}
	merged, applied, restart := p.config.Reload(next)
	was := p.config
	p.config = merged
	p.apply(was)
	p.switchWithSettings(applied, merged.Place())
	if len(restart) > 0 {
		p.log.Warn("some settings have changed that need a restart, the old ones stay", "settings", restart)
	}
	p.log.Info("the settings were read again", "changed", applied)
	return applied, restart, nil
}

// drain stops accepting, has the requests under way answered, and does what a
// failing store left behind, all within drainTime.
func (p *process) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	p.sessions.Drain()
	if err := p.server.Shutdown(ctx); err != nil {
		p.log.Warn("not every request was answered before the stop", "error", err)
	}
	p.sessions.Settle(ctx)
	if p.admin != nil { // to the last it says that the server is stopping
		if err := p.admin.Shutdown(ctx); err != nil {
			p.log.Warn("not every operator was answered before the stop", "error", err)
		}
	}
	moving, cancelMoving := context.WithTimeout(context.WithoutCancel(ctx), moveTime)
	defer cancelMoving()
	p.finishMove(moving)
	p.saveState()
	p.log.Info("stopped")
}

func listen(ctx context.Context, addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			for _, ln := range listeners {
				ln.Close()
			}
			if isErrno(err, syscall.EADDRINUSE, 10048) {
				return nil, fmt.Errorf("listen: another program listens on %s, perhaps another aspstate or, on Windows, the service aspnet_state: stop it, or set listen (%w)", address, err)
			}
			return nil, fmt.Errorf("listen: %w", err)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

func addressesOf(listeners []net.Listener) (addresses []string) {
	for _, ln := range listeners {
		addresses = append(addresses, ln.Addr().String())
	}
	return addresses
}

// closeAll closes listeners that may be nil.
func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		ln.Close()
	}
}

// sayReady prints what to paste into web.config, and where sessions are kept.
func (p *process) sayReady(stdout io.Writer, listeners []net.Listener, where string) {
	for _, ln := range listeners {
		fmt.Fprintf(stdout, "<sessionState mode=\"StateServer\" stateConnectionString=\"tcpip=%s\" />\n", reachable(ln.Addr()))
	}
	fmt.Fprintln(stdout, where)
}

// reachable is the address under which web servers find a listener: where it
// listens on every address, the machine's name.
func reachable(addr net.Addr) string {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil || !at.Addr().IsUnspecified() {
		return addr.String()
	}
	name, err := os.Hostname()
	if err != nil {
		name = "THIS-MACHINE"
	}
	return net.JoinHostPort(name, fmt.Sprint(at.Port()))
}
