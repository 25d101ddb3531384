package backendtest

import (
	"context"
	"sync"

	"aspstate/backends"
)

// Sealing is a store whose items are sealed on their way in and opened on their way out, as the server does it above its store:
// what the suite finds true of a store has to stay true then.
type Sealing struct {
	backends.Store
	// Seal and Open are the two ways. Overhead is how much longer a sealed item is.
	Seal     func(application, id string, item []byte) []byte
	Open     func(application, id string, sealed []byte) ([]byte, error)
	Overhead int

	mu    sync.Mutex
	names map[backends.AppID]string
	kept  map[string][]byte // items that were found as they are kept, by what they hold
}

// MovableSealing is Sealing for a store that is Movable.
type MovableSealing struct {
	*Sealing
	movable backends.Movable
}

// Sealed returns the fixture with its store behind s.
func Sealed(f Fixture, s *Sealing) Fixture {
	s.Store, s.names, s.kept = f.Store, make(map[backends.AppID]string), make(map[string][]byte)
	f.Store = s
	if movable, ok := s.Store.(backends.Movable); ok {
		f.Store = &MovableSealing{s, movable}
	}
	return f
}

var _ backends.Movable = (*MovableSealing)(nil)

func (s *Sealing) Application(ctx context.Context, name string, create bool) (backends.AppID, error) {
	id, err := s.Store.Application(ctx, name, create)
	if err == nil {
		s.mu.Lock()
		s.names[id] = name
		s.mu.Unlock()
	}
	return id, err
}

// name is the application's; cases use numbers that nobody has registered, too.
func (s *Sealing) name(id backends.AppID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[id]
}

func (s *Sealing) open(key backends.Key, item backends.Item, err error) (backends.Item, error) {
	if err == nil {
		kept := item.Data
		item.Data, err = s.Open(s.name(key.App), key.ID, kept)
		if item.Unrenewed != 0 {
			s.mu.Lock()
			s.kept[string(item.Data)] = kept
			s.mu.Unlock()
		}
	}
	return item, err
}

func (s *Sealing) Unread(ctx context.Context, key backends.Key, item backends.Item) error {
	s.mu.Lock()
	item.Data = s.kept[string(item.Data)]
	s.mu.Unlock()
	return s.Store.Unread(ctx, key, item)
}

func (s *Sealing) Get(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	item, err := s.Store.Get(ctx, key, tok)
	return s.open(key, item, err)
}

func (s *Sealing) GetExclusive(ctx context.Context, key backends.Key, tok backends.Token) (backends.Item, error) {
	item, err := s.Store.GetExclusive(ctx, key, tok)
	return s.open(key, item, err)
}

func (s *Sealing) Set(ctx context.Context, key backends.Key, tok backends.Token, w backends.Write) error {
	w.Data = s.Seal(s.name(key.App), key.ID, w.Data)
	return s.Store.Set(ctx, key, tok, w)
}

func (s *MovableSealing) openSession(session *backends.Session) (err error) {
	session.Size -= s.Overhead
	if session.Data != nil {
		session.Data, err = s.Open(s.name(session.App), session.ID, session.Data)
	}
	return err
}

func (s *MovableSealing) Inspect(ctx context.Context, key backends.Key) (backends.Session, error) {
	session, err := s.movable.Inspect(ctx, key)
	if err == nil {
		err = s.openSession(&session)
	}
	return session, err
}

func (s *MovableSealing) List(ctx context.Context, q backends.Query) ([]backends.Session, error) {
	list, err := s.movable.List(ctx, q)
	for i := range list {
		if err == nil {
			err = s.openSession(&list[i])
		}
	}
	return list, err
}

func (s *MovableSealing) Applications(ctx context.Context) ([]backends.ApplicationInfo, error) {
	list, err := s.movable.Applications(ctx)
	for i := range list {
		list[i].Bytes -= int64(s.Overhead * list[i].Sessions)
	}
	return list, err
}

func (s *MovableSealing) Moves(ctx context.Context) (away, into backends.Move, err error) {
	return s.movable.Moves(ctx)
}
func (s *MovableSealing) Leave(ctx context.Context, m backends.Move) error {
	return s.movable.Leave(ctx, m)
}
func (s *MovableSealing) Enter(ctx context.Context, m backends.Move) error {
	return s.movable.Enter(ctx, m)
}
func (s *MovableSealing) Complete(ctx context.Context, m backends.Move) error {
	return s.movable.Complete(ctx, m)
}

func (s *MovableSealing) Import(ctx context.Context, move string, sessions []backends.Session) (int, error) {
	sealed := make([]backends.Session, len(sessions))
	for i, session := range sessions {
		session.Data = s.Seal(s.name(session.App), session.ID, session.Data)
		session.Size = len(session.Data)
		sealed[i] = session
	}
	return s.movable.Import(ctx, move, sealed)
}
