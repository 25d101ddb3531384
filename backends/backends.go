// Package backends is the contract of a session-state store, and the words
// and errors that stores and front ends share. It imports only the standard
// library; stores live in the packages below it and all pass backendtest.
//
// A session is found by its Key: the application (AppID) and the session ID.
// What every store promises:
//
//  1. The store's clock decides, for expiry and for lock age. Callers pass
//     durations, never times. A lock's age is never negative.
//  2. An expired session is missing at once, whether or not DeleteExpired has
//     come by; a create over it succeeds and begins a new session (cookie 1).
//  3. Whatever finds a session renews it: Get, GetExclusive, Release, Set and
//     ResetTimeout, also when the answer is a LockedError or ErrExists, and a
//     Remove that is a LockedError. Only an ErrConflict does nothing to the
//     session at all. Stores that write to disk may coalesce: they keep
//     expires = now + timeout + Slack(timeout) and write it only when the kept
//     value is below now + timeout. A session never expires early, counted
//     from a moment within the call that renewed it; only Unread takes that back.
//  4. Missing is ErrNotFound and nothing else is. A store that cannot tell
//     returns another error: a web server that hears "missing" starts an
//     empty session and the user's data are lost.
//  5. Every operation is atomic for its session and linearizable, over all
//     processes that use the same database.
//  6. When Get, GetExclusive, Set or Remove returns nil, its effect is as durable
//     as the store promises (memory: not at all; SQLite: fsynced). Only
//     Release, ResetTimeout and renewals may be lazy: a crash may undo them.
//  7. An error that is none of the answers below leaves the outcome unknown: the
//     operation may have been applied, or may still be. The caller may then
//     try again with the same Token; the store applies the operation at most
//     once, never over what another request wrote after the first try, and
//     a first try that was applied has its answer repeated exactly, whatever has
//     become of its lock since.
//     Errors that are ErrNotApplied leave nothing behind.
//  8. A lock belongs to its cookie, never to a connection. A new session has
//     cookie 1; each GetExclusive that succeeds adds one, so that the first lock
//     is 2, and no cookie is given out twice while the session lives.
//  9. Data are opaque and never empty. Stores neither change nor keep the slices
//     they are given; callers do not change the slices they get.
//  10. IDs and application names compare byte by byte. Front ends hand over only
//     valid UTF-8 without NUL, IDs of at most MaxSessionID UTF-16 units.
//
// Stores are safe for concurrent use. A call ends soon after its context does, and a store that looks at the context
// after that has called its Done before.
// What only some stores have or some callers need (Shared; operators' views and moving sessions
// between stores, later) is an interface of its own beside Store, so that this
// one stays a page long.
package backends

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// MaxSessionID is the longest session ID in UTF-16 code units. ASP.NET's own
// SessionIDManager refuses longer ones before sending them.
const MaxSessionID = 80

// AppID is the number of an application in its store: what ASPState's
// TempGetAppID gives out. Two names never share one.
type AppID int32

// Suffix is what mode="SQLServer" web applications append to the session ID:
// the AppID as eight lower-case hexadecimal digits of its two's complement.
func (a AppID) Suffix() string { return fmt.Sprintf("%08x", uint32(a)) }

// HashAppID is the AppID that ASPState's GetHashCode computes for an
// application name (h = 5381; h = h*33 XOR byte, modulo 2^32). Stores take the
// next free number where another name already has it.
func HashAppID(name string) AppID {
	h := uint32(5381)
	for i := range len(name) {
		h = h*33 ^ uint32(name[i])
	}
	return AppID(h)
}

// Key identifies a session.
type Key struct {
	App AppID
	ID  string // the session ID, without ASPState's suffix
}

// Cookie is a lock cookie: the generation of a session's lock.
type Cookie int32

// NoCookie stands for an absent LockCookie. It matches no lock.
const NoCookie Cookie = -1

