package sqlserver

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"aspstate/backends"
)

// maxApplications bounds the table of names, which clients choose.
const maxApplications = 10000

// maxName is the length of AppName.
const maxName = 280

// nameSQL answers with @name in the database's code page, and whether it is as TempGetAppID would write it.
const nameSQL = `
DECLARE @n varchar(280)
SET @n = LOWER(CONVERT(varchar(280), @name))
SELECT CONVERT(varbinary(280), @n), CASE WHEN CONVERT(nvarchar(280), @n) = @name COLLATE Latin1_General_BIN2 THEN 1 ELSE 0 END`

// findApplicationSQL answers with the rows that have the name or its hash.
const findApplicationSQL = shut + `
SELECT AppId, CONVERT(varbinary(280), CONVERT(varchar(280), AppName)) FROM dbo.ASPStateTempApplications
WHERE AppId = @app OR AppName = CONVERT(char(280), CONVERT(varchar(280), @name))`

// registerApplicationSQL answers whether there is room. @full is the name that @name stands for, in the row @slot, or NULL.
const registerApplicationSQL = `
SET XACT_ABORT ON
SET NOCOUNT ON
DECLARE @granted int, @room int
BEGIN TRANSACTION
` + staying + `
SELECT @room = CASE WHEN COUNT(*) < 10000 THEN 1 ELSE 0 END FROM dbo.ASPStateTempApplications
IF @room = 1
    INSERT dbo.ASPStateTempApplications (AppId, AppName) SELECT @app, CONVERT(varchar(280), @name)
    WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateTempApplications WHERE AppId = @app)
IF @room = 1 AND @full IS NOT NULL
    INSERT dbo.ASPStateRequests (Slot, Seq, LockCookie, Flags, LastUse, Content) SELECT @slot, 0, 0, 64, '99991231', @full
    WHERE NOT EXISTS (SELECT 1 FROM dbo.ASPStateRequests WHERE Slot = @slot)
SELECT @room
COMMIT TRANSACTION`

// Application implements backends.Store. The AppID is the one that TempGetAppID gives out. Where another name has it already, that
// is a permanent failure, as for web applications in mode="SQLServer". There is room for 10,000 names; servers that register at the
// same moment may pass that by a few. A name is never forgotten.
func (s *Store) Application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	id, err := s.application(ctx, name, create)
	return id, wrap("application", err)
}

func (s *Store) application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	stored, bytes, err := s.storedName(ctx, name)
	if err != nil {
		return 0, err
	}
	app := backends.HashAppID(bytes)
	const declared = "@app int, @name nvarchar(280)"
	args := []any{sql.Named("app", int32(app)), sql.Named("name", stored)}
	for {
		type found struct {
			id    backends.AppID
			is    bool
			other string // that has the number
		}
		var seen found // only the batch's, which may outlive this call
		f, err := query(ctx, s, findApplicationSQL, declared, args, func(rows *sql.Rows) (found, error) {
			var id int32
			var name []byte
			if err := rows.Scan(&id, &name); err != nil {
				return seen, err
			}
			switch other := strings.TrimRight(string(name), " "); {
			case other == bytes:
				seen.id, seen.is = backends.AppID(id), true
			case backends.AppID(id) == app:
				seen.other = other
			}
			return seen, nil
		})
		switch {
		case err != nil:
			return 0, err
		case f.is:
			return f.id, nil
		case !create:
			return 0, backends.ErrUnknownApplication
		case f.other != "":
			return 0, fmt.Errorf("the applications %q and %q have the same hash code (%s), and ASPState cannot keep both: rename one of them: %w: %w",
				bytes, f.other, app.Suffix(), backends.ErrPermanent, backends.ErrNotApplied)
		}
		var full []byte
		if stored != name {
			full = []byte(name)
		}
		room, err := query(ctx, s, registerApplicationSQL, declared+", @slot binary(16), @full varbinary(max)",
			append(slices.Clone(args), sql.Named("slot", slotOf(stored)), sql.Named("full", full)), func(rows *sql.Rows) (room bool, err error) {
				err = rows.Scan(&room)
				return room, err
			})
		if err != nil && !isDuplicate(err) {
			return 0, roomFailure(err)
		}
		if err == nil && !room {
			return 0, fmt.Errorf("%d names are registered: %w", maxApplications, backends.ErrFull)
		}
		// What was registered stays, and another server may have been faster, with the name or the number.
	}
}

// storedName returns the name as AppName has it, and the bytes that its hash is made of.
func (s *Store) storedName(ctx context.Context, name string) (stored, bytes string, err error) {
	ascii := true
	for i := range len(name) {
		c := name[i]
		ascii = ascii && c < 0x80
		if c < ' ' || c == 0x7f || 'A' <= c && c <= 'Z' {
			return substitute(name)
		}
	}
	if name == "" || len(name) > maxName || strings.HasSuffix(name, " ") || strings.HasPrefix(name, substitutePrefix) {
		return substitute(name)
	}
	if ascii {
		return name, name, nil
	}
	type answer struct {
		bytes []byte
		same  bool
	}
	a, err := query(ctx, s, nameSQL, "@name nvarchar(280)", []any{sql.Named("name", name)}, func(rows *sql.Rows) (a answer, err error) {
		err = rows.Scan(&a.bytes, &a.same)
		return a, err
	})
	switch {
	case err == nil && !a.same:
		return substitute(name)
	case err != nil:
		return "", "", err
	}
	return name, string(a.bytes), nil
}

const substitutePrefix = "aspstate:"

// substitute is what stands for a name that ASPState cannot hold.
func substitute(name string) (stored, bytes string, err error) {
	hash := sha256.Sum256([]byte(name))
	stored = substitutePrefix + hex.EncodeToString(hash[:])
	return stored, stored, nil
}
