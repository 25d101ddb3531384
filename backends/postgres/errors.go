package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"aspstate/backends"
)

var (
	errClosed = errors.New("store is closed")

	// errUnreplicated: the server committed without waiting for its standbys any longer, and said so in a warning.
	errUnreplicated = errors.New("the server warned about the commit")
)

// failure says what an error of the database means to the contract: whether a retry can help, and whether the
// statement may have been committed. It is the only place that knows SQLSTATEs.
func failure(err error) error {
	pgErr, fromServer := errors.AsType[*pgconn.PgError](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	// A statement that ends with ERROR has been undone. FATAL is the end of a connection, which may come
	// between a commit and its answer.
	notApplied := connecting || pgconn.SafeToRetry(err) || fromServer && pgErr.SeverityUnlocalized == "ERROR"
	if fromServer {
		if remedy, permanent := remedy(pgErr); permanent {
			if remedy != "" {
				err = fmt.Errorf("%w (%s)", err, remedy)
			}
			err = fmt.Errorf("%w: %w", err, backends.ErrPermanent)
		}
	}
	if connecting && isUnverified(err) {
		err = fmt.Errorf("%w (the server's certificate is verified unless the connection string says otherwise: name the authority with sslrootcert=FILE, or do without with sslmode=require or sslmode=disable): %w", err, backends.ErrPermanent)
	}
	if notApplied {
		err = fmt.Errorf("%w: %w", err, backends.ErrNotApplied)
	}
	return err
}

// isUnverified reports whether there is no connection because the server has no TLS, or no certificate that holds.
func isUnverified(err error) bool {
	_, refused := errors.AsType[*tls.CertificateVerificationError](err)
	return refused || strings.Contains(err.Error(), "server refused TLS connection")
}

// remedy reports whether no retry mends the error, and what does.
func remedy(err *pgconn.PgError) (remedy string, permanent bool) {
	switch err.Code {
	case "42P01", "42703", "3F000": // undefined table or column; no schema of the search_path exists
		return "run: aspstate migrate up", true
	case "42501":
		return "the role needs: GRANT SELECT, INSERT, UPDATE, DELETE ON applications, sessions, moves, arrivals, servers", true
	case "3D000":
		return "create the database", true
	case "42P05", "42602", "26000", "08P01":
		return "", false // a pooler's
	}
	switch err.Code[:2] {
	case "28": // authentication
		return "check user, password and pg_hba.conf", true
	case "0A", "22", "23", "42", "54":
		return "", true
	}
	return "", false
}

// isCode reports whether the server answered with this SQLSTATE.
func isCode(err error, code string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == code
}

// setFailure is failure for Set: what does not fit on the disk is an answer.
func setFailure(err error) error {
	if isCode(err, "53100") {
		return fmt.Errorf("%w: %w", err, backends.ErrFull)
	}
	return err
}

// notSent is the error of a call that ended before its statement was sent.
func notSent(ctx context.Context) error {
	return fmt.Errorf("%w: %w", context.Cause(ctx), backends.ErrNotApplied)
}
