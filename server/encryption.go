package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"aspstate/backends"
	"aspstate/server/seal"
)

// Encryption at rest. Sessions seals what it gives to its store and opens what it gets, under the names of application and
// session; so stores, and moves between them, have to do with sealed items only. What comes from elsewhere in the clear, or from another
// application, is sealed for its session on its way in (importItem).

// Encryption says how items are kept in the store. The zero value keeps them as they come.
type Encryption struct {
	Keys []*seal.Key // the first one seals, all open
	// Seal says whether what is written from now on is sealed. Without it, items that are not sealed are accepted as well.
	Seal bool
	// AcceptUnencrypted accepts items that are not sealed although new ones are: whoever can write to the database can plant items as long.
	AcceptUnencrypted bool
}

// SetEncryption puts e into force for the requests to come.
func (s *Sessions) SetEncryption(e Encryption) { s.encryption.Store(&e) }

// Encryption returns what is in force.
func (s *Sessions) Encryption() Encryption { return *s.encryption.Load() }

// ErrUnreadable says that an item in the store is not to be given to a web application. It is no answer, so that the page fails and the
// session stays; and no failure of the store, since asking again does not help.
var ErrUnreadable = fmt.Errorf("the item cannot be given out: %w", backends.ErrPermanent)

var errUnencrypted = errors.New("the item is not encrypted")

// Unreadable is why an item was not given to the web application.
type Unreadable uint8

const (
	UnreadableDamaged     Unreadable = iota // it is not what was sealed for this session
	UnreadableUnknownKey                    // none of the keys in force has sealed it
	UnreadableUnencrypted                   // it is not sealed, and has to be
	Unreadables           int        = iota
)

var unreadableNames = [Unreadables]string{"damaged", "unknown_key", "not_encrypted"}

func (u Unreadable) String() string { return unreadableNames[u] }

var unreadableSays = [Unreadables]string{
	UnreadableDamaged: "items in the store are not as they were encrypted for their session, damaged or forged: requests for them were closed without an answer",
	UnreadableUnknownKey: "items in the store are encrypted with a key that is not in encryption.keys: requests for them were closed without an answer; " +
		"list the key, and reload",
	UnreadableUnencrypted: "items in the store are not encrypted: requests for them were closed without an answer; " +
		"if encryption has been turned on lately, set encryption.acceptUnencrypted, and reload",
}

// seals reports whether what is written from now on is sealed.
func (e *Encryption) seals() bool { return e.Seal && len(e.Keys) > 0 }

// seal returns an item as it is to be kept for the session.
func (s *Sessions) seal(session Session, item []byte) []byte {
	e := s.encryption.Load()
	if !e.seals() {
		return item
	}
	return e.Keys[0].Seal(session.App.Name, session.ID, item)
}

// Weight returns how many bytes of memory a front end holds (Conn.Hold) for an item on its way in, or a part of one, of this length: where
// it will be sealed, that makes a copy. Both are held together, since who holds the one and waits for the other may wait for its like.
func (s *Sessions) Weight(length int64) int64 {
	if s.encryption.Load().seals() {
		return 2 * length
	}
	return length
}

// weight is the same for an item as it comes from the store, which opening copies.
func weight(kept []byte) int64 {
	if seal.IsSealed(kept) {
		return 2 * int64(len(kept))
	}
	return int64(len(kept))
}

// open is seal's inverse, for an item as it is kept for the session id of the application. The errors are
// seal.ErrDamaged, seal.ErrUnknownKey and errUnencrypted.
func (e *Encryption) open(application, id string, kept []byte) ([]byte, error) {
	switch {
	case seal.IsSealed(kept):
		return seal.Open(e.Keys, application, id, kept)
	case e.seals() && !e.AcceptUnencrypted:
		return nil, errUnencrypted
	default:
		return kept, nil
	}
}

// open opens an item, or says why not: to the log, to the metrics, and by an error that wraps ErrUnreadable.
func (s *Sessions) open(application, id string, kept []byte) ([]byte, error) {
	item, err := s.encryption.Load().open(application, id, kept)
	if err == nil {
		return item, nil
	}
	why := unreadable(err)
	s.Metrics.Unreadable[why].Add(1)
	s.unreadable[why].add(1, func(n int64) {
		s.log.Error(unreadableSays[why], "requests", n, "application", application, "session", backends.ShortID(id), "error", err)
	})
	return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
}

// unreadable is why an item could not be opened.
func unreadable(err error) Unreadable {
	switch {
	case errors.Is(err, seal.ErrUnknownKey):
		return UnreadableUnknownKey
	case errors.Is(err, errUnencrypted):
		return UnreadableUnencrypted
	default:
		return UnreadableDamaged
	}
}

