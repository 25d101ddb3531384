package config

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// networkTimeout is web.config's stateNetworkTimeout where nobody changed it:
// how long a web server waits for an answer.
const networkTimeout = 10 * time.Second

// aspNetVersion: three dotted parts; web servers refuse a first one below 2.
var aspNetVersion = regexp.MustCompile(`^([0-9]{1,9})\.[0-9]{1,9}\.[0-9]{1,9}$`)

// check adds a fault unless ok, or the value could not even be read.
func (l *loader) check(ok bool, key, problem, remedy string) {
	if !ok && !l.unreadable[key] {
		l.fault(key, problem, remedy)
	}
}

func (l *loader) checkSize(key string, value, least, most Size, why string) {
	l.check(value >= least, key, fmt.Sprintf("%v is too small: %s", value, why), fmt.Sprintf("write at least %v", least))
	l.check(value <= most, key, fmt.Sprintf("%v is too large", value), fmt.Sprintf("write at most %v", most))
}

func (l *loader) checkDuration(key string, value, least, most time.Duration) {
	l.check(value >= least && value <= most, key, formatDuration(value)+" is out of range",
		fmt.Sprintf("write between %s and %s", formatDuration(least), formatDuration(most)))
}

func (l *loader) checkNumber(key string, value, least, most int) {
	l.check(value >= least && value <= most, key, fmt.Sprintf("%d is out of range", value), fmt.Sprintf("write between %d and %d", least, most))
}

// validate finds values out of range and settings that contradict each other.
func (l *loader) validate(c *Config) {
	l.validateListen(c)
	l.validateProxies(c)
	l.validateAdmin(c)
	l.validateTDS(c)
	if c.TLS.Listen != "" {
		l.validateListener(c, "tls.listen", c.TLS.Listen, "10.1.2.10:42425", c.TDS.Listen)
	}
	l.validateApplications(c)
	l.validateTakeOver(c)
	l.validateEncryption(c)
	l.validateQuotas(c)

	m := aspNetVersion.FindStringSubmatch(c.ASPNetVersion)
	l.check(m != nil, "aspNetVersion", strconv.Quote(c.ASPNetVersion)+" is not a version of three numbers", "write it as 4.0.30319")
	if m != nil {
		major, _ := strconv.Atoi(m[1])
		l.check(major >= 2, "aspNetVersion", "web servers refuse a state server below version 2", "write 4.0.30319")
	}

	// The longest page runs 110 s (executionTimeout); nobody waits longer for its session.
	l.checkDuration("requestBudget", c.RequestBudget, 2*time.Second, 110*time.Second)
	if c.RequestBudget >= networkTimeout {
		c.warn("requestBudget is %s, but web servers wait 10s for an answer unless stateNetworkTimeout in their web.config says otherwise", formatDuration(c.RequestBudget))
	}
	l.check(c.LockWait >= 0, "lockWait", "it is negative", "write 0s to answer at once")
	l.check(l.unreadable["requestBudget"] || c.RequestBudget < 2*time.Second || c.LockWait <= c.RequestBudget-2*time.Second, "lockWait",
		fmt.Sprintf("%s leaves less than 2s of requestBudget (%s) for the answer", formatDuration(c.LockWait), formatDuration(c.RequestBudget)),
		"shorten lockWait or raise requestBudget")

	l.checkSize("limits.requestLine", c.Limits.RequestLine, 2<<10, 1<<20, "application, session ID and their encoding make lines of up to 1.5 KiB")
	l.checkSize("limits.headers", c.Limits.Headers, 1<<10, 1<<20, "the headers of a request would not fit")
	l.checkSize("limits.body", c.Limits.Body, 1<<10, 512<<20, "sessions would not fit")
	l.checkSize("limits.bodiesInFlight", c.Limits.BodiesInFlight, 1<<10, 1<<40, "sessions would not fit")
	l.check(l.unreadable["limits.body"] || c.Limits.BodiesInFlight >= c.Limits.Body, "limits.bodiesInFlight",
		fmt.Sprintf("%v is less than limits.body (%v), so that the largest sessions would never be taken", c.Limits.BodiesInFlight, c.Limits.Body),
		"raise it or lower limits.body")
	l.checkNumber("limits.connections", c.Limits.Connections, 1, 1_000_000)
	l.checkDuration("limits.idle", c.Limits.Idle, time.Second, 24*time.Hour)

	if c.Memory.MaxBytes > 0 && c.Mode == ModeSQLServer && !l.unreadable["mode"] {
		c.warn("memory.maxBytes has no effect in mode SQLServer")
	}
	if c.Memory.MaxBytes > 0 && c.Mode == ModeStateServer && c.Memory.MaxBytes < c.Limits.Body {
		c.warn("memory.maxBytes (%v) is less than limits.body (%v): the largest sessions would never be taken", c.Memory.MaxBytes, c.Limits.Body)
	}
	l.checkDuration("sweep.interval", c.Sweep.Interval, time.Second, 24*time.Hour)
	l.checkNumber("sweep.batch", c.Sweep.Batch, 1, 100_000)
	l.check(c.Log.Slow >= 0, "log.slow", "it is negative", "write 0s to log no operation for being slow")
}

