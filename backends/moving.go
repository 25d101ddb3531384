package backends

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"strings"
	"time"
)

// Session is a session with all that its store knows of it, as operators see it and as it
// moves to another store. Durations are by the store's clock, at the moment it told them.
type Session struct {
	Key
	Data    []byte        // nil where it was not asked for
	Size    int           // of the data, in bytes
	Created time.Time     // by the clock of the store that it began in
	Timeout time.Duration // as last set
	Left    time.Duration // until it expires if nothing renews it; not set where Timeout is NeverExpires
	// LockCookie is that of the last lock, and LockAge how long ago it was taken, whether the
	// session is Locked or not. A session that was never locked has cookie 1 and the age of
	// its creation.
	LockCookie    Cookie
	LockAge       time.Duration // never negative
	Locked        bool
	Uninitialized bool
}

// ApplicationInfo is an application as its store knows it.
type ApplicationInfo struct {
	ID       AppID
	Name     string
	Sessions int   // living ones
	Locked   int   // of these
	Bytes    int64 // of their data
}

// Order is an order of sessions.
type Order uint8

const (
	ByKey     Order = iota // AppID, then ID, as numbers and bytes
	BySize                 // largest first
	ByLockAge              // the oldest lock first, and only sessions that are locked
	ByCreated              // oldest first
)

// Query chooses sessions. Who reads on ByKey behind the last session that it got, until it gets fewer than
// Limit, has seen each session once that was there all the time; of those that came or went meanwhile it may have missed some.
type Query struct {
	App    *AppID // only this application's, if set
	ID     string // only those whose ID begins so
	Locked bool   // only locked ones
	Order  Order
	After  Key  // goes on behind this key; only for ByKey, the zero Key begins, also before negative AppIDs
	Limit  int  // at most so many, at least 1
	Data   bool // with their data
}

// Compare orders keys: by AppID, then by the bytes of the ID.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.App, other.App), strings.Compare(k.ID, other.ID))
}

// Bound is a place in the order of keys. Its App may lie behind the last AppID.
type Bound struct {
	App int64
	ID  string
}

// Compare orders bounds as their keys.
func (b Bound) Compare(other Bound) int {
	return cmp.Or(cmp.Compare(b.App, other.App), strings.Compare(b.ID, other.ID))
}

// Range returns the part of all keys that the query can choose from: from first on, before end.
func (q Query) Range() (first, end Bound) {
	first, end = Bound{App: math.MinInt32}, Bound{App: math.MaxInt32 + 1}
	if q.App != nil {
		first, end = Bound{int64(*q.App), q.ID}, Bound{App: int64(*q.App) + 1}
		// Behind the IDs that begin so comes what they begin with, its last byte raised.
		prefix := []byte(q.ID)
		for len(prefix) > 0 && prefix[len(prefix)-1] == 0xff {
			prefix = prefix[:len(prefix)-1]
		}
		if len(prefix) > 0 {
			prefix[len(prefix)-1]++
			end = Bound{int64(*q.App), string(prefix)}
		}
	}
	if after := (Bound{int64(q.After.App), q.After.ID + "\x00"}); q.After != (Key{}) && after.Compare(first) > 0 {
		first = after
	}
	return first, end
}

// Inspector is implemented by stores that can be looked into. Looking changes nothing: it renews
// no session and clears no mark. Expired sessions are missing here too. It does not wait for operations
// on the sessions that it looks at, nor they for it.
type Inspector interface {
	// Inspect returns a session with its data, or ErrNotFound.
	Inspect(ctx context.Context, key Key) (Session, error)

	// List returns the sessions that the query chooses, in its order; those that are equal in it come by key. It may
	// take as long as reading every session takes, unless the order is ByKey, and does not delay other
	// operations meanwhile.
	List(ctx context.Context, q Query) ([]Session, error)

	// Applications returns all applications by name, byte by byte, and counts their sessions. It may take as long as List.
	Applications(ctx context.Context) ([]ApplicationInfo, error)
}

// Namer is implemented by Inspectors that can tell their applications without counting sessions, which takes as long as
// reading them all.
type Namer interface {
	// Names is Applications with nothing counted.
	Names(ctx context.Context) ([]ApplicationInfo, error)
}

