package sqlserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"

	mssql "github.com/microsoft/go-mssqldb"

	"aspstate/backends"
)

var errClosed = fmt.Errorf("store is closed: %w", backends.ErrNotApplied)

// failure says what an error of the database means to the contract: whether a retry can help, and whether the
// batch may have been committed. It is the only place that knows SQL Server's error numbers.
func failure(err error) error {
	if isNumber(err, movedNumber) {
		return backends.ErrMoved
	}
	e, fromServer := errors.AsType[mssql.Error](err)
	op, network := errors.AsType[*net.OpError](err)
	// An error below class 20 undoes the batch (XACT_ABORT), which ends with its COMMIT. From 20 on the connection
	// ends, which may happen between a commit and its answer.
	notApplied := fromServer && e.Class < 20 || network && op.Op == "dial"
	if fromServer {
		remedy, permanent := remedy(e)
		if remedy != "" {
			err = fmt.Errorf("%w (%s)", err, remedy)
		}
		if permanent {
			err = fmt.Errorf("%w: %w", err, backends.ErrPermanent)
		}
	}
	if strings.Contains(err.Error(), "failed to verify certificate") { // the driver does not wrap it
		err = fmt.Errorf("%w (the server's certificate is verified unless the connection string says otherwise: name its authority with certificate=FILE, or do without with Encrypt=true;TrustServerCertificate=true): %w", err, backends.ErrPermanent)
		notApplied = true
	}
	if notApplied {
		err = fmt.Errorf("%w: %w", err, backends.ErrNotApplied)
	}
	return err
}

// denied is the text of errors 229 and 230: the right, the object and its schema.
var denied = regexp.MustCompile(`The ([A-Z]+) permission was denied on the (?:object|column '[^']*' of the object) '([^']*)'(?:, database '[^']*', schema '([^']*)')?`)

// babelfishNumber is what Babelfish (4.3) sends for errors of PostgreSQL that it has no number of SQL Server for.
const babelfishNumber = 33557097

const (
	tables = "dbo.ASPStateTempSessions, dbo.ASPStateTempApplications and dbo.ASPStateRequests"
	grants = "GRANT SELECT, INSERT, UPDATE, DELETE ON " + tables
	user   = "CREATE USER … FOR LOGIN …"

	checkLogin = "check the login, its password, and whether the server takes this kind of authentication"
)

// notLetIn is PostgreSQL's text about a login that is not let in, after the driver's prefix.
var notLetIn = regexp.MustCompile(`^login error: (role ".*" does not exist|.*authentication failed)`)

// remedy says what mends the error, and reports whether no retry does.
func remedy(e mssql.Error) (remedy string, permanent bool) {
	const noDatabase = "the database is missing or starting, or the login is none of its users: " + user
	for _, all := range e.All {
		if all.Number == 4060 || all.Number == 4064 { // comes with 18456, also while the database starts or fails over
			return noDatabase, false
		}
	}
	switch e.Number {
	case 4060, 4064, 911:
		return noDatabase, false
	case 207, 208, 213, 2812: // no such column, object, procedure
		return "run: aspstate migrate up", true
	case 229, 230:
		if m := denied.FindStringSubmatch(e.Message); m != nil {
			return fmt.Sprintf("the login needs: GRANT %s ON %s.%s", m[1], cmp.Or(m[3], "dbo"), m[2]), true
		}
		return "the login needs: " + grants, true
	case 916:
		return "the login is no user of the database: " + user + ", and " + grants, true
	case 262, 297, 300:
		return "the login needs more rights in the database: " + grants, true
	case 18456, 18452, 18450, 18451, 18461, 18470, 18486, 18487, 18488:
		return checkLogin, true
	case 102, 156, 201, 245, 334, 468, 515, 547, 2628, 8114, 8144, 8152:
		return "", true
	case babelfishNumber:
		switch {
		case strings.HasPrefix(e.Message, "permission denied "):
			return "the login needs: " + grants, true
		case strings.HasPrefix(e.Message, "login error: Cannot open database"):
			return noDatabase, false
		case notLetIn.MatchString(e.Message):
			return checkLogin, true
		}
	}
	return "", false
}

// isNumber reports whether the server answered with one of these errors.
func isNumber(err error, numbers ...int32) bool {
	e, ok := errors.AsType[mssql.Error](err)
	if !ok {
		return false
	}
	for _, n := range numbers {
		if e.Number == n {
			return true
		}
	}
	return false
}

// Somebody else inserted the same key: unique index, primary key.
func isDuplicate(err error) bool { return isNumber(err, 2601, 2627) }

// roomFailure is failure for what takes room: that there is none (disk, file, log, quota) is an answer.
func roomFailure(err error) error {
	if isNumber(err, 1101, 1105, 9002, 40544) {
		return fmt.Errorf("%w: %w", err, backends.ErrFull)
	}
	return err
}

// notSent is the error of a call that ended before its batch was sent.
func notSent(ctx context.Context) error {
	return fmt.Errorf("%w: %w", context.Cause(ctx), backends.ErrNotApplied)
}
