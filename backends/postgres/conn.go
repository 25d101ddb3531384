package postgres

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// patience is how long a statement may take, by the client's clock and, in its deadline, by the database's:
// what was cut off longer ago than that does nothing when it arrives at last.
const patience = 10 * time.Second

// parse reads the connection string and sets what it leaves open.
func parse(connectionString string) (config *pgconn.Config, connections int, err error) {
	pool, err := pgxpool.ParseConfig(connectionString)
	if err != nil {
		return nil, 0, err
	}
	if pool.MaxConns < minConns {
		return nil, 0, fmt.Errorf("pool_max_conns is %d, must be at least %d", pool.MaxConns, minConns)
	}
	config = &pool.ConnConfig.Config
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
		config.RuntimeParams["application_name"] = "aspstate" // poolers let it through, and no other parameter
	}
	return config, int(pool.MaxConns), nil
}

// conn is a connection and what it knows of the database's clock. One goroutine uses it at a time.
type conn struct {
	*pgconn.PgConn
	warned bool // by the server, during the statement at hand

	clock   time.Time // the database's at
	clockAt time.Time
}

func connect(ctx context.Context, config *pgconn.Config) (*conn, error) {
	c := &conn{}
	config = config.Copy()
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		c.warned = c.warned || n.SeverityUnlocalized == "WARNING"
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	c.PgConn = pg
	if err := c.query(ctx, "SELECT clock_timestamp()", nil, func(row [][]byte) { c.learn(instant(row[0])) }); err != nil {
		c.close()
		return nil, err
	}
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
	c.warned = false
	// An unnamed statement works through every pooler. Planning it anew costs little in a batch.
	result := c.ExecParams(ctx, sql, params, nil, binaryFormat, binaryFormat)
	for result.NextRow() {
		each(result.Values())
	}
	_, err := result.Close()
	if err == nil && c.warned {
		err = errUnreplicated
	}
	if err != nil && (isCode(err, "25006") || err == errUnreplicated) {
		c.close() // the next connection looks for the primary
	}
	return err
}

func (c *conn) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.Close(ctx)
}
