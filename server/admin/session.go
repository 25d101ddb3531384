package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"aspstate/backends"
	"aspstate/server/item"
)

// ShownSession is the answer of GET /api/session.
type ShownSession struct {
	Session   Session    `json:"session"`
	Item      *item.Item `json:"item,omitempty"`
	ItemError string     `json:"item_error,omitempty"`
}

func (s *Server) showSession(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	values := false
	if text := q.Get("values"); text != "" {
		var err error
		if values, err = strconv.ParseBool(text); err != nil {
			return nil, badRequest("values is not true or false: %q", text)
		}
	}
	key, err := s.key(ctx, given(q, "app"), given(q, "application"), q.Get("id"))
	if err != nil {
		return nil, err
	}
	found, err := s.sessions.Inspect(ctx, key)
	if err != nil {
		return nil, err
	}
	shown := ShownSession{Session: toJSON(found, s.names())}
	data, err := s.sessions.Content(ctx, found)
	if err != nil {
		shown.ItemError = err.Error()
		return shown, nil
	}
	content, err := item.Decode(data)
	shown.Item = &content
	if err != nil {
		shown.ItemError = err.Error()
	}
	if values {
		s.audit(r, "show values", key)
	} else {
		content.HideValues()
	}
	return shown, nil
}

// unlocking is the body of POST /api/session/unlock.
type unlocking struct {
	App         *string          `json:"app"`
	Application *string          `json:"application"`
	ID          string           `json:"id"`
	LockCookie  *backends.Cookie `json:"lock_cookie"`
}

// Unlocked is its answer.
type Unlocked struct {
	Unlocked   bool            `json:"unlocked"`
	LockCookie backends.Cookie `json:"lock_cookie"`
}

func (s *Server) unlockSession(ctx context.Context, r *http.Request) (any, error) {
	var body unlocking
	if err := readJSON(r, &body); err != nil {
		return nil, err
	}
	key, err := s.key(ctx, body.App, body.Application, body.ID)
	if err != nil {
		return nil, err
	}
	found, err := s.sessions.Inspect(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case !found.Locked:
		return nil, problem{status: http.StatusConflict, Text: "the session is not locked"}
	case body.LockCookie != nil && *body.LockCookie != found.LockCookie:
		return nil, &backends.LockedError{Cookie: found.LockCookie}
	}
	if err := s.sessions.Unlock(ctx, key, found.LockCookie); err != nil {
		return nil, err
	}
	s.audit(r, "unlock", key)
	return Unlocked{true, found.LockCookie}, nil
}

// removeTries is how often a session is looked at that is locked anew all the time.
const removeTries = 5

func (s *Server) removeSession(ctx context.Context, r *http.Request) (any, error) {
	q := r.URL.Query()
	key, err := s.key(ctx, given(q, "app"), given(q, "application"), q.Get("id"))
	if err != nil {
		return nil, err
	}
	for range removeTries {
		var found backends.Session
		if found, err = s.sessions.Inspect(ctx, key); err != nil {
			break
		}
		err = s.sessions.Delete(ctx, key, found.LockCookie)
		if _, locked := errors.AsType[*backends.LockedError](err); !locked {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	s.audit(r, "remove", key)
	return map[string]bool{"removed": true}, nil
}

// audit logs what an operator did to a session.
func (s *Server) audit(r *http.Request, what string, key backends.Key) {
	name, known := s.names()[key.App]
	if !known {
		name = key.App.Suffix()
	}
	s.log.Info("an operator touched a session", "audit", what, "application", name, "session", backends.ShortID(key.ID), "client", r.RemoteAddr)
}

// readJSON reads a body of one object without unknown fields.
func readJSON(r *http.Request, into any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		if _, more := dec.Token(); more != io.EOF {
			err = errors.New("something follows the object")
		}
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); err != nil && !tooLarge {
		err = badRequest("the body is not the JSON object that %s takes: %v", r.URL.Path, err)
	}
	return err
}