// openFound opens the item that a request found at its place, locked or not. Where that fails, the session is left as if it had not been
// asked for: unlocked and, since one that nobody can read is to time out, not renewed.
func (s *Sessions) openFound(ctx context.Context, req Request, at *place, found backends.Item, locked bool) (backends.Item, error) {
	item, err := found, error(nil)
	if item.Data, err = s.open(at.session.App.Name, at.session.ID, found.Data); err == nil {
		return item, nil
	}
	if !locked {
		found.LockCookie = backends.NoCookie
	}
	unread := unreadable(err) != UnreadableUnknownKey && s.unread(ctx, req, at, found) // with its key it is as good as ever, perhaps on another server
	if locked && !unread {
		s.ReleaseLater(at.session, found.LockCookie)
	}
	return item, err
}

// unread takes back that an item was found, and reports whether it could. Where the store fails just now, or was left since, the session stays
// renewed: done later, it could take back what others did meanwhile who can read the item.
func (s *Sessions) unread(ctx context.Context, req Request, at *place, found backends.Item) (done bool) {
	s.do(ctx, stmtUnread, req, func(ctx context.Context) error {
		err := at.route.store.Unread(ctx, at.key, found) // no other store knows its time
		if done = err == nil; errors.Is(err, backends.ErrMoved) {
			err = nil
		}
		return err
	})
	if done {
		s.handover.released(at.key)
	}
	return done
}

// Content returns the item of a session that Inspect has found. An error says why it cannot be read.
func (s *Sessions) Content(ctx context.Context, found backends.Session) ([]byte, error) {
	if !seal.IsSealed(found.Data) {
		return found.Data, nil
	}
	name, known := s.Names()[found.App]
	if !known {
		store, ok := s.Store().(backends.Inspector)
		if !ok {
			return nil, fmt.Errorf("read the session: %w", errors.ErrUnsupported)
		}
		list, err := backends.Names(ctx, store)
		if err != nil {
			return nil, err
		}
		for _, app := range list {
			if app.ID == found.App {
				name = app.Name
			}
		}
	}
	return s.encryption.Load().open(name, found.ID, found.Data)
}

// Sealed counts sessions by the key that has sealed them.
type Sealed struct {
	Keys    map[seal.ID]int
	Clear   int // not sealed
	Unknown int // sealed in a format that this version does not know, or cut off
}

func (c *Sealed) add(data []byte) {
	id, ok := seal.KeyOf(data)
	switch {
	case ok:
		c.Keys[id]++
	case seal.IsSealed(data):
		c.Unknown++
	default:
		c.Clear++
	}
}

const (
	// A sample looks at so many sessions of each of so many applications, and reads so many bytes of each.
	sampledSessions     = 50
	sampledApplications = 100
	sampledBytes        = 1 << 20
)

// SampleSealed looks at some sessions of a store: session IDs are random, so that the first of each application are any ones.
func SampleSealed(ctx context.Context, store backends.Inspector) (Sealed, error) {
	c := Sealed{Keys: make(map[seal.ID]int)}
	apps, err := backends.Names(ctx, store)
	if err != nil {
		return c, err
	}
	for _, app := range apps[:min(len(apps), sampledApplications)] {
		page, err := store.List(ctx, backends.Query{App: &app.ID, Limit: sampledSessions})
		if err != nil {
			return c, err
		}
		n := batch(page, sampledBytes)
		if n == 0 {
			continue
		}
		sessions, err := store.List(ctx, backends.Query{App: &app.ID, Limit: n, Data: true})
		if err != nil {
			return c, err
		}
		for _, session := range sessions {
			c.add(session.Data)
		}
	}
	return c, nil
}

// CountSealed looks at the sessions of the store that serves, from behind a key on, and returns the key to go on behind when it has taken so
// long; the zero Key when it is through. It reads them all.
func (s *Sessions) CountSealed(ctx context.Context, after backends.Key, within time.Duration) (c Sealed, next backends.Key, err error) {
	c.Keys = make(map[seal.ID]int)
	store, ok := s.Store().(backends.Inspector)
	if !ok {
		return c, next, fmt.Errorf("count encrypted sessions: this store cannot be looked into: %w", errors.ErrUnsupported)
	}
	begun := time.Now()
	err = eachBatch(ctx, store, after, func(last backends.Key, _ int, sessions []backends.Session) error {
		for _, session := range sessions {
			c.add(session.Data)
		}
		if time.Since(begun) >= within {
			next = last
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return c, next, err
}

var errEnough = errors.New("enough")
