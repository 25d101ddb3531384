package sqlserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/msdsn"

	"aspstate/backends"
)

func TestTimeoutsAreWholeMinutes(t *testing.T) {
	for timeout, want := range map[time.Duration]int64{
		backends.NeverExpires: math.MaxInt32, 1: 1, time.Minute: 1, time.Minute + 1: 2, 20 * time.Minute: 20, 20*time.Minute - 1: 20,
		525600 * time.Minute: 525600, -1: -1, -time.Hour: -1, math.MaxInt64: 153722868,
	} {
		if got := minutes(timeout); got != want {
			t.Errorf("%v is %d minutes, want %d", timeout, got, want)
		}
	}
	for minutes, want := range map[int64]time.Duration{
		math.MaxInt32: backends.NeverExpires, 20: 20 * time.Minute, 153722867: 153722867 * time.Minute, 153722868: backends.NeverExpires,
		-1: -time.Minute,
	} {
		if got := duration(minutes); got != want {
			t.Errorf("%d minutes are %v, want %v", minutes, got, want)
		}
	}
}

func TestItemsGoIntoTheirColumn(t *testing.T) {
	for size, isShort := range map[int]bool{1: true, 6999: true, 7000: true, 7001: false, 1 << 20: false} {
		short, long := columnsOf(make([]byte, size))
		if isShort != (len(short) == size) || isShort == (len(long) == size) || (short != nil) == (long != nil) {
			t.Errorf("%d bytes: short %d, long %d", size, len(short), len(long))
		}
	}
}

// The vectors were seen in databases of Microsoft's scripts, or computed with them.
func TestKeysAreASPStates(t *testing.T) {
	for name, suffix := range map[string]string{
		"/lm/w3svc/1/root": "2014c0f1", "/lm/w3svc/5/root": "28d8c075", "/lm/w3svc/2/root": "2b7731d2", "/lm/w3svc/1/root/sessiontest": "a30e2956",
	} {
		arg := keyArg(backends.Key{App: backends.HashAppID(name), ID: "1sc3aoog5u5zyko2tl3ghnvq"})
		if arg.Value != "1sc3aoog5u5zyko2tl3ghnvq"+suffix {
			t.Errorf("the key in %s is %v", name, arg.Value)
		}
	}
}

func TestNamesThatASPStateCannotHold(t *testing.T) {
	s := &Store{}
	for name, kept := range map[string]bool{
		"/lm/w3svc/1/root": true, strings.Repeat("a", 280): true, "a b": true,
		"/LM/W3SVC/1/ROOT": false, strings.Repeat("a", 281): false, "": false, "a ": false, "a\t": false, "a\x00": false, "aspstate:x": false,
	} {
		stored, bytes, err := s.storedName(t.Context(), name)
		if err != nil || stored != bytes || kept != (stored == name) || !kept && len(stored) != len(substitutePrefix)+64 {
			t.Errorf("%.20q is stored as %q, %q, %v", name, stored, bytes, err)
		}
	}
}