// Names returns the applications of a store, counted or not.
func Names(ctx context.Context, store Inspector) ([]ApplicationInfo, error) {
	if namer, ok := store.(Namer); ok {
		return namer.Names(ctx)
	}
	return store.Applications(ctx)
}

// Stage says how far a move has come.
type Stage uint8

const (
	NoMove    Stage = iota
	Announced       // its servers are getting ready; the store serves as ever
	Moving          // sessions are served by the target, which claims from the source what it misses
	Moved           // the target has them all
)

// Move is the move of all sessions from one store to another, as both keep it.
type Move struct {
	ID       string
	From, To string // connection strings or "StateServer", to open the other store by
	Stage    Stage
}

// Movable is implemented by stores whose sessions can be moved to another store, and that take
// in those of another, while both serve.
//
// A move goes: the target Enters it; the source Leaves, from when on nothing in it changes any more;
// every session is Imported by the target before the first operation on it there, and the rest in the
// background; the target Completes the move and then the source does. Each step
// may be repeated, and then does nothing. A Leave is final: what comes back later is a new move, with another ID.
// When a step is allowed, Moves (the type) says.
type Movable interface {
	Inspector

	// Moves returns the last move away from this store and the last one into it. The
	// zero Move says that there was none.
	Moves(ctx context.Context) (away, into Move, err error)

	// Leave ends the store's service: from its return on, every operation of Store and Shared, in whichever
	// process, returns ErrMoved (a Listen under way ends with it), and none that answered otherwise has its
	// effect later. Only a repeated operation (rule 7) that was applied before still has its answer repeated.
	// Inspector, Movable, Ping and Close go on. m is kept, with stage Moving, as durably as a Set. A store that
	// was left already, that another move is announced for, or that one is entering still, returns ErrMoved.
	Leave(ctx context.Context, m Move) error

	// Enter begins a move into this store and keeps m, with stage Moving. A store that was left
	// before, in a move that is Moved, forgets its sessions and that move first and serves again; one whose move away
	// is announced or not over, or that another move is entering, returns ErrMoved.
	Enter(ctx context.Context, m Move) error

	// Import takes in sessions as they stood elsewhere: with their data, timeout, what is left of it,
	// lock cookie, lock, lock age and mark, under the Keys given, whose applications exist. A
	// session that is there already stays as it is, and one that was imported before in the same move is not
	// imported again, whatever has become of it since. Of two with one key the first counts, and one with less
	// than nothing left is not taken in. It returns how many were taken in. The effect is durable as that of a Set.
	// Where this move has been completed, never entered, or another one has entered, it returns ErrMoved, and so does a
	// store that was left. With an empty move ID it imports what is missing, outside of any move. Sessions for which
	// there is no room are ErrFull; an Import that fails may have taken in some, and can be repeated.
	Import(ctx context.Context, move string, sessions []Session) (int, error)

	// Complete ends the move m.ID: it is Moved, into this store or away from it. m.From and m.To are kept in the
	// place of what was: who needs no connection strings any more leaves out what is secret in them. A move that has not entered or left
	// this store, or that another one has replaced since, is ErrPermanent.
	Complete(ctx context.Context, m Move) error
}

// Attendance is a server's entry in the list of those that share a database.
type Attendance struct {
	ID    string // of the process, unique
	Name  string // for people: host and process number
	Ready string // the ID of the move that the server is ready for
	Fault string // why it cannot follow the move that is announced
}

// SharedMovable is implemented by Movable stores that are also Shared: their servers agree on a move before it begins.
type SharedMovable interface {
	Movable
	Shared

	// Attend enters a server, or renews its entry, and returns all entries that were renewed within the
	// last 10 s, by the store's clock, this one included.
	Attend(ctx context.Context, a Attendance) ([]Attendance, error)

	// Depart takes a server out of the list.
	Depart(ctx context.Context, id string) error

	// Announce keeps m, with stage Announced, for all servers to see in Moves. It is ErrMoved where another move is
	// announced or entering, and in a store that was left. A Move with stage NoMove withdraws the announcement
	// of its ID, if there is one; once that move is Moving it is ErrMoved.
	Announce(ctx context.Context, m Move) error
}

// ErrMoved says that the store was left: its sessions are served by another one, which Moves
// names; or, from the methods that move, that another move is in the way. It is a failure, not an answer, and
// ErrNotApplied.
var ErrMoved = fmt.Errorf("the sessions were moved to another store: %w", ErrNotApplied)
