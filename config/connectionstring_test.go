package config

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
)

func TestConnectionStringsHidePasswords(t *testing.T) {
	for text, want := range map[string]string{
		"postgres://user:s3cret@db:5432/sessions?sslmode=require&password=s3cret": "postgres://user@db:5432/sessions",
		"postgresql://h1:5432,h2:5432/sessions":                                   "postgresql://h1:5432,h2:5432/sessions",
		"postgres://user:s3cret/@db/sessions":                                     "postgres://…",
		"postgres://user:s3cret?@db/sessions":                                     "postgres://…",
		"postgres://user:s3cret#@db/sessions":                                     "postgres://…",
		"postgres://user:@s3cret@db/sessions":                                     "postgres://…",
		"postgres://db/sessions?user=a@s3cret":                                    "postgres://…",
		"sqlserver://sa:s3cret@db?database=ASPState":                              "sqlserver://sa@db",
		"Data Source=db\\inst;User ID=sa;Password=s3cret":                         "Data Source=db\\inst;Initial Catalog=ASPState",
		`SERVER = db,1433 ; pwd = "s3cret;Server=other" ;database='my''db';`:      "Data Source=db,1433;Initial Catalog=my'db",
		"Server=db;Password=s3cret;":                                              "Data Source=db;Initial Catalog=ASPState",
		"Server='db;Password=s3cret":                                              "",
		"host=db password=s3cret":                                                 "",
		"s3cret":                                                                  "",
	} {
		// In mode StateServer any text passes, known or not.
		c := mustLoad(t, "mode: StateServer", []string{"ASPSTATE_SQLCONNECTIONSTRING=" + text}).SQLConnectionString
		if got := c.String(); got != want {
			t.Errorf("%s is shown as %q, want %q", text, got, want)
		}
		if !strings.Contains(c.Text()+"s3cret", "s3cret") || c.Text() == "" {
			t.Errorf("%s is lost: %q", text, c.Text())
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("settings", "db", c)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("settings", "db", c)
		if want := strings.ReplaceAll(want, `\`, `\\`); !strings.Contains(log.String(), `"db":"`+want+`"`) {
			t.Errorf("%s is logged as %s", text, &log)
		}
		shown := fmt.Sprintf("%v %+v %#v %s %q", c, c, c, c, c) + log.String() + fmt.Sprintf("%+v %#v", Config{SQLConnectionString: c}, []any{c})
		if strings.Contains(shown, "s3cret") {
			t.Errorf("%s leaks: %s", text, shown)
		}
		// Where it is refused, it is not shown either.
		if _, err := loadText(t, "", []string{"ASPSTATE_SQLCONNECTIONSTRING=" + text}); err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s gives %v", text, err)
		}
	}
	c := mustLoad(t, "sqlConnectionString: env:DB", []string{"DB=sqlite:/var/x.db"}).SQLConnectionString
	if c.String() != "env:DB sqlite:/var/x.db" {
		t.Errorf("shown as %s", c)
	}
}

func TestRecognize(t *testing.T) {
	ownAccount := ";Authenticator=krb5"
	if runtime.GOOS == "windows" {
		ownAccount = "" // winsspi is the driver's default
	}
	for text, want := range map[string]struct {
		backend Backend
		text    string
	}{
		"sqlite:/a/b.db":      {SQLite, "sqlite:/a/b.db"},
		"SQLITE:b.db":         {SQLite, "sqlite:/dir/b.db"},
		"postgres://h/d":      {Postgres, "postgres://h/d?sslmode=verify-full"},
		"PostgreSQL://h/d":    {Postgres, "PostgreSQL://h/d?sslmode=verify-full"},
		"sqlserver://h":       {SQLServer, "sqlserver://h?encrypt=true"},
		"Data Source=h":       {SQLServer, "Data Source=h;Initial Catalog=ASPState;Encrypt=true"},
		"data source=h;":      {SQLServer, "data source=h;Initial Catalog=ASPState;Encrypt=true"},
		"Server=h;Database=d": {SQLServer, "Server=h;Database=d;Encrypt=true"},
		"addr=h;INITIAL CATALOG=d;Trusted_Connection=yes":                 {SQLServer, "addr=h;INITIAL CATALOG=d;Trusted_Connection=yes;Encrypt=true" + ownAccount},
		"Server=.;Database=d;Integrated Security=SSPI;User ID=x":          {SQLServer, "Server=.;Database=d;Integrated Security=SSPI;User ID=x" + ownAccount},
		"Server=.;Database=d;Integrated Security=False":                   {SQLServer, "Server=.;Database=d;Integrated Security=False"},
		`Server=.;Database=d;Integrated Security=true;Uid=D\x;Pwd=y`:      {SQLServer, `Server=.;Database=d;Integrated Security=true;Uid=D\x;Pwd=y`},
		"Server=.;Database=d;Integrated Security=true;authenticator=ntlm": {SQLServer, "Server=.;Database=d;Integrated Security=true;authenticator=ntlm"},
		"network address='h'":                  {SQLServer, "encrypt=true;initial catalog=ASPState;network address=h"},
		`Server=h;Database='a;b';pwd='x''y"z'`: {SQLServer, `database="a;b";encrypt=true;pwd="x'y""z";server=h`},
		`Server=h;pwd=x"y;Database=" d"`:       {SQLServer, `database=" d";encrypt=true;pwd="x""y";server=h`},
		// Whoever answers is who they say they are, unless the text leaves that open or nobody else can answer.
		"postgres://u:p@h1:5432,localhost/d?connect_timeout=3": {Postgres, "postgres://u:p@h1:5432,localhost/d?connect_timeout=3&sslmode=verify-full"},
		"postgres://h/d?sslmode=disable":                       {Postgres, "postgres://h/d?sslmode=disable"},
		"postgres://localhost,[::1]:5433,127.0.0.1:1/d":        {Postgres, "postgres://localhost,[::1]:5433,127.0.0.1:1/d"},
		"postgres:///d?host=/run/postgresql":                   {Postgres, "postgres:///d?host=/run/postgresql"},
		"postgres:///d?host=h":                                 {Postgres, "postgres:///d?host=h&sslmode=verify-full"},
		"sqlserver://h?Encrypt=disable":                        {SQLServer, "sqlserver://h?Encrypt=disable"},
		"sqlserver://127.0.0.1:1433":                           {SQLServer, "sqlserver://127.0.0.1:1433"},
		"Server=tcp:h,1433;Database=d;Encrypt=False":           {SQLServer, "Server=tcp:h,1433;Database=d;Encrypt=False"},
		`Server=.\SQLEXPRESS;Database=d`:                       {SQLServer, `Server=.\SQLEXPRESS;Database=d`},
		`Server=(local);Database=d`:                            {SQLServer, `Server=(local);Database=d`},
		"Server=tcp:localhost,1433;Database=d":                 {SQLServer, "Server=tcp:localhost,1433;Database=d"},
		"Server=;Database=d":                                   {},
		"Database=d":                                           {},
		"Server=h;nonsense":                                    {},
		"Server='h' x=y;":                                      {},
		"mysql://h":                                            {},
		"/var/lib/aspstate.db":                                 {},
		"file:nested":                                          {},
	} {
		got, err := recognize(text, "/dir")
		if got.Backend != want.backend || got.text != want.text || (err != nil) != (want.backend == "") {
			t.Errorf("%s: %s %q, %v; want %s %q", text, got.Backend, got.text, err, want.backend, want.text)
		}
	}
}
