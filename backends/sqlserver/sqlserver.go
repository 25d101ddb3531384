package sqlserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/integratedauth"
	_ "github.com/microsoft/go-mssqldb/integratedauth/krb5" // authenticator=krb5; ntlm, and winsspi on Windows, come with the driver
	"github.com/microsoft/go-mssqldb/msdsn"

	"aspstate/backends"
)

const (
	// maxConns is how many batches of one server run at a time where the connection string does not say; the others queue.
	maxConns = 32
	// startWait is how long Open waits for a database that is starting.
	startWait = time.Minute
	// patience is how long a batch may take. One without large items that takes longer is hung.
	patience = 10 * time.Second
	// dialTimeout is how long a connection may take where the connection string does not say.
	dialTimeout = 5 * time.Second
)

var _ backends.Store = (*Store)(nil)

// Store keeps sessions in SQL Server. Make one with Open.
type Store struct {
	db     *sql.DB
	log    *slog.Logger
	gate   chan struct{} // has an element for each batch that runs
	slots  slots
	ending sync.Once
	closed chan struct{} // when Close has begun
}

// Open connects to the database and returns its store. The connection string is a sqlserver:// URL or one of ADO.NET,
// as go-mssqldb takes them; "Max Pool Size" (32) is the number of connections. A database that is starting is waited for, up to a minute or the end of ctx. An error
// that is backends.ErrPermanent needs the operator: its text says what to do.
func Open(ctx context.Context, connectionString string, log *slog.Logger) (*Store, error) {
	config, connections, err := parse(connectionString)
	if err != nil {
		return nil, fmt.Errorf("sqlserver: open: %w: %w", err, backends.ErrPermanent)
	}
	db := sql.OpenDB(mssql.NewConnectorConfig(config))
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	db.SetConnMaxIdleTime(5 * time.Minute)
	s := &Store{db: db, log: log, gate: make(chan struct{}, connections), closed: make(chan struct{})}
	if err := s.wait(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("sqlserver: open: %w", err)
	}
	return s, nil
}

// parse reads the connection string and sets what it leaves open.
func parse(connectionString string) (config msdsn.Config, connections int, err error) {
	config, err = msdsn.Parse(connectionString)
	if err != nil {
		return config, 0, err
	}
	connections = maxConns
	if size, ok := config.Parameters["max pool size"]; ok {
		if connections, err = strconv.Atoi(size); err != nil || connections < 1 {
			return config, 0, fmt.Errorf("max pool size is %q, must be a number from 1 on", size)
		}
	}
	if config.Database == "" {
		config.Database = "ASPState"
	}
	if _, ok := config.Parameters[msdsn.AppName]; !ok {
		config.AppName = "aspstate"
	}
	// In ADO.NET "Connect Timeout" is that of connecting; go-mssqldb would end every longer wait for an answer as well.
	_, dial := config.Parameters[msdsn.DialTimeout]
	switch {
	case dial:
	case config.ConnTimeout > 0:
		config.DialTimeout = config.ConnTimeout
	default:
		config.DialTimeout = dialTimeout
	}
	config.ConnTimeout = 0
	config.DisableRetry = true // the driver cannot know what a batch did whose connection failed
	return config, connections, checkAuthenticator(config)
}

// checkAuthenticator tells now what integrated authentication lacks here, and not with the first connection.
func checkAuthenticator(config msdsn.Config) error {
	name, named := config.Parameters["authenticator"]
	if !named {
		return nil
	}
	if _, err := integratedauth.GetIntegratedAuthenticator(config); err != nil {
		return fmt.Errorf("authenticator=%s: %w (%s)", name, err, authenticators)
	}
	return nil
}

const authenticators = "Integrated Security is that of the process's account on Windows (authenticator=winsspi); elsewhere it is Kerberos, authenticator=krb5, with a " +
	"keytab (User ID=…;krb5-realm=…;krb5-keytabfile=FILE) or a ticket of kinit (krb5-credcachefile=FILE or KRB5CCNAME) and krb5-configfile=/etc/krb5.conf, " +
	`or authenticator=ntlm with User ID=DOMAIN
ame and Password`

// presentSQL answers how many of the tables the login can see.
const presentSQL = `SELECT COUNT(*) FROM sys.objects WHERE schema_id = SCHEMA_ID('dbo')
    AND LOWER(name) IN ('aspstatetempsessions', 'aspstatetempapplications', 'aspstaterequests')`

