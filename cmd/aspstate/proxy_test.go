package main

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	mssql "github.com/microsoft/go-mssqldb"

	"aspstate/server/stateserver/client"
)

// proxied connects as a proxy does for a client.
type proxied struct{ client string }

func (p proxied) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		_, err = fmt.Fprintf(c, "PROXY TCP4 %s 10.9.0.1 40000 42424\r\n", p.client)
	}
	return c, err
}

// Behind a proxy the allow list is about its clients, on the state server's port and on that of mode="SQLServer".
func TestProxyProtocol(t *testing.T) {
	r, tdsAddress := startTDS(t, "--proxy-protocol=127.0.0.1", "--allow=192.0.2.0/24", "--log-level=debug")
	login := func(client string) error {
		connector, err := mssql.NewConnector(fmt.Sprintf("sqlserver://web:%s@%s?database=ASPState&TrustServerCertificate=true", tdsPassword, tdsAddress))
		if err != nil {
			t.Fatal(err)
		}
		connector.Dialer = proxied{client}
		db := sql.OpenDB(connector)
		defer db.Close()
		return db.PingContext(t.Context())
	}
	visit := func(from string) (client.Answer, error) {
		conn, err := proxied{from}.DialContext(t.Context(), "tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		return client.New(conn).Set(client.Target(tdsApp, "s1"), []byte("item"), time.Hour, 0)
	}
	wantStatus(t, 200)(visit("192.0.2.7"))
	if a, err := visit("198.51.100.1"); err == nil {
		t.Errorf("a client that allow does not list is answered %d", a.Status)
	}
	if err := login("192.0.2.8"); err != nil {
		t.Errorf("a client in allow, at tds.listen: %v", err)
	}
	if err := login("198.51.100.2"); err == nil {
		t.Error("a client that allow does not list logs in at tds.listen")
	}
	for _, address := range []string{"198.51.100.1", "198.51.100.2"} {
		r.log.await(t, `msg="connection refused: the address is not in the allow list" client=`+address+` setting=allow`)
	}
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET x HTTP/1.1\r\n\r\n")
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("without a header the answer is %q", answer)
	}
	r.log.await(t, "setting=proxyProtocol")

	// The server's other messages have the client's address, too.
	conn, err = proxied{"192.0.2.9"}.DialContext(t.Context(), "tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "garbage\r\n\r\n")
	r.log.await(t, `msg="request refused" client=192.0.2.9:40000`)
}

// Nobody else gets anywhere with a header.
func TestProxyProtocolOfOthers(t *testing.T) {
	r, tdsAddress := startTDS(t, "--proxy-protocol=10.9.0.1", "--allow=192.0.2.0/24")
	conn, err := proxied{"192.0.2.7"}.DialContext(t.Context(), "tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); !strings.HasPrefix(line, "400 ") {
		t.Errorf("the answer is %q, %v", line, err)
	}
	conn, err = proxied{"192.0.2.7"}.DialContext(t.Context(), "tcp", tdsAddress)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("the answer at tds.listen is %q, %v", answer, err)
	}
}
