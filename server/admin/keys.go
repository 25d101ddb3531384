package admin

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"

	"aspstate/backends"
)

// Key is a key of encryption at rest, and how many sessions are encrypted with it.
type Key struct {
	ID       string `json:"id"`
	Use      string `json:"use"` // encrypts, decrypts, or "" where the key is not known
	Sessions int    `json:"sessions"`
}

// Keys is the answer of GET /api/keys.
type Keys struct {
	Keys          []Key  `json:"keys"`
	NotEncrypted  int    `json:"not_encrypted"`
	UnknownFormat int    `json:"unknown_format"`
	Next          string `json:"next,omitempty"`
}

func (s *Server) countKeys(ctx context.Context, r *http.Request) (any, error) {
	after, err := cursor(r.URL.Query().Get("after"))
	if err != nil {
		return nil, err
	}
	counted, next, err := s.sessions.CountSealed(ctx, after, apiTimeout/3)
	if err != nil {
		return nil, err
	}
	sum := Keys{Keys: []Key{}, NotEncrypted: counted.Clear, UnknownFormat: counted.Unknown}
	for i, k := range s.sessions.Encryption().Keys {
		use := "decrypts"
		if i == 0 && s.sessions.Encryption().Seal {
			use = "encrypts"
		}
		sum.Keys = append(sum.Keys, Key{k.ID().String(), use, counted.Keys[k.ID()]})
		delete(counted.Keys, k.ID())
	}
	known := len(sum.Keys)
	for id, n := range counted.Keys {
		sum.Keys = append(sum.Keys, Key{ID: id.String(), Sessions: n})
	}
	slices.SortFunc(sum.Keys[known:], func(a, b Key) int { return cmp.Compare(a.ID, b.ID) })
	if next != (backends.Key{}) {
		sum.Next = next.App.Suffix() + next.ID
	}
	return sum, nil
}

// cursor reads what an answer gave as next; "" begins.
func cursor(text string) (after backends.Key, err error) {
	if text == "" {
		return after, nil
	}
	n, err := strconv.ParseUint(text[:min(8, len(text))], 16, 32)
	if err != nil || len(text) < 9 {
		return after, badRequest("after is not a cursor that an answer gave as next: %q", text)
	}
	return backends.Key{App: backends.AppID(uint32(n)), ID: text[8:]}, nil
}