func TestConnectionStrings(t *testing.T) {
	for text, want := range map[string]string{
		"sqlserver://sa:x@db:1444?database=d":                                                     "db  1444 d sa aspstate 0 5s 32",
		"sqlserver://sa:x@db/inst?app+name=mine&encrypt=true":                                     "db inst 0 ASPState sa mine 1 5s 32",
		"data source=db;initial catalog=ASPState;user id=sa;password=x":                           "db  0 ASPState sa aspstate 0 5s 32",
		`Data Source=tcp:db\inst,1433;Initial Catalog=s;Integrated Security=SSPI`:                 "db inst 1433 s  aspstate 0 5s 32",
		"Server=.;Database=s;uid=sa;pwd=x;Connect Timeout=30;Encrypt=strict;Max Pool Size=9":      "localhost  0 s sa aspstate 4 30s 9",
		"Server=(local);Database=s;Trusted_Connection=yes;Encrypt=yes;TrustServerCertificate=yes": "localhost  0 s  aspstate 1 5s 32",
	} {
		c, connections, err := parse(text)
		got := fmt.Sprintf("%s %s %d %s %s %s %d %v %d", c.Host, c.Instance, c.Port, c.Database, c.User, c.AppName, c.Encryption, c.DialTimeout, connections)
		if err != nil || got != want || c.ConnTimeout != 0 || !c.DisableRetry {
			t.Errorf("%s is %q, %v; want %q", text, got, err, want)
		}
	}
	if c, _, err := parse("Server=db;Encrypt=true"); err != nil || c.TLSConfig.InsecureSkipVerify || c.TLSConfig.ServerName != "db" {
		t.Errorf("Encrypt=true does not verify the certificate: %v", err)
	}
	if c, _, err := parse("Server=db;Encrypt=disable"); err != nil || c.Encryption != msdsn.EncryptionDisabled {
		t.Errorf("Encrypt=disable is %d, %v", c.Encryption, err)
	}
	if _, _, err := parse("Server=db;Encrypt=perhaps"); err == nil {
		t.Error("Encrypt=perhaps is taken")
	}
	if _, _, err := parse("Server=db;Max Pool Size=0"); err == nil {
		t.Error("Max Pool Size=0 is taken")
	}
	if _, err := Open(t.Context(), "Server=db;Encrypt=perhaps", slog.New(slog.DiscardHandler)); !errors.Is(err, backends.ErrPermanent) {
		t.Errorf("Open: %v", err)
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	const (
		applied   = "unknown"
		undone    = "undone"
		permanent = "permanent"
	)
	denied := "The UPDATE permission was denied on the object 'ASPStateTempSessions', database 'ASPState', schema 'dbo'."
	for _, test := range []struct {
		err  error
		want string
		says string
	}{
		{mssql.Error{Number: 1205, Class: 13, Message: "Transaction was deadlocked"}, undone, "1205"},
		{mssql.Error{Number: 1222, Class: 16, Message: "Lock request time out"}, undone, ""},
		{mssql.Error{Number: 40613, Class: 17, Message: "Database is not currently available"}, undone, ""},
		{mssql.Error{Number: 983, Class: 14, Message: "Unable to access availability database"}, undone, ""},
		{mssql.Error{Number: 3906, Class: 16, Message: "Failed to update database because the database is read-only"}, undone, ""},
		{mssql.Error{Number: 9002, Class: 17, Message: "The transaction log is full"}, undone, ""},
		{mssql.Error{Number: 596, Class: 21, Message: "Cannot continue the execution because the session is in the kill state"}, applied, ""},
		{mssql.Error{Number: 18456, Class: 14, Message: "Login failed for user 'x'."}, permanent, "check the login"},
		{mssql.Error{Number: 18456, Class: 14, Message: "Login failed for user 'x'.", All: []mssql.Error{{Number: 4060, Class: 11}, {Number: 18456, Class: 14}}}, undone, "CREATE USER"},
		{mssql.Error{Number: 4060, Class: 11, Message: "Cannot open database"}, undone, "CREATE USER"},
		{mssql.Error{Number: 916, Class: 14, Message: "The server principal is not able to access the database"}, permanent, "CREATE USER"},
		{mssql.Error{Number: babelfishNumber, Class: 16, Message: "permission denied for table aspstaterequests"}, permanent, "GRANT SELECT, INSERT"},
		{mssql.Error{Number: babelfishNumber, Class: 16, Message: "canceling statement due to user request"}, undone, ""},
		{mssql.Error{Number: 229, Class: 14, Message: denied}, permanent, "GRANT UPDATE ON dbo.ASPStateTempSessions"},
		{mssql.Error{Number: 229, Class: 14, Message: "The EXECUTE permission was denied on the object 'sp_getapplock', database 'mssqlsystemresource', schema 'sys'."}, permanent, "GRANT EXECUTE ON sys.sp_getapplock"},
		{mssql.Error{Number: 230, Class: 14, Message: "The SELECT permission was denied on the column 'Flags' of the object 'ASPStateTempSessions', database 'ASPState', schema 'dbo'."}, permanent, "GRANT SELECT ON dbo.ASPStateTempSessions"},
		{mssql.Error{Number: 229, Class: 14, Message: "La autorización fue denegada"}, permanent, "GRANT SELECT, INSERT"},
		{mssql.Error{Number: 208, Class: 16, Message: "Invalid object name 'dbo.ASPStateRequests'."}, permanent, "aspstate migrate up"},
		{mssql.Error{Number: 102, Class: 15, Message: "Incorrect syntax"}, permanent, ""},
		{mssql.StreamError{InnerError: io.ErrUnexpectedEOF}, applied, ""},
		{io.ErrUnexpectedEOF, applied, ""},
		{context.DeadlineExceeded, applied, ""},
	} {
		err := failure(test.err)
		got := applied
		switch {
		case errors.Is(err, backends.ErrPermanent):
			got = permanent
		case errors.Is(err, backends.ErrNotApplied):
			got = undone
		}
		if got != test.want || !strings.Contains(err.Error(), test.says) || backends.IsAnswer(err) || !errors.Is(err, test.err) && !strings.Contains(fmt.Sprint(err), test.err.Error()) {
			t.Errorf("%v is %s: %v; want %s", test.err, got, err, test.want)
		}
		if test.want == permanent && !errors.Is(err, backends.ErrNotApplied) {
			t.Errorf("%v: %v may have been applied", test.err, err)
		}
	}
	for _, number := range []int32{1105, 9002, 40544} {
		full := roomFailure(failure(mssql.Error{Number: number, Class: 17}))
		if !errors.Is(full, backends.ErrFull) || !backends.IsAnswer(full) {
			t.Errorf("%d: %v", number, full)
		}
	}
	if err := roomFailure(failure(mssql.Error{Number: 1205, Class: 13})); errors.Is(err, backends.ErrFull) {
		t.Error("1205 is taken for a full disk")
	}
	for _, number := range []int32{2601, 2627} {
		if !isDuplicate(failure(mssql.Error{Number: number, Class: 14})) {
			t.Errorf("%d is no duplicate", number)
		}
	}
}

// A server that is not there: nothing was sent.
func TestErrorsOfTheNetwork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, "sqlserver://127.0.0.1:1?encrypt=disable", slog.New(slog.DiscardHandler))
	if err == nil || errors.Is(err, backends.ErrPermanent) || !errors.Is(err, backends.ErrNotApplied) || !strings.Contains(err.Error(), "waited") {
		t.Fatalf("Open: %v", err)
	}
}

