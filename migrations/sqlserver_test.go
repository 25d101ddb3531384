package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	neturl "net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	mssql "github.com/microsoft/go-mssqldb"

	"aspstate/backends/sqlserver/mssqltest"
)

func sqlserverFile(t *testing.T, name string) string {
	t.Helper()
	text, err := sqlserverFiles.ReadFile("sqlserver/" + name)
	must(t, err)
	return string(text)
}

var made = regexp.MustCompile(`(?m)^CREATE (TABLE|PROCEDURE) dbo\.(\w+)`)

func TestSQLServerFilesAreSplit(t *testing.T) {
	up, down := sqlserverFile(t, "1_sessions.up.sql"), sqlserverFile(t, "1_sessions.down.sql")
	if adopted := batches(up, true, false); len(adopted) != 1 || firstLine(adopted[0]) != "CREATE TABLE dbo.ASPStateRequests (" {
		t.Fatalf("an adopted database gets %q", adopted)
	}
	if adopted := batches(down, true, false); len(adopted) != 1 || strings.TrimSpace(adopted[0]) != "DROP TABLE dbo.ASPStateRequests" {
		t.Fatalf("an adopted database loses %q", adopted)
	}
	// A procedure must be the first statement of its batch, and the tables come before what uses them.
	var objects []string
	for i, batch := range batches(up, false, false) {
		if strings.Contains(batch, "\nGO") || strings.HasPrefix(batch, "GO") {
			t.Errorf("batch %d has a GO in it", i)
		}
		found := made.FindAllStringSubmatch(batch, -1)
		switch {
		case strings.HasPrefix(firstLine(batch), "CREATE INDEX"):
		case len(found) != 1 || !strings.HasPrefix(firstLine(batch), found[0][0]):
			t.Errorf("batch %d begins %q and makes %q", i, firstLine(batch), found)
		default:
			objects = append(objects, found[0][2])
		}
	}
	if len(objects) != 25 || objects[0] != "ASPStateRequests" || objects[1] != "ASPStateTempSessions" || objects[2] != "ASPStateTempApplications" {
		t.Fatalf("%d objects are made: %q", len(objects), objects)
	}
	dropped := strings.Join(batches(down, false, false), " ")
	for _, object := range objects {
		if !regexp.MustCompile(`dbo\.` + object + `\b`).MatchString(dropped) {
			t.Errorf("down does not drop %s", object)
		}
	}
	for _, text := range []string{up, down} {
		if all, some := batches(text, false, false), batches(text, false, true); len(some) != len(all)-1 || slices.ContainsFunc(some, func(b string) bool { return strings.Contains(b, "GetMajorVersion") }) {
			t.Errorf("Babelfish gets %d of %d batches", len(some), len(all))
		}
	}
	if got := batches("a\nGO\nb GO\n go \r\nGOTO x\ngo", false, false); !slices.Equal(got, []string{"a\n", "b GO\n", "GOTO x\n"}) {
		t.Errorf("batches are %q", got)
	}
}