func (c *Config) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

func (l *loader) validateListen(c *Config) {
	l.check(len(c.Listen) > 0, "listen", "there is no address to listen on", "write listen: 127.0.0.1:42424")
	seen := map[string]bool{}
	var exposed []string
	for _, addr := range c.Listen {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			l.check(false, "listen", strconv.Quote(addr)+" is not host:port", "write 127.0.0.1:42424, or [::1]:42424 for IPv6 (in quotes in the file)")
			continue
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil {
			l.check(false, "listen", addr+" has no valid port", "write a number up to 65535; web servers expect 42424")
		} else if n != 0 {
			l.check(!seen[addr], "listen", addr+" is there twice", "remove one")
			seen[addr] = true
		}
		if host == "*" || host == "+" {
			l.check(false, "listen", addr+" is not an address", "write 0.0.0.0:"+port+" for every IPv4 address or [::]:"+port+" for every address, and list your web servers in allow")
			continue
		}
		if !isLoopback(host) {
			exposed = append(exposed, addr)
		}
	}
	if len(exposed) > 0 && !l.unreadable["allow"] {
		l.check(len(c.Allow) > 0, "listen",
			"other machines can reach "+strings.Join(exposed, ", ")+" and allow is empty; the port has no authentication, and web servers deserialise what is stored through it, so whoever can connect can run code on them",
			"list your web servers in allow, such as allow: [10.1.2.3, 10.1.2.4]")
	}
	for _, p := range c.Allow {
		if p.Bits() == 0 {
			c.warn("allow has %v, which is everybody: the port has no authentication, and whoever can connect can run code on the web servers", p)
		}
	}
}

// validateProxies judges proxyProtocol.
func (l *loader) validateProxies(c *Config) {
	if len(c.ProxyProtocol) > 0 && len(c.Allow) == 0 && !l.unreadable["allow"] {
		c.warn("proxyProtocol is set and allow is empty: the clients of the proxies are refused; list the web servers in allow")
	}
	for _, p := range c.ProxyProtocol {
		if p.Bits() == 0 {
			c.warn("proxyProtocol has %v, which is everybody: whoever can connect can say that he is a web server in allow", p)
		}
	}
}

// leastToken is the shortest token, in characters: nobody guesses 16 random ones.
const leastToken = 16

// validateTakeOver reads takeOver as web.config writes a state server's address, and leaves host:port.
func (l *loader) validateTakeOver(c *Config) {
	if c.TakeOver == "" {
		return
	}
	address, _ := cutPrefixFold(strings.TrimSpace(c.TakeOver), "tcpip=")
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "42424")
	}
	host, port, err := net.SplitHostPort(address)
	l.check(err == nil && host != "" && port != "", "takeOver", strconv.Quote(c.TakeOver)+" is not the address of a state server", "write tcpip=oldhost:42424")
	l.check(!slices.Contains(c.Listen, address), "takeOver", "this server listens on "+address+" itself", "name the old state server")
	c.TakeOver = address
}

