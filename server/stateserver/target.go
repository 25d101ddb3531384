package stateserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"

	"aspstate/backends"
	"aspstate/server"
)

// maxApplicationName is the longest application name that is served, in bytes. ASP.NET cuts
// an app id at 280 characters; the hash and non-ASCII letters come on top.
const maxApplicationName = 1024

var (
	errTargetText = errors.New("target holds text that stores cannot keep (NUL, invalid UTF-8 or a lone surrogate)")
	errTargetLong = errors.New("session ID is longer than 80 characters, or the application's name than 1024 bytes")
)

// decodeTarget is the server's key of a raw target, as .NET's HttpUtility.UrlDecode gives
// it: "+" is a space, %xx a byte of UTF-8, %uXXXX a UTF-16 unit, and malformed
// sequences stay as they are. ASP.NET 1.1 prepends a "/" to its paths; that one is taken off.
func decodeTarget(raw []byte) (string, error) {
	if bytes.HasPrefix(raw, []byte("//")) {
		raw = raw[1:]
	}
	key := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '+':
			key = append(key, ' ')
		case c == '%' && i+2 < len(raw) && isHex(raw[i+1]) && isHex(raw[i+2]):
			key = append(key, unhex(raw[i+1:i+3]))
			i += 2
		case c == '%' && unit(raw[i:]) >= 0:
			r := rune(unit(raw[i:]))
			i += 5
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if i+1 < len(raw) {
					low = rune(unit(raw[i+1:]))
				}
				if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
					return "", errTargetText
				}
				i += 6
			}
			key = utf8.AppendRune(key, r)
		default:
			key = append(key, c)
		}
	}
	if !utf8.Valid(key) || bytes.IndexByte(key, 0) >= 0 {
		return "", errTargetText
	}
	return string(key), nil
}

// unit is the value of the %uXXXX that b begins with, or -1.
func unit(b []byte) int {
	if len(b) < 6 || b[0] != '%' || b[1] != 'u' {
		return -1
	}
	for _, c := range b[2:6] {
		if !isHex(c) {
			return -1
		}
	}
	return int(unhex(b[2:4]))<<8 | int(unhex(b[4:6]))
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// unhex is the value of two hexadecimal digits.
func unhex(b []byte) byte {
	nibble := func(c byte) byte {
		if c <= '9' {
			return c - '0'
		}
		return c&^0x20 - 'A' + 10
	}
	return nibble(b[0])<<4 | nibble(b[1])
}

// splitKey tells application and session ID of a decoded target apart (MS-ASP
// 2.2.1.5).
//
// .NET 4 sends "/app id(hash)/session id" where the hash is that of the app id
// alone, with or without the "/" in front. Where it fits, the application is the app id
// in lower case, which is how mode="SQLServer" knows it: web servers that
// spell it differently share their sessions. The shortest prefix that fits counts.
// Older frameworks key the hash with the machine key; then the application's name is
// everything up to the last ")/", exactly. Without any ")/" there is no telling,
// and the whole target is the session ID of the application "".
func splitKey(key string) (application, id string) {
	const hashLen = 44 // base64 of SHA-256
	for at := 0; ; {
		n := strings.Index(key[at:], ")/")
		if n < 0 {
			break
		}
		end := at + n
		at = end + 2
		if open := end - hashLen - 1; open > 0 && key[open] == '(' {
			if app, ok := appID(key[:open], key[open+1:end]); ok {
				return strings.ToLower(app), key[at:]
			}
		}
	}
	if last := strings.LastIndex(key, ")/"); last >= 0 {
		return key[:last+2], key[last+2:]
	}
	return "", key
}

// appID returns the app id whose hash this is: the path, or the path without the "/"
// that the client put in front.
func appID(path, hash string) (string, bool) {
	// No app id ends in "/"; with this, none looks like a name of the other kind.
	if strings.HasSuffix(path, "/") {
		return "", false
	}
	if hashOf(path) == hash {
		return path, true
	}
	// The client puts a "/" in front only where there is none.
	if bare, ok := strings.CutPrefix(path, "/"); ok && bare != "" && bare[0] != '/' && hashOf(bare) == hash {
		return bare, true
	}
	return "", false
}

func hashOf(appID string) string {
	sum := sha256.Sum256([]byte(appID))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// targets finds sessions by their raw targets. Prefixes of known applications are
// remembered as they were sent, so that their hash is computed once.
type targets struct {
	sessions *server.Sessions

	mu         sync.RWMutex
	prefixes   map[string]*server.Application
	generation uint64 // of the names that the prefixes were resolved by
}

// maxPrefixes bounds the remembered spellings.
const maxPrefixes = 4096

// find returns the session that a raw target names.
func (t *targets) find(raw []byte, ids *ids) (server.Session, error) {
	session, err := t.resolve(raw, ids)
	if err == nil && t.sessions.TakesOver() {
		session.Target = string(raw)
	}
	return session, err
}

func (t *targets) resolve(raw []byte, ids *ids) (server.Session, error) {
	generation := t.sessions.Generation()
	prefix, id := splitRaw(raw)
	if prefix != nil && isPlain(id) && len(id) <= backends.MaxSessionID {
		t.mu.RLock()
		app, current := t.prefixes[string(prefix)], t.generation == generation
		t.mu.RUnlock()
		if app != nil && current {
			return server.Session{App: app, ID: ids.string(id)}, nil
		}
	}
	key, err := decodeTarget(raw)
	if err != nil {
		return server.Session{}, err
	}
	application, sessionID := splitKey(key)
	if len(application) > maxApplicationName || utf16Len(sessionID) > backends.MaxSessionID {
		return server.Session{}, errTargetLong
	}
	session := server.Session{App: t.sessions.Application(application), ID: sessionID}
	if prefix != nil && isPlain(id) && string(id) == sessionID && session.App.Known() {
		t.remember(generation, prefix, session.App)
	}
	return session, nil
}

func (t *targets) remember(generation uint64, prefix []byte, app *server.Application) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.generation != generation {
		clear(t.prefixes)
		t.generation = generation
	}
	if len(t.prefixes) >= maxPrefixes {
		for p := range t.prefixes { // any one
			delete(t.prefixes, p)
			break
		}
	}
	t.prefixes[string(prefix)] = app
}

// splitRaw splits a raw target behind its last ")/", in whichever of its
// spellings. prefix is nil if there is none.
func splitRaw(raw []byte) (prefix, id []byte) {
	for i := len(raw) - 1; i > 0; i-- {
		if raw[i-1] != ')' {
			continue
		}
		if raw[i] == '/' {
			return raw[:i+1], raw[i+1:]
		}
		if raw[i] == '%' && i+2 < len(raw) && raw[i+1] == '2' && raw[i+2]|0x20 == 'f' {
			return raw[:i+3], raw[i+3:]
		}
	}
	return nil, raw
}

// isPlain reports whether b decodes to itself.
func isPlain(b []byte) bool {
	for _, c := range b {
		if c == '%' || c == '+' || c == 0 || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func utf16Len(s string) (n int) {
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}
