package sqlserver

import (
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
		if remedy, permanent := remedy(e); permanent {
			if remedy != "" {
				err = fmt.Errorf("%w (%s)", err, remedy)
			}
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

// denied is the text of error 229: the right and the object.
var denied = regexp.MustCompile(`The ([A-Z]+) permission was denied on the (?:object|column '[^']*' of the object) '([^']*)'`)

const grants = "GRANT SELECT, INSERT, UPDATE, DELETE ON dbo.ASPStateTempSessions, dbo.ASPStateTempApplications and dbo.ASPStateRequests"

// remedy reports whether no retry mends the error, and what does.
func remedy(e mssql.Error) (remedy string, permanent bool) {
	for _, all := range e.All {
		if all.Number == 4060 || all.Number == 4064 { // comes with 18456, also while the database starts or fails over
			return "", false
		}
	}
	switch e.Number {
	case 207, 208, 213, 2812: // no such column, object, procedure
		return "run: aspstate migrate up", true
	case 229, 230:
		if m := denied.FindStringSubmatch(e.Message); m != nil {
			return fmt.Sprintf("the login needs: GRANT %s ON dbo.%s", m[1], m[2]), true
		}
		return "the login needs: " + grants, true
	case 262, 297, 300, 916:
		return "the login needs more rights in the database", true
	case 18456, 18452, 18450, 18451, 18461, 18470, 18486, 18487, 18488:
		return "check the login, its password, and whether the server takes this kind of authentication", true
	case 102, 156, 201, 245, 334, 468, 515, 547, 2628, 8114, 8144, 8152:
		return "", true
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
