package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/golang-migrate/migrate/v4/database"
	mssql "github.com/microsoft/go-mssqldb"
	"github.com/microsoft/go-mssqldb/integratedauth"
	"github.com/microsoft/go-mssqldb/msdsn"
)

//go:embed sqlserver
var sqlserverFiles embed.FS

// SQLServer returns the migrator of a SQL Server database (2012 or later, Azure SQL), and the database's handle, which the caller
// closes. Up makes ASPState's tables and procedures, or adopts those that aspnet_regsql made: then it adds the table
// of requests and touches nothing else, and Down takes only that away. Databases whose sessions are kept in tempdb or
// in memory-optimised tables are refused.
//
// golang-migrate's own driver sends a file as one batch, waits for its lock for ever and needs a table for the version. This one
// splits files at GO, keeps the version in the table of requests, and does everything in one transaction: a step that
// fails leaves nothing behind, and no schema is ever dirty.
func SQLServer(ctx context.Context, connectionString string) (*Migrator, *sql.DB, error) {
	config, err := msdsn.Parse(connectionString)
	if err != nil {
		return nil, nil, fmt.Errorf("migrate: %w", err)
	}
	if config.Database == "" {
		config.Database = "ASPState" // as for the store, and not the login's default database
	}
	if name, named := config.Parameters["authenticator"]; named {
		if _, err := integratedauth.GetIntegratedAuthenticator(config); err != nil {
			return nil, nil, fmt.Errorf("migrate: authenticator=%s: %w (aspstate check says what it needs)", name, err)
		}
	}
	return newSQLServer(ctx, sql.OpenDB(mssql.NewConnectorConfig(config)), sqlserverFiles, "sqlserver")
}

func newSQLServer(ctx context.Context, db *sql.DB, files fs.FS, folder string) (*Migrator, *sql.DB, error) {
	latest, err := latestVersion(files, folder)
	if err == nil {
		err = withRemedy(db.PingContext(ctx))
	}
	if err != nil {
		db.Close()
		return nil, nil, fmt.Errorf("migrate: %w", err)
	}
	return &Migrator{
		db: db, driver: &sqlserverDriver{db: db}, files: files, folder: folder, latest: latest, busy: &sync.Mutex{},
		status: func(ctx context.Context) (Status, error) { return sqlserverStatus(ctx, db) },
	}, db, nil
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// aspState is what a database holds of ASPState.
type aspState struct {
	objects   []string // those of ours and of ASPState that are there
	version   int      // of our schema, 0 for none
	adopted   bool     // the objects were there before us
	inMemory  bool     // the table of sessions is memory-optimised
	columns   []string // of the table of sessions
	procedure string   // the text of TempUpdateStateItemShort; "" where it is hidden
	babelfish bool     // the server is Babelfish for PostgreSQL
}

func (a *aspState) has(object string) bool {
	return slices.ContainsFunc(a.objects, func(o string) bool { return strings.EqualFold(o, object) })
}

// Babelfish keeps names in lower case.
const (
	objectsSQL = `SELECT name FROM sys.objects WHERE schema_id = SCHEMA_ID('dbo') AND LOWER(name) IN
		('aspstaterequests', 'aspstatetempapplications', 'aspstatetempsessions', 'tempgetstateitem3', 'tempgetstateitemexclusive3_hk', 'tempupdatestateitemshort')`
	columnsSQL = `SELECT c.name, t.name FROM sys.columns c JOIN sys.types t ON t.user_type_id = c.system_type_id
		WHERE c.object_id = OBJECT_ID('dbo.ASPStateTempSessions') ORDER BY c.column_id`
	inMemorySQL  = `SELECT COALESCE(OBJECTPROPERTY(OBJECT_ID('dbo.ASPStateTempSessions'), 'TableIsMemoryOptimized'), 0)`
	procedureSQL = `SELECT COALESCE(OBJECT_DEFINITION(OBJECT_ID('dbo.TempUpdateStateItemShort')), '')`
	babelfishSQL = `SELECT CASE WHEN SERVERPROPERTY('Babelfish') IS NULL THEN 0 ELSE 1 END`
	versionSQL   = `SELECT Seq, Flags FROM dbo.ASPStateRequests WHERE Slot = 0x00000000000000000000000000000000`
)

func inspect(ctx context.Context, q querier) (*aspState, error) {
	a := &aspState{}
	err := q.QueryRowContext(ctx, babelfishSQL).Scan(&a.babelfish)
	if err != nil {
		return a, err
	}
	err = each(ctx, q, objectsSQL, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		a.objects = append(a.objects, name)
		return err
	})
	if err == nil && a.has("ASPStateRequests") {
		var flags int
		err = q.QueryRowContext(ctx, versionSQL).Scan(&a.version, &flags)
		if errors.Is(err, sql.ErrNoRows) {
			err = nil
		}
		a.adopted = flags&1 == 1
	}
	if err == nil && a.has("ASPStateTempSessions") {
		err = each(ctx, q, columnsSQL, func(rows *sql.Rows) error {
			var name, kind string
			err := rows.Scan(&name, &kind)
			a.columns = append(a.columns, name+" "+kind)
			return err
		})
		if err == nil {
			err = q.QueryRowContext(ctx, inMemorySQL).Scan(&a.inMemory)
		}
	}
	if err == nil && a.has("TempUpdateStateItemShort") {
		err = q.QueryRowContext(ctx, procedureSQL).Scan(&a.procedure)
	}
	return a, err
}