// Token identifies a request to its store over all of its tries (rule 7). No
// two requests share one, whichever process they come from.
type Token [16]byte

// NeverExpires is the timeout of a session that does not expire. Negative
// timeouts make a session that is expired from the start.
const NeverExpires time.Duration = 0

// Item is a session's content as Get and GetExclusive find it.
type Item struct {
	Data       []byte
	Timeout    time.Duration // as last set, not what is left of it
	LockCookie Cookie        // of the lock just taken; for Get, of the last one
	// LockAge is how long ago the lock of this cookie was taken, which was then released; a session that was never
	// locked has the age of its creation. It is 0 where GetExclusive has just taken the lock.
	LockAge time.Duration
	// Uninitialized says that the session was created uninitialized and that this is
	// the first answer since: the flag is now cleared (ActionFlags: 1).
	Uninitialized bool
	// Unrenewed is when the session would expire if this call had not renewed it, for Unread. It is 0 where
	// the call did not, and may be where an earlier try did.
	Unrenewed Expiry
}

// Expiry is an instant by the clock of the store that gave it, and means nothing to another one.
type Expiry int64

// Condition says when a Set, Remove or Release applies.
type Condition uint8

const (
	// IfUnlocked is the state server's rule (MS-ASP): a locked session takes
	// only what comes with its own lock cookie (else LockedError); an unlocked
	// one takes any, whatever the cookie; a Set creates a missing one.
	IfUnlocked Condition = iota
	// IfCookie is ASPState's rule (MS-ASPSS): the session exists (else ErrNotFound)
	// and the cookie is its last one, locked or not (else ErrConflict). The
	// uninitialized mark stays.
	IfCookie
	// IfMissing creates a session and leaves an existing one as it is, but
	// renewed (ErrExists). It is for Set only.
	IfMissing
)

// Write is what Set stores.
type Write struct {
	Data    []byte
	Timeout time.Duration // from this write on
	// LockCookie is compared as Condition says. A new session's cookie is 1
	// whatever stands here; an existing session keeps its own.
	LockCookie Cookie
	Condition  Condition
	// Uninitialized marks the session that the write creates. An existing
	// session keeps its mark, or loses it where its timeout changes under
	// IfUnlocked (MS-ASP, as the original does).
	Uninitialized bool
}

// Store keeps sessions. See the package comment for what each method promises.
type Store interface {
	// Application returns the AppID of the application of exactly this name. An
	// unknown one is registered if create is set and there is room for it (else
	// ErrFull), and is ErrUnknownApplication otherwise.
	Application(ctx context.Context, name string, create bool) (AppID, error)

	// Get returns the item of an unlocked session and takes no lock. A locked
	// session is a LockedError, a missing one ErrNotFound.
	Get(ctx context.Context, key Key, tok Token) (Item, error)

	// GetExclusive is Get and takes the lock: the item's LockCookie is the
	// new lock's.
	GetExclusive(ctx context.Context, key Key, tok Token) (Item, error)

	// Release unlocks the session under the condition IfUnlocked or IfCookie; one that
	// is not locked stays so. A missing session is ErrNotFound. Under IfUnlocked it
	// clears the uninitialized mark, like Get, and reports it.
	Release(ctx context.Context, key Key, tok Token, cookie Cookie, cond Condition) (uninitialized bool, err error)

	// Set stores data and timeout if w.Condition holds, and unlocks the session.
	// A refused Set changes nothing. A write for which there is no room is ErrFull.
	Set(ctx context.Context, key Key, tok Token, w Write) error

	// Remove deletes the session under the condition IfUnlocked or IfCookie. A
	// missing session is ErrNotFound.
	Remove(ctx context.Context, key Key, tok Token, cookie Cookie, cond Condition) error

	// ResetTimeout renews the session, locked or not. A missing session is
	// ErrNotFound.
	ResetTimeout(ctx context.Context, key Key) error

	// Unread takes back that Get or GetExclusive found item, as it was returned, because it cannot be given to anybody. In one step it
	// ends the lock of item.LockCookie, if the session is locked with that, and has the session expire at item.Unrenewed at the
	// latest, whatever has renewed it since, unless that is 0 or the session has other data by now. It renews nothing, and a
	// missing session is no error. It may be tried again.
	Unread(ctx context.Context, key Key, item Item) error

	// DeleteExpired deletes expired sessions, at most limit, and returns how many;
	// fewer than limit means that none was left when it looked. It never
	// delays the other operations for long. It also forgets applications that have no sessions
	// and that nobody has asked for in 24 hours: who keeps an AppID asks again more often.
	DeleteExpired(ctx context.Context, limit int) (int, error)

	// Ping asks whether the store can serve.
	Ping(ctx context.Context) error

	// Close makes acknowledged effects durable and frees the store. Calls
	// still under way, and later ones, fail. Closing again does nothing.
	Close() error
}

