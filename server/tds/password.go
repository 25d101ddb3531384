package tds

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	hashScheme     = "pbkdf2-sha256"
	hashIterations = 600_000
	hashSalt       = 16 // bytes
	hashSize       = 32

	minIterations = 10_000
	maxIterations = 9_999_999

	// loginFails is how long a refused login takes, at least.
	loginFails = time.Second
	// maxVerified bounds the passwords that are known to be right.
	maxVerified = 1000
)

// PasswordHash is a password as the settings keep it: pbkdf2-sha256$ITERATIONS$SALT$HASH.
type PasswordHash struct {
	iterations int
	salt, hash []byte
}

// HashPassword returns a password's hash as text, with a salt of its own.
func HashPassword(password string) (string, error) { return hashPassword(password, hashIterations) }

func hashPassword(password string, iterations int) (string, error) {
	salt := make([]byte, hashSalt)
	rand.Read(salt)
	hash, err := pbkdf2.Key(sha256.New, password, salt, iterations, hashSize)
	if err != nil {
		return "", fmt.Errorf("hash a password: %w", err)
	}
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("%s$%d$%s$%s", hashScheme, iterations, b64.EncodeToString(salt), b64.EncodeToString(hash)), nil
}

var errHash = errors.New("it is not what aspstate hash-password prints")

// ParsePasswordHash reads what HashPassword wrote.
func ParsePasswordHash(text string) (h PasswordHash, err error) {
	parts := strings.Split(text, "$")
	if len(parts) != 4 || parts[0] != hashScheme {
		return h, errHash
	}
	if h.iterations, err = strconv.Atoi(parts[1]); err != nil || h.iterations < minIterations || h.iterations > maxIterations {
		return h, errHash
	}
	b64 := base64.RawStdEncoding
	if h.salt, err = b64.DecodeString(parts[2]); err != nil || len(h.salt) < 8 {
		return h, errHash
	}
	if h.hash, err = b64.DecodeString(parts[3]); err != nil || len(h.hash) != hashSize {
		return h, errHash
	}
	return h, nil
}

func (h PasswordHash) is(password string) bool {
	got, err := pbkdf2.Key(sha256.New, password, h.salt, h.iterations, hashSize)
	return err == nil && subtle.ConstantTimeCompare(got, h.hash) == 1
}

// User is who may log in.
type User struct {
	Name string // in any letter case, as in SQL Server
	Hash PasswordHash
}

// logins verifies passwords. What was right once is remembered, under a key that is nowhere else, because
// clients without a pool log in for every request and a hash takes long by design.
type logins struct {
	users map[string]PasswordHash
	none  PasswordHash // takes as long for those who are not users
	key   [32]byte
	busy  chan struct{} // one hash at a time: strangers must not have all processors

	mu       sync.Mutex
	verified map[[sha256.Size]byte]struct{}
}

func newLogins(users []User) *logins {
	l := &logins{users: make(map[string]PasswordHash), busy: make(chan struct{}, 1), verified: make(map[[sha256.Size]byte]struct{})}
	rand.Read(l.key[:])
	l.none = PasswordHash{minIterations, make([]byte, hashSalt), make([]byte, hashSize)}
	for _, u := range users {
		l.users[strings.ToLower(u.Name)] = u.Hash
		l.none.iterations = max(l.none.iterations, u.Hash.iterations)
	}
	return l
}

// allowed reports whether this is a user and their password.
func (l *logins) allowed(ctx context.Context, user, password string) bool {
	user = strings.ToLower(user)
	mac := hmac.New(sha256.New, l.key[:])
	fmt.Fprintf(mac, "%d:%s%s", len(user), user, password)
	var sum [sha256.Size]byte
	mac.Sum(sum[:0])
	l.mu.Lock()
	_, known := l.verified[sum]
	l.mu.Unlock()
	if known {
		return true
	}
	select {
	case l.busy <- struct{}{}:
		defer func() { <-l.busy }()
	case <-ctx.Done():
		return false
	}
	hash, exists := l.users[user]
	if !exists {
		hash = l.none
	}
	if !hash.is(password) || !exists {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.verified) >= maxVerified {
		clear(l.verified)
	}
	l.verified[sum] = struct{}{}
	return true
}