func each(ctx context.Context, q querier, query string, scan func(*sql.Rows) error) error {
	rows, err := q.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

var (
	// needed are the columns that the store reads and writes, with the types that they may have.
	needed = map[string]*regexp.Regexp{
		"SessionId": regexp.MustCompile(`^nvarchar$`), "Created": regexp.MustCompile(`^datetime$`), "Expires": regexp.MustCompile(`^datetime$`),
		"LockDate": regexp.MustCompile(`^datetime$`), "LockDateLocal": regexp.MustCompile(`^datetime$`), "LockCookie": regexp.MustCompile(`^int$`),
		"Timeout": regexp.MustCompile(`^int$`), "Locked": regexp.MustCompile(`^bit$`), "SessionItemShort": regexp.MustCompile(`^varbinary$`),
		"SessionItemLong": regexp.MustCompile(`^(image|varbinary)$`), "Flags": regexp.MustCompile(`^int$`),
	}
	// v4 procedures count a new expiry from the timeout that they are given, older ones from the one stored before.
	v4 = regexp.MustCompile(`(?i)dateadd\s*\(\s*(n|mi|minute)\s*,\s*@timeout`)
)

// refuse is why the database cannot be used, or nil.
func (a *aspState) refuse() error {
	switch {
	case a.inMemory || a.has("TempGetStateItemExclusive3_HK"):
		return errors.New("this ASPState keeps its sessions in memory-optimised tables, which lose them with the server: " +
			"make an empty database and run aspstate migrate up there")
	case !a.has("ASPStateTempSessions") && a.has("TempGetStateItem3"):
		return errors.New("this ASPState keeps its sessions in tempdb, where a restart of SQL Server loses them: make it a persisted one " +
			"(aspnet_regsql -ssremove, then aspnet_regsql -ssadd -sstype p), or run aspstate migrate up in an empty database and name that one in web.config")
	case !a.has("ASPStateTempSessions"):
		return nil
	case !a.has("ASPStateTempApplications"):
		return errors.New("the database has a table ASPStateTempSessions but none of applications: it is not one that aspnet_regsql made; use another database")
	}
	for name, kind := range needed {
		found := slices.ContainsFunc(a.columns, func(c string) bool {
			column, of, _ := strings.Cut(c, " ")
			return strings.EqualFold(column, name) && kind.MatchString(of)
		})
		if !found {
			return fmt.Errorf("the table ASPStateTempSessions has no column %s that fits: it is of ASP.NET 1.x or was changed; use another database, "+
				"or make this one anew with aspnet_regsql of .NET 2.0 or later", name)
		}
	}
	return nil
}

// String says what the database holds.
func (a *aspState) String() string {
	switch {
	case a.refuse() != nil:
		return "cannot be used: " + a.refuse().Error()
	case !a.has("ASPStateTempSessions"):
		return "no ASPState objects"
	case a.version > 0 && !a.adopted:
		return "ASPState, made by aspstate"
	}
	kind := "procedures of an unknown version"
	switch {
	case !a.has("TempUpdateStateItemShort"):
		kind = "no procedures"
	case v4.MatchString(a.procedure):
		kind = "version 4 procedures"
	case a.procedure != "":
		kind = "version 2 procedures"
	}
	if a.adopted {
		return "ASPState of aspnet_regsql (" + kind + "), adopted"
	}
	return "ASPState of aspnet_regsql (" + kind + "), which aspstate migrate up adopts"
}

func sqlserverStatus(ctx context.Context, q querier) (Status, error) {
	a, err := inspect(ctx, q)
	return Status{Version: a.version, Found: a.String()}, withRemedy(err)
}

// withRemedy adds to an error of the server what the login lacks. Babelfish (4.3) has no numbers for that.
func withRemedy(err error) error {
	const roles = "the login needs the roles db_ddladmin, db_datareader and db_datawriter in this database: ALTER ROLE db_ddladmin ADD MEMBER …"
	e, ok := errors.AsType[mssql.Error](err)
	if !ok {
		return err
	}
	opened := !slices.ContainsFunc(e.All, func(e mssql.Error) bool { return e.Number == 4060 || e.Number == 4064 })
	switch {
	case !opened, e.Number == 4060, e.Number == 4064, e.Number == 911, e.Number == 916, strings.Contains(e.Message, "Cannot open database"):
		return fmt.Errorf("%w (make the database, and the login one of its users: CREATE USER … FOR LOGIN …)", err)
	case slices.Contains([]int32{229, 230, 262, 297, 300, 1088, 2760, 3701}, e.Number), strings.HasPrefix(e.Message, "permission denied "), strings.HasPrefix(e.Message, "must be owner "):
		return fmt.Errorf("%w (%s)", err, roles)
	case slices.Contains([]int32{18450, 18451, 18452, 18456, 18461, 18470, 18486, 18487, 18488}, e.Number):
		return fmt.Errorf("%w (check the login, its password, and whether the server takes this kind of authentication)", err)
	}
	return err
}

// sqlserverDriver runs migrations for golang-migrate. From Lock to Unlock everything is one transaction.
type sqlserverDriver struct {
	db     *sql.DB
	tx     *sql.Tx
	state  *aspState
	failed bool
}

// Lock begins the transaction, waits up to ten seconds for another migration to end, and looks at the database.
func (d *sqlserverDriver) Lock() error {
	tx, err := d.db.Begin()
	if err != nil {
		return err
	}
	// The lock ends with the transaction.
	_, err = tx.Exec(`SET XACT_ABORT ON
		DECLARE @granted int
		EXEC @granted = sp_getapplock @Resource = 'aspstate migrate', @LockMode = 'Exclusive', @LockOwner = 'Transaction', @LockTimeout = 10000
		IF @granted < 0 RAISERROR('another migration of this database is running', 16, 1)`)
	if err == nil {
		d.state, err = inspect(context.Background(), tx)
	}
	if err != nil {
		return errors.Join(withRemedy(err), tx.Rollback())
	}
	d.tx, d.failed = tx, false
	return nil
}

// Unlock commits, or undoes everything since Lock where something has failed.
func (d *sqlserverDriver) Unlock() error {
	tx := d.tx
	d.tx = nil
	if d.failed {
		if err := tx.Rollback(); err != nil && !rolledBack(err) {
			return err
		}
		return nil
	}
	return tx.Commit()
}

// rolledBack reports whether a transaction cannot be rolled back because an error has done so already.
func rolledBack(err error) bool {
	e, ok := errors.AsType[mssql.Error](err)
	return ok && (e.Number == 0 || e.Number == 3903)
}

// Run runs a file batch by batch, in an adopted database only the part for these.
func (d *sqlserverDriver) Run(file io.Reader) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	d.failed = true
	if err := d.state.refuse(); err != nil {
		return err
	}
	if d.state.version == 0 {
		d.state.adopted = d.state.has("ASPStateTempSessions")
	}
	for _, batch := range batches(string(text), d.state.adopted, d.state.babelfish) {
		if _, err := d.tx.Exec(batch); err != nil {
			return fmt.Errorf("%s: %w", firstLine(batch), withRemedy(err))
		}
	}
	d.failed = false
	return nil
}