func (l *loader) validateAdmin(c *Config) {
	a := c.Admin
	if !a.On() {
		return
	}
	if a.Key != "" && a.Certificate == "" {
		c.warn("admin.key has no effect without admin.certificate")
	}
	token := a.Token.Text()
	l.check(token == "" || len(token) >= leastToken, "admin.token", fmt.Sprintf("it is shorter than %d characters", leastToken), "make one with: openssl rand -hex 24")
	l.check(strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) < 0, "admin.token", "it has characters that HTTP headers cannot carry",
		"make one with: openssl rand -hex 24")
	host, port, err := net.SplitHostPort(a.Listen)
	n, bad := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil, bad != nil:
		l.check(false, "admin.listen", strconv.Quote(a.Listen)+" is not host:port", "write 127.0.0.1:42480, or off")
		return
	case host == "*" || host == "+":
		l.check(false, "admin.listen", a.Listen+" is not an address", "write 0.0.0.0:"+port+" for every IPv4 address or [::]:"+port+" for every address")
		return
	}
	l.check(n == 0 || !slices.Contains(c.Listen, a.Listen), "admin.listen", a.Listen+" is also in listen", "write another port")
	if isLoopback(host) || l.unreadable["admin.token"] {
		return
	}
	l.check(token != "" || a.Token.from != "", "admin.listen", "other machines can reach "+a.Listen+" and admin.token is empty; whoever connects could read and remove sessions",
		"set admin.token to env:NAME or file:PATH, or listen on 127.0.0.1")
	if a.Certificate == "" {
		c.warn("admin.listen %s is reached from other machines without TLS: token and session IDs can be read on the way; set admin.certificate and admin.key", a.Listen)
	}
}

// passwordHash is what aspstate hash-password prints.
var passwordHash = regexp.MustCompile(`^pbkdf2-sha256\$[1-9][0-9]{4,6}\$[A-Za-z0-9+/]{11,}\$[A-Za-z0-9+/]{43}$`)

func (l *loader) validateTDS(c *Config) {
	t := c.TDS
	const remedy = "write NAME:HASH, with the hash that aspstate hash-password prints"
	seen := map[string]bool{}
	for i := range t.Users {
		name, hash := t.Users.User(i)
		l.check(name != "" && len(name) <= 128, "tds.users", fmt.Sprintf("user %d has no name of 1 to 128 letters", i+1), remedy)
		l.check(passwordHash.MatchString(hash), "tds.users", strconv.Quote(name)+" has no password hash", remedy)
		l.check(!seen[strings.ToLower(name)], "tds.users", strconv.Quote(name)+" is there twice", "remove one")
		seen[strings.ToLower(name)] = true
	}
	if t.Key != "" && t.Certificate == "" {
		c.warn("tds.key has no effect without tds.certificate")
	}
	if t.Listen == "" {
		return
	}
	if len(t.Users) == 0 && !l.unreadable["tds.users"] {
		c.warn("nobody can log in at %s (tds.listen), because tds.users is empty", t.Listen)
	}
	l.check(len(t.Databases) > 0, "tds.databases", "there is no name for the database", "write ASPState")
	l.validateListener(c, "tds.listen", t.Listen, "127.0.0.1:1433")
}

// validateListener checks the address of a listener beside those of listen, admin.listen and others.
func (l *loader) validateListener(c *Config, key, address, example string, others ...string) {
	host, port, err := net.SplitHostPort(address)
	n, bad := strconv.ParseUint(port, 10, 16)
	others = append(append(others, c.Admin.Listen), c.Listen...)
	switch {
	case err != nil, bad != nil:
		l.check(false, key, strconv.Quote(address)+" is not host:port", "write "+example+", or leave it empty")
	case host == "*" || host == "+":
		l.check(false, key, address+" is not an address", "write 0.0.0.0:"+port+" for every IPv4 address or [::]:"+port+" for every address")
	case n != 0 && slices.Contains(others, address):
		l.check(false, key, address+" is another listener's address", "write another port")
	case !isLoopback(host) && !l.unreadable["allow"]:
		l.check(len(c.Allow) > 0, key,
			"other machines can reach "+address+" and allow is empty; web servers deserialise what is stored through it, so whoever is let in can run code on them",
			"list your web servers in allow, such as allow: [10.1.2.3, 10.1.2.4]")
	}
}

// isLoopback reports whether only this machine reaches host. Names other than
// localhost are not looked up: what they mean can change.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