// Every parameter of a batch is declared, by its caller or itself, and every one declared is used.
func TestBatchesDeclareTheirParameters(t *testing.T) {
	const request, item = ", @slot binary(16), @seq bigint", ", @item int"
	name := regexp.MustCompile(`@@?\w+`)
	for what, batch := range map[string][2]string{
		"read":    {readSQL, keyDeclared + item},
		"touch":   {touchSQL, keyDeclared + ", @clears bit, @onlyLocked bit" + request + item},
		"lock":    {lockSQL, keyDeclared + request + item},
		"release": {releaseSQL, keyDeclared + ", @cookie int, @ifCookie bit" + request + item},
		"remove":  {removeSQL, keyDeclared + ", @cookie int, @ifCookie bit" + request + item},
		"set":     {setSQL, setDeclared + request + item},
		"bury":    {burySQL, keyDeclared},
		"fence":   {fenceSQL, "@slot binary(16), @seq bigint"},
		"find":    {findApplicationSQL, "@app int, @name nvarchar(280)"},
		"name":    {nameSQL, "@name nvarchar(280)"},
		"insert":  {registerApplicationSQL, "@app int, @name nvarchar(280), @slot binary(16), @full varbinary(max)"},
		"sweep":   {sweepSQL, "@limit int"},
	} {
		text, params := batch[0], name.FindAllString(batch[1], -1)
		known := map[string]bool{"@@ROWCOUNT": true}
		for _, p := range params {
			known[p] = true
			if !regexp.MustCompile(p + `\b`).MatchString(text) {
				t.Errorf("%s: %s is declared and not used", what, p)
			}
		}
		for _, line := range regexp.MustCompile(`DECLARE ([^\n]*)|sp_getapplock ([^\n]*)`).FindAllString(text, -1) {
			for _, p := range name.FindAllString(line, -1) {
				known[p] = true
			}
		}
		for _, p := range name.FindAllString(text, -1) {
			if !known[p] {
				t.Errorf("%s: %s is used and not declared", what, p)
			}
		}
		if len(text) > 4000 {
			t.Errorf("%s has %d characters", what, len(text))
		}
	}
}