// MS-ASPSS: what web applications call, and with which parameters.
func TestSQLServerProceduresHaveTheirParameters(t *testing.T) {
	const id, short, long = "@id nvarchar(88)", "@itemShort varbinary(7000)", "@itemLong image"
	const out = ", @itemShort varbinary(7000) OUTPUT, @locked bit OUTPUT, "
	want := map[string]string{
		"GetMajorVersion": "@@ver int OUTPUT", "TempGetVersion": "@ver char(10) OUTPUT",
		"GetHashCode": "@input varchar(280), @hash int OUTPUT", "TempGetAppID": "@appName varchar(280), @appId int OUTPUT",
		"TempGetStateItem":                 id + out + "@lockDate datetime OUTPUT, @lockCookie int OUTPUT",
		"TempGetStateItem2":                id + out + "@lockAge int OUTPUT, @lockCookie int OUTPUT",
		"TempGetStateItem3":                id + out + "@lockAge int OUTPUT, @lockCookie int OUTPUT, @actionFlags int OUTPUT",
		"TempGetStateItemExclusive":        id + out + "@lockDate datetime OUTPUT, @lockCookie int OUTPUT",
		"TempGetStateItemExclusive2":       id + out + "@lockAge int OUTPUT, @lockCookie int OUTPUT",
		"TempGetStateItemExclusive3":       id + out + "@lockAge int OUTPUT, @lockCookie int OUTPUT, @actionFlags int OUTPUT",
		"TempReleaseStateItemExclusive":    id + ", @lockCookie int",
		"TempInsertUninitializedItem":      id + ", " + short + ", @timeout int",
		"TempInsertStateItemShort":         id + ", " + short + ", @timeout int",
		"TempInsertStateItemLong":          id + ", " + long + ", @timeout int",
		"TempUpdateStateItemShort":         id + ", " + short + ", @timeout int, @lockCookie int",
		"TempUpdateStateItemShortNullLong": id + ", " + short + ", @timeout int, @lockCookie int",
		"TempUpdateStateItemLong":          id + ", " + long + ", @timeout int, @lockCookie int",
		"TempUpdateStateItemLongNullShort": id + ", " + long + ", @timeout int, @lockCookie int",
		"TempRemoveStateItem":              id + ", @lockCookie int", "TempResetTimeout": id,
		"CreateTempTables": "", "DeleteExpiredSessions": "",
	}
	heads := regexp.MustCompile(`(?s)CREATE PROCEDURE dbo\.(\w+)\n(.*?)AS\n`)
	for _, head := range heads.FindAllStringSubmatch(sqlserverFile(t, "1_sessions.up.sql"), -1) {
		if got := strings.Join(strings.Fields(head[2]), " "); got != want[head[1]] {
			t.Errorf("%s has %q, want %q", head[1], got, want[head[1]])
		}
		delete(want, head[1])
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

var columnsOfV2 = []string{"SessionId nvarchar", "Created datetime", "Expires datetime", "LockDate datetime", "LockDateLocal datetime", "LockCookie int",
	"Timeout int", "Locked bit", "SessionItemShort varbinary", "SessionItemLong image", "Flags int"}

const (
	updateV2 = "CREATE PROCEDURE dbo.TempUpdateStateItemShort AS UPDATE x SET Expires = DATEADD(n, Timeout, GETUTCDATE()), Timeout = @timeout"
	updateV4 = "CREATE PROCEDURE dbo.TempUpdateStateItemShort AS UPDATE x SET Expires = DATEADD(n, @timeout, GETUTCDATE()), Timeout = @timeout"
)

func TestSQLServerFindsWhatTheDatabaseHolds(t *testing.T) {
	tables := []string{"ASPStateTempApplications", "ASPStateTempSessions"}
	all := append([]string{"TempGetStateItem3", "TempUpdateStateItemShort"}, tables...)
	for want, a := range map[string]aspState{
		"no ASPState objects":                                       {},
		"ASPState, made by aspstate":                                {objects: all, columns: columnsOfV2, procedure: updateV4, version: 1},
		"ASPState of aspnet_regsql (version 4 procedures), adopted": {objects: all, columns: columnsOfV2, procedure: updateV4, version: 1, adopted: true},
		"ASPState of aspnet_regsql (version 2 procedures), which aspstate migrate up adopts":             {objects: all, columns: columnsOfV2, procedure: updateV2},
		"ASPState of aspnet_regsql (procedures of an unknown version), which aspstate migrate up adopts": {objects: all, columns: columnsOfV2},
		"ASPState of aspnet_regsql (no procedures), which aspstate migrate up adopts":                    {objects: tables, columns: columnsOfV2},
	} {
		if got := a.String(); got != want || a.refuse() != nil {
			t.Errorf("found %q, %v; want %q", got, a.refuse(), want)
		}
	}
	for want, a := range map[string]aspState{
		"memory-optimised":        {objects: all, columns: columnsOfV2, inMemory: true},
		"memory-optimised tables": {objects: append([]string{"TempGetStateItemExclusive3_HK"}, all...), columns: columnsOfV2},
		"tempdb":                  {objects: []string{"TempGetStateItem3", "TempUpdateStateItemShort"}},
		"none of applications":    {objects: []string{"ASPStateTempSessions"}, columns: columnsOfV2},
		"no column Flags":         {objects: all, columns: columnsOfV2[:10]},
		"no column SessionId":     {objects: all, columns: append([]string{"SessionId char"}, columnsOfV2[1:]...)},
	} {
		if err := a.refuse(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(a.String(), "cannot be used: ") {
			t.Errorf("refused with %v, want %q", err, want)
		}
	}
	azure := slices.Clone(columnsOfV2)
	azure[9] = "SessionItemLong varbinary"
	if err := (&aspState{objects: all, columns: azure}).refuse(); err != nil {
		t.Error(err)
	}
}

func TestSQLServerErrorsNameTheirRemedy(t *testing.T) {
	for _, test := range []struct {
		err  mssql.Error
		says string
	}{
		{mssql.Error{Number: 262, Message: "CREATE TABLE permission denied in database 'ASPState'."}, "db_ddladmin"},
		{mssql.Error{Number: 2760, Message: `The specified schema name "dbo" either does not exist or you do not have permission to use it.`}, "db_ddladmin"},
		{mssql.Error{Number: 3701, Message: "Cannot drop the table 'dbo.ASPStateRequests', because it does not exist or you do not have permission."}, "db_ddladmin"},
		{mssql.Error{Number: 229, Message: "The SELECT permission was denied on the object 'ASPStateRequests'"}, "db_datareader"},
		{mssql.Error{Number: 18456, Message: "Login failed for user 'x'."}, "check the login"},
		{mssql.Error{Number: 18456, Message: "Login failed for user 'x'.", All: []mssql.Error{{Number: 4060}, {Number: 18456}}}, "CREATE USER"},
		{mssql.Error{Number: 916, Message: `The server principal "x" is not able to access the database "ASPState" under the current security context.`}, "CREATE USER"},
		{mssql.Error{Number: 2714, Message: "There is already an object named 'ASPStateRequests' in the database."}, ""},
	} {
		err := withRemedy(test.err)
		if _, ok := errors.AsType[mssql.Error](err); !ok || !strings.Contains(err.Error(), test.says) || (test.says == "") != (err.Error() == test.err.Error()) {
			t.Errorf("%v becomes %v, want %q", test.err, err, test.says)
		}
	}
	if withRemedy(nil) != nil {
		t.Error("success becomes an error")
	}
}

// The rest needs a server.

func mustSQLServer(t *testing.T, url string) (*Migrator, *sql.DB) {
	t.Helper()
	m, db, err := SQLServer(t.Context(), url)
	must(t, err)
	t.Cleanup(func() { db.Close() })
	return m, db
}

func objectsOf(t *testing.T, db *sql.DB) string {
	t.Helper()
	var names []string
	must(t, each(t.Context(), db, `SELECT name FROM sys.objects WHERE schema_id = SCHEMA_ID('dbo') AND type IN ('U', 'P')`, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		names = append(names, name)
		return err
	}))
	for i, name := range names {
		names[i] = strings.ToLower(name) // as Babelfish does
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func wantFound(t *testing.T, m *Migrator, version int, found string) {
	t.Helper()
	s, err := m.Status(t.Context())
	must(t, err)
	if s.Version != version || s.Latest != 1 || s.Dirty || s.Found != found {
		t.Fatalf("the status is %+v, want version %d and %q", s, version, found)
	}
}

func TestSQLServerUpDownUp(t *testing.T) {
	m, db := mustSQLServer(t, mssqltest.Database(t))
	for range 2 {
		wantFound(t, m, 0, "no ASPState objects")
		must(t, m.Up(t.Context()))
		must(t, m.Up(t.Context()))
		wantFound(t, m, 1, "ASPState, made by aspstate")
		if got := objectsOf(t, db); !strings.HasPrefix(got, "aspstaterequests aspstatetempapplications aspstatetempsessions createtemptables ") {
			t.Fatalf("there is %s", got)
		}
		must(t, m.Down(t.Context()))
		if got := objectsOf(t, db); got != "" {
			t.Fatalf("down leaves %s", got)
		}
	}
	if err := m.Force(t.Context(), 1); err == nil {
		t.Error("a version can be forced on an empty database")
	}
}

func TestSQLServerStepThatFailsLeavesNothing(t *testing.T) {
	_, db := mustSQLServer(t, mssqltest.Database(t))
	text := sqlserverFile(t, "1_sessions.up.sql")
	broken, _, err := newSQLServer(t.Context(), db, fstest.MapFS{
		"x/1_sessions.up.sql": file(text + "\nGO\nCREATE TABLE dbo.ASPStateRequests (x int)"),
	}, "x")
	must(t, err)
	if err := broken.Up(t.Context()); err == nil || !strings.Contains(err.Error(), "CREATE TABLE dbo.ASPStateRequests (x int)") {
		t.Fatalf("a broken file: %v", err)
	}
	if got := objectsOf(t, db); got != "" {
		t.Fatalf("there is %s", got)
	}
	m, _, err := newSQLServer(t.Context(), db, sqlserverFiles, "sqlserver")
	must(t, err)
	must(t, m.Up(t.Context()))
	wantFound(t, m, 1, "ASPState, made by aspstate")
}

func TestSQLServerMigratorsAtOnce(t *testing.T) {
	url := mssqltest.Database(t)
	var wg sync.WaitGroup
	for range 3 {
		m, _ := mustSQLServer(t, url)
		wg.Go(func() {
			if err := m.Up(context.Background()); err != nil {
				t.Errorf("up: %v", err)
			}
		})
	}
	wg.Wait()
	m, _ := mustSQLServer(t, url)
	wantFound(t, m, 1, "ASPState, made by aspstate")
}

// regsql makes the tables as aspnet_regsql does, with a row, and the procedures that tell its versions apart.
func regsql(t *testing.T, db *sql.DB, update string) {
	t.Helper()
	for _, batch := range []string{
		`CREATE TABLE dbo.ASPStateTempSessions (SessionId nvarchar(88) NOT NULL PRIMARY KEY, Created datetime NOT NULL DEFAULT GETUTCDATE(),
			Expires datetime NOT NULL, LockDate datetime NOT NULL, LockDateLocal datetime NOT NULL, LockCookie int NOT NULL, Timeout int NOT NULL,
			Locked bit NOT NULL, SessionItemShort varbinary(7000) NULL, SessionItemLong image NULL, Flags int NOT NULL DEFAULT 0)`,
		`CREATE TABLE dbo.ASPStateTempApplications (AppId int NOT NULL PRIMARY KEY, AppName char(280) NOT NULL)`,
		`INSERT dbo.ASPStateTempApplications (AppId, AppName) VALUES (538231025, '/lm/w3svc/1/root')`,
		`INSERT dbo.ASPStateTempSessions (SessionId, Expires, LockDate, LockDateLocal, LockCookie, Timeout, Locked, SessionItemShort)
			VALUES ('1sc3aoog5u5zyko2tl3ghnvq2014c0f1', DATEADD(n, 20, GETUTCDATE()), GETUTCDATE(), GETDATE(), 3, 20, 0, 0x140000000000FF)`,
		`CREATE PROCEDURE dbo.TempGetStateItem3 @id nvarchar(88) AS RETURN 0`,
		strings.Replace(strings.Replace(update, " AS ", " @timeout int AS ", 1), "x SET", "dbo.ASPStateTempSessions SET", 1),
	} {
		if _, err := db.ExecContext(t.Context(), batch); err != nil {
			t.Fatalf("%s: %v", batch, err)
		}
	}
}

func TestSQLServerAdopts(t *testing.T) {
	for version, update := range map[int]string{2: updateV2, 4: updateV4} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			m, db := mustSQLServer(t, mssqltest.Database(t))
			regsql(t, db, update)
			before := objectsOf(t, db)
			kind := fmt.Sprintf("ASPState of aspnet_regsql (version %d procedures)", version)
			for range 2 {
				wantFound(t, m, 0, kind+", which aspstate migrate up adopts")
				must(t, m.Up(t.Context()))
				wantFound(t, m, 1, kind+", adopted")
				if got := objectsOf(t, db); got != "aspstaterequests "+before {
					t.Fatalf("there is %s, and before was %s", got, before)
				}
				must(t, m.Down(t.Context()))
				if got := objectsOf(t, db); got != before {
					t.Fatalf("down leaves %s of %s", got, before)
				}
				var n int
				must(t, db.QueryRow(`SELECT COUNT(*) FROM dbo.ASPStateTempSessions WHERE SessionItemShort = 0x140000000000FF AND LockCookie = 3`).Scan(&n))
				if n != 1 {
					t.Fatalf("%d rows are as they were", n)
				}
			}
		})
	}
}

func TestSQLServerRefusesTempdb(t *testing.T) {
	m, db := mustSQLServer(t, mssqltest.Database(t))
	_, err := db.Exec(`CREATE PROCEDURE dbo.TempGetStateItem3 @id nvarchar(88) AS RETURN 0`)
	must(t, err)
	if err := m.Up(t.Context()); err == nil || !strings.Contains(err.Error(), "-sstype p") {
		t.Fatalf("up: %v", err)
	}
	if got := objectsOf(t, db); got != "tempgetstateitem3" {
		t.Fatalf("there is %s", got)
	}
	s, err := m.Status(t.Context())
	must(t, err)
	if _, ok := errors.AsType[*SchemaError](s.Err()); !ok || !strings.Contains(s.Found, "tempdb") {
		t.Fatalf("the status is %+v", s)
	}
}

func TestSQLServerMigrationByAForeignLoginSaysWhatItLacks(t *testing.T) {
	url := mssqltest.Database(t)
	login, _ := mssqltest.Login(t, url)
	m, db := mustSQLServer(t, login)
	if err := m.Up(t.Context()); err == nil || !strings.Contains(err.Error(), "db_ddladmin") {
		t.Errorf("up: %v", err)
	}
	if got := objectsOf(t, db); got != "" {
		t.Errorf("there is %s", got)
	}
	owner, _ := mustSQLServer(t, url)
	must(t, owner.Up(t.Context()))
	if _, err := m.Status(t.Context()); err != nil && !strings.Contains(err.Error(), "db_datareader") { // SQL Server shows such a login nothing
		t.Errorf("status: %v", err)
	}
	if err := m.Down(t.Context()); err != nil && !strings.Contains(err.Error(), "db_ddladmin") {
		t.Errorf("down: %v", err)
	}
	wantFound(t, owner, 1, "ASPState, made by aspstate")
}

// A URL without a database means ASPState, as for the store, and not the login's default database.
func TestSQLServerMigrationDefaultsToASPState(t *testing.T) {
	url, err := neturl.Parse(mssqltest.Database(t))
	must(t, err)
	q := url.Query()
	q.Del("database")
	url.RawQuery = q.Encode()
	var name string
	_, db, err := SQLServer(t.Context(), url.String())
	if err == nil { // there is one
		defer db.Close()
		must(t, db.QueryRow("SELECT DB_NAME()").Scan(&name))
		if !strings.EqualFold(name, "ASPState") {
			t.Fatalf("the migrator works in %s", name)
		}
	} else if !strings.Contains(err.Error(), "make the database") {
		t.Fatal(err)
	}
}