// Shared is implemented by stores that several processes use at the same time, so
// that a request that waits for a lock on one server hears of its release on another.
type Shared interface {
	// Expect asks that the next release of a locked session (by Release, Set or
	// Remove, in whichever process) be told to all who listen. It returns false if the session is
	// not locked. It is durable in nothing: a crash may forget it.
	Expect(ctx context.Context, key Key) (locked bool, err error)

	// Listen calls released for every session whose expected release happens, in any
	// process, until ctx ends or the connection is lost; ready is called when it
	// has begun. A store that cannot tell returns an error that wraps errors.ErrUnsupported.
	Listen(ctx context.Context, ready func(), released func(Key)) error
}

// The answers that are not nil, besides LockedError. Stores may wrap them.
var (
	ErrNotFound           = errors.New("session not found")
	ErrExists             = errors.New("session exists")
	ErrConflict           = errors.New("lock cookie does not match")
	ErrUnknownApplication = errors.New("unknown application")
	// ErrFull refuses a Set, or the registration of an application, for want of
	// room (memory.maxBytes, disk space, number of applications). Nothing was
	// changed. Other operations that meet a full disk fail.
	ErrFull = errors.New("store is full")
)

// Kinds of failure, for errors.Is. A failure that is neither is worth a retry
// and leaves the outcome unknown.
var (
	// ErrPermanent marks what no retry mends: a missing right, a wrong schema,
	// damaged data.
	ErrPermanent = errors.New("permanent failure")
	// ErrNotApplied marks a failure after which the operation has not been
	// applied and will not be.
	ErrNotApplied = errors.New("not applied")
)

// LockedError refuses an operation because the session is locked. It
// describes the lock by the store's clock.
type LockedError struct {
	Cookie Cookie
	Age    time.Duration // never negative
	Since  time.Time
	// Uninitialized is Item's: this answer is the one that reports and clears
	// the mark. Set and Remove leave it alone.
	Uninitialized bool
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("session is locked (cookie %d, for %v)", e.Cookie, e.Age.Truncate(time.Second))
}

// IsAnswer reports whether err (nil included) is an answer of the store, as opposed to a
// failure of it.
func IsAnswer(err error) bool {
	if err == nil {
		return true
	}
	if _, locked := errors.AsType[*LockedError](err); locked {
		return true
	}
	for _, answer := range []error{ErrNotFound, ErrExists, ErrConflict, ErrUnknownApplication, ErrFull} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return false
}

// Slack is how much later than its timeout a session may expire in a store
// that coalesces renewals (rule 3).
func Slack(timeout time.Duration) time.Duration {
	return max(0, min(timeout/20, time.Minute))
}

// ShortID shortens a session ID for logs: who can read a whole one can take over
// the session.
func ShortID(id string) string {
	const keep = 6
	id = strings.ToValidUTF8(id, "?")
	if r := []rune(id); len(r) > keep {
		return string(r[:keep]) + "…"
	}
	return id
}