var (
	separator   = regexp.MustCompile(`(?mi)^[ \t]*GO[ \t]*\r?$\n?`)
	createdLine = regexp.MustCompile(`(?m)^-- Created:[ \t]*\r?\n`)
)

// notBabelfish begins a batch that Babelfish has no syntax for.
const notBabelfish = "-- Not on Babelfish:"

// batches splits a file at GO, and leaves out what follows "-- Created:" where the database was adopted.
func batches(text string, adopted, babelfish bool) []string {
	if at := createdLine.FindStringIndex(text); at != nil && adopted {
		text = text[:at[0]]
	} else if at != nil {
		text = text[:at[0]] + text[at[1]:]
	}
	var found []string
	for _, batch := range separator.Split(text, -1) {
		if strings.TrimSpace(batch) != "" && !(babelfish && strings.HasPrefix(batch, notBabelfish)) {
			found = append(found, batch)
		}
	}
	return found
}

// firstLine is the first one that is no comment.
func firstLine(batch string) string {
	for line := range strings.Lines(batch) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--") {
			return line
		}
	}
	return ""
}

// SetVersion notes the schema's version. Nothing is noted as dirty: all that happens is one transaction.
func (d *sqlserverDriver) SetVersion(version int, dirty bool) error {
	if d.tx == nil { // migrate force
		if err := d.Lock(); err != nil {
			return err
		}
		err := d.SetVersion(version, dirty)
		d.failed = err != nil
		return errors.Join(err, d.Unlock())
	}
	if dirty {
		return nil
	}
	flags := 0
	if d.state.adopted {
		flags = 1
	}
	if version < 0 {
		return d.exec(`IF OBJECT_ID('dbo.ASPStateRequests') IS NOT NULL DELETE dbo.ASPStateRequests WHERE Slot = 0x00000000000000000000000000000000`)
	}
	d.state.version = version
	return d.exec(fmt.Sprintf(`UPDATE dbo.ASPStateRequests SET Seq = %d WHERE Slot = 0x00000000000000000000000000000000
		IF @@ROWCOUNT = 0 INSERT dbo.ASPStateRequests (Slot, Seq, LockCookie, Flags, LastUse) VALUES (0x00000000000000000000000000000000, %d, 0, %d, '99991231')`,
		version, version, flags))
}

func (d *sqlserverDriver) exec(batch string) error {
	_, err := d.tx.Exec(batch)
	d.failed = d.failed || err != nil
	return withRemedy(err)
}

// Version is the schema's when the migration began.
func (d *sqlserverDriver) Version() (version int, dirty bool, err error) {
	if d.state.version == 0 {
		return database.NilVersion, false, nil
	}
	return d.state.version, false, nil
}

// Open, Close and Drop complete database.Driver; the Migrator uses none of them.

func (d *sqlserverDriver) Open(string) (database.Driver, error) { return nil, errors.ErrUnsupported }
func (d *sqlserverDriver) Close() error                         { return d.db.Close() }
func (d *sqlserverDriver) Drop() error                          { return errors.ErrUnsupported }