// A server that cannot prove who it is gets no session, and the error says what to write.
func TestUnverifiedServerIsRefused(t *testing.T) {
	foreign := httptest.NewUnstartedServer(nil)
	foreign.TLS = &tls.Config{NextProtos: []string{"tds/8.0"}}
	foreign.Config.ErrorLog = log.New(io.Discard, "", 0)
	foreign.StartTLS()
	defer foreign.Close()
	_, err := Open(t.Context(), "sqlserver://x:y@"+foreign.Listener.Addr().String()+"?encrypt=strict&database=x", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "certificate=FILE") {
		t.Fatalf("Open: %v", err)
	}
}

// The ways of integrated authentication that the driver offers are there, and say at once what they lack.
func TestIntegratedAuthentication(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("KRB5_CONFIG", filepath.Join(dir, "none.conf"))
	t.Setenv("KRB5CCNAME", "")
	t.Setenv("KRB5_KTNAME", "")
	conf := file("krb5.conf", "[libdefaults]\n default_realm = EXAMPLE.COM\n")
	keytab, broken := file("aspstate.keytab", ""), file("broken.conf", "[libdefaults]\n default_realm\n")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	const kerberos = "Server=db;Database=d;Integrated Security=SSPI;authenticator=krb5"
	for text, says := range map[string]string{
		kerberos:                                "none.conf",
		kerberos + ";krb5-configfile=" + broken: "krb5 config",
		kerberos + ";krb5-configfile=" + conf:   "failed to create krb5 client from login parameters",
		kerberos + ";krb5-configfile=" + conf + ";krb5-credcachefile=" + dir + "/none":        "krb5-credcachefile does not exist",
		kerberos + ";krb5-configfile=" + conf + ";User ID=x;krb5-keytabfile=" + dir + "/none": "krb5-keytabfile does not exist",
		"Server=db;Database=d;authenticator=kerberos":                                         "provider kerberos not found",
		"Server=db;Database=d;authenticator=ntlm;User ID=x;Password=s3cret":                   "invalid username x",
	} {
		_, err := Open(ended, text, slog.New(slog.DiscardHandler)) // waits for no server
		if !errors.Is(err, backends.ErrPermanent) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "krb5-keytabfile=FILE") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v; want %q", text, err, says)
		}
	}
	for _, text := range []string{
		kerberos + ";krb5-configfile=" + conf + ";User ID=x;krb5-keytabfile=" + keytab,
		kerberos + ";krb5-configfile=" + conf + ";krb5-credcachefile=" + keytab,
		"sqlserver://x:y@db?authenticator=krb5&krb5-realm=EXAMPLE.COM&krb5-configfile=" + url.QueryEscape(conf),
		`Server=db;Database=d;authenticator=ntlm;User ID=DOMAIN\x;Password=y`,
		`Server=db;Database=d;User ID=DOMAIN\x;Password=y`,
	} {
		if _, _, err := parse(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
