package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// patience is how long a statement may take whose items are not large, by the client's clock and, in its deadline, by the
// database's: what was cut off longer ago than that does nothing when it arrives at last.
const patience = 10 * time.Second

// database is where connections lead.
type database struct {
	config *pgconn.Config
	log    *slog.Logger
	// unprepared: no statement can be prepared, because a pooler gives each one to another connection.
	unprepared atomic.Bool
}

// parse reads the connection string and sets what it leaves open.
func parse(connectionString string, log *slog.Logger) (db *database, connections int, err error) {
	pool, err := pgxpool.ParseConfig(connectionString)
	if err != nil {
		return nil, 0, err
	}
	if pool.MaxConns < minConns {
		return nil, 0, fmt.Errorf("pool_max_conns is %d, must be at least %d", pool.MaxConns, minConns)
	}
	config := &pool.ConnConfig.Config
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 2 * time.Second // for each host
	}
	dialer := &net.Dialer{Timeout: config.ConnectTimeout, KeepAlive: 15 * time.Second}
	config.DialFunc = dialer.DialContext
	if config.ValidateConnect == nil {
		// A standby is no place for sessions. With several hosts this finds the primary.
		config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "aspstate" // poolers let it through, and few other parameters
	}
	db = &database{config: config, log: log}
	switch pool.ConnConfig.DefaultQueryExecMode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeCacheDescribe:
		db.unprepared.Store(true)
	}
	return db, int(pool.MaxConns), nil
}

// conn is a connection and what it knows of the database's clock. One goroutine uses it at a time.
type conn struct {
	*pgconn.PgConn
	db       *database
	prepared map[string]string // names by statement
	warned   bool              // by the server, during the statement at hand

	clock   time.Time // the database's at
	clockAt time.Time
}

func (db *database) connect(ctx context.Context) (*conn, error) {
	c := &conn{db: db, prepared: map[string]string{}}
	config := db.config.Copy()
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		c.warned = c.warned || n.SeverityUnlocalized == "WARNING"
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	c.PgConn = pg
	result := pg.ExecParams(ctx, "SELECT clock_timestamp()", nil, nil, nil, binaryFormat).Read()
	if result.Err != nil {
		c.close()
		return nil, result.Err
	}
	c.learn(instant(result.Rows[0][0]))
	return c, nil
}

// learn notes what time it is at the database.
func (c *conn) learn(clock time.Time) { c.clock, c.clockAt = clock, time.Now() }

// now is the time at the database, or a little less.
func (c *conn) now() time.Time { return c.clock.Add(time.Since(c.clockAt)) }

var binaryFormat = []int16{1}

// query runs one statement, committed by itself, and calls each with its rows, whose bytes are valid during the
// call only. A row is no answer yet: the server commits after the last one.
func (c *conn) query(ctx context.Context, sql string, params [][]byte, each func(row [][]byte)) error {
	unprepared := c.db.unprepared.Load()
	err := c.exec(ctx, sql, params, each, unprepared)
	if !unprepared && (isCode(err, "26000") || isCode(err, "42P05")) { // and so it has not run
		if !c.db.unprepared.Swap(true) {
			c.db.log.Info("the database is behind a pooler that keeps no prepared statements: every statement is planned anew, which costs processor time")
		}
		err = c.exec(ctx, sql, params, each, true)
	}
	if err != nil && (isCode(err, "25006") || err == errUnreplicated) {
		c.close() // the next connection looks for the primary
	}
	return err
}

func (c *conn) exec(ctx context.Context, sql string, params [][]byte, each func(row [][]byte), unprepared bool) error {
	c.warned = false
	var result *pgconn.ResultReader
	if unprepared {
		result = c.ExecParams(ctx, sql, params, nil, binaryFormat, binaryFormat)
	} else {
		name, err := c.prepare(ctx, sql)
		if err != nil {
			return err
		}
		result = c.ExecPrepared(ctx, name, params, binaryFormat, binaryFormat)
	}
	for result.NextRow() {
		each(result.Values())
	}
	_, err := result.Close()
	if err == nil && c.warned {
		err = errUnreplicated
	}
	return err
}

// prepare prepares a statement once: planning it takes several times longer than running it. The name is that of
// its text, because behind a pooler several clients prepare statements on one connection.
func (c *conn) prepare(ctx context.Context, sql string) (name string, err error) {
	name, known := c.prepared[sql]
	if known {
		return name, nil
	}
	hash := sha256.Sum256([]byte(sql))
	name = "aspstate_" + hex.EncodeToString(hash[:8])
	if _, err := c.Prepare(ctx, name, sql, nil); err != nil {
		return "", err
	}
	c.prepared[sql] = name
	return name, nil
}

func (c *conn) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.Close(ctx)
}
