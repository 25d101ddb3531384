package config

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// Encryption is about items at rest.
type Encryption struct {
	Keys              EncryptionKeys `key:"keys" default:"" live:"true" doc:"keys that items are encrypted with in the store, each env:NAME or file:PATH; the first encrypts, all decrypt; none if empty"`
	Seal              bool           `key:"seal" default:"true" live:"true" doc:"encrypt what is written from now on, if there are keys"`
	AcceptUnencrypted bool           `key:"acceptUnencrypted" default:"false" live:"true" doc:"accept items that are not encrypted, while encryption is being turned on"`
}

// On reports whether what is written from now on is encrypted.
func (e Encryption) On() bool { return e.Seal && len(e.Keys) > 0 }

// EncryptionKey is a key of 32 bytes, which is never shown.
type EncryptionKey struct {
	From   string // where it is read from, env:NAME or file:PATH
	secret string
}

// Secret is the key itself.
func (k EncryptionKey) Secret() []byte { return []byte(k.secret) }

// String is what may be shown.
func (k EncryptionKey) String() string { return k.From }

// GoString is String: %#v shows no secret either.
func (k EncryptionKey) GoString() string { return k.From }

// EncryptionKeys are keys, the one that encrypts first.
type EncryptionKeys []EncryptionKey

func (ks EncryptionKeys) String() string {
	from := make([]string, len(ks))
	for i, k := range ks {
		from[i] = k.From
	}
	return "[" + strings.Join(from, ", ") + "]"
}

// keyBytes is the length of a key.
const keyBytes = 32

// resolveEncryption reads the keys from where they are. No fault names what it has read there, or a key that stands in the settings.
func (l *loader) resolveEncryption(c *Config, dir string) {
	const key, remedy = "encryption.keys", "make one with: openssl rand -base64 32"
	seen := map[string]bool{}
	for i := range c.Encryption.Keys {
		k := &c.Encryption.Keys[i]
		if !elsewhere(k.From) {
			k.From = "(hidden)"
			l.fault(key, fmt.Sprintf("key %d stands in the settings, which more people can read than should know it", i+1),
				"put it into a file or an environment variable and write file:PATH or env:NAME")
			continue
		}
		text, ok := l.fetch(key, k.From, dir, "the key")
		if !ok {
			continue
		}
		secret, err := base64.StdEncoding.DecodeString(text)
		switch {
		case err != nil:
			l.fault(key, k.From+" is not base64", remedy)
		case len(secret) != keyBytes:
			l.fault(key, fmt.Sprintf("%s has %d bytes, not %d", k.From, len(secret), keyBytes), remedy)
		case seen[string(secret)]:
			l.fault(key, k.From+" is the same key as another one in the list", "remove one")
		}
		k.secret = string(secret)
		seen[k.secret] = true
	}
}

func (l *loader) validateEncryption(c *Config) {
	e := c.Encryption
	switch {
	case len(e.Keys) == 0 && e.AcceptUnencrypted:
		c.warn("encryption.acceptUnencrypted has no effect without encryption.keys")
	case len(e.Keys) == 0:
	case !e.Seal:
		c.warn("encryption.seal is false: what is written from now on is not encrypted, and items that are not encrypted are accepted")
	case e.AcceptUnencrypted:
		c.warn("encryption.acceptUnencrypted is true: who can write to the database can plant sessions; set it to false when \"aspstate sessions keys\" counts none that are not encrypted")
	}
}