// schemaSQL fails where a column or a right is missing.
const schemaSQL = `SELECT TOP 0 s.SessionItemLong, a.AppId, r.Content FROM dbo.ASPStateTempSessions s, dbo.ASPStateTempApplications a, dbo.ASPStateRequests r`

// ready returns nil if the database can serve.
func (s *Store) ready(ctx context.Context) error {
	tables, err := query(ctx, s, presentSQL, "", nil, func(rows *sql.Rows) (n int, err error) {
		err = rows.Scan(&n)
		return n, err
	})
	if err == nil && tables < 3 {
		return fmt.Errorf("the login sees %d of the 3 tables (run: aspstate migrate up; or, if that was done: %s): %w", tables, grants, backends.ErrPermanent)
	}
	if err != nil {
		return err
	}
	return s.exec(ctx, schemaSQL, "")
}

// wait returns when the database answers.
func (s *Store) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	begun, said := time.Now(), time.Time{}
	for {
		err := s.ready(ctx)
		if err == nil || errors.Is(err, backends.ErrPermanent) {
			return err
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			s.log.Warn("waiting for the database", "waited", time.Since(begun).Round(time.Second), "at_most", startWait, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for the database: %w", time.Since(begun).Round(time.Second), err)
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// query runs a batch with parameters as they are declared, and calls each with its rows. A row is no answer yet: the batch commits after
// it. query ends with ctx, and the batch goes on: cancelling it costs more than it saves, and often the connection.
// So each must not touch what query's caller sees.
func query[T any](ctx context.Context, s *Store, batch, declared string, args []any, each func(*sql.Rows) (T, error)) (answer T, err error) {
	return within(ctx, s, patience+transfer(args), batch, declared, args, each)
}

// within is query with another limit; without one (0) the batch ends with ctx.
func within[T any](ctx context.Context, s *Store, limit time.Duration, batch, declared string, args []any, each func(*sql.Rows) (T, error)) (answer T, err error) {
	if ctx.Err() != nil {
		return answer, notSent(ctx)
	}
	select {
	case <-s.closed:
		return answer, errClosed
	default:
	}
	select {
	case s.gate <- struct{}{}:
	case <-ctx.Done():
		return answer, notSent(ctx)
	case <-s.closed:
		return answer, errClosed
	}
	type result struct {
		answer T
		err    error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-s.gate }()
		ctx := ctx
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), limit)
			defer cancel()
		}
		var r result
		if r.answer, r.err = ask(ctx, s.db, batch, declared, args, each); r.err != nil && ctx.Err() != nil {
			r.err = fmt.Errorf("the database did not answer within %v", limit)
		}
		done <- r
	}()
	select {
	case r := <-done:
		return r.answer, r.err
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	}
}

// transfer is what a large item among the parameters may take longer.
func transfer(args []any) time.Duration {
	size := 0
	for _, arg := range args {
		if data, ok := arg.(sql.NamedArg).Value.([]byte); ok {
			size += len(data)
		}
	}
	return time.Duration(size>>20) * time.Second
}

// ask calls sp_executesql by its name: so the parameters have the types that are declared, and a statement one plan, whatever
// their lengths.
func ask[T any](ctx context.Context, db *sql.DB, batch, declared string, args []any, each func(*sql.Rows) (T, error)) (answer T, err error) {
	if declared != "" {
		args = append([]any{batch, declared}, args...)
		batch = "sp_executesql"
	}
	rows, err := db.QueryContext(ctx, batch, args...)
	if err != nil {
		return answer, failure(err)
	}
	defer rows.Close()
	for rows.Next() {
		if answer, err = each(rows); err != nil {
			return answer, fmt.Errorf("read the answer: %w", err)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return answer, failure(err)
	}
	return answer, nil
}

// exec runs a batch whose rows do not matter.
func (s *Store) exec(ctx context.Context, batch, declared string, args ...any) error {
	_, err := query(ctx, s, batch, declared, args, func(*sql.Rows) (struct{}, error) { return struct{}{}, nil })
	return err
}

// Ping implements backends.Store.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.exec(ctx, "SELECT 1", ""); err != nil {
		return fmt.Errorf("sqlserver: ping: %w", err)
	}
	return nil
}

// Close answers the calls that are under way, unless the database hangs, and ends the connections.
func (s *Store) Close() error {
	var err error
	s.ending.Do(func() {
		close(s.closed)
		hung := time.After(patience)
	drain:
		for range cap(s.gate) {
			select {
			case s.gate <- struct{}{}:
			case <-hung:
				break drain
			}
		}
		if err = s.db.Close(); err != nil {
			err = fmt.Errorf("sqlserver: close: %w", err)
		}
	})
	return err
}
