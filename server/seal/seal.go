// Package seal encrypts session items at rest, so that who reads the database learns nothing of them, and who writes to
// it cannot plant an item, nor put one session's in the place of another's.
//
// A sealed item is
//
//	FE 'aspenc' 01; the key's ID, 4 bytes; nonce, 24 bytes; the item, encrypted; tag, 16 bytes
//
// encrypted by AES-256-GCM. Authenticated with it are its first 36 bytes, the application's name and the session ID; not the AppID, which
// differs between stores, so that sealed items move from one to another as they are.
//
// No item that ASP.NET writes begins like that: as an int32, which items begin with (their timeout in minutes, 525,600 at
// most), the first four bytes are more than 24 million; and as a DEFLATE stream, which items are with compressionEnabled, the first byte
// announces a block of the type that RFC 1951 (3.2.3) reserves. An item of any bytes whatever does once in 2^56.
//
// GCM with random nonces of 96 bits may encrypt 2^32 items with one key, which a busy farm does in a week or two. So each
// item has a key of its own, derived from the key and the first half of its nonce as XAES-256-GCM says (C2SP, 192-bit nonces): 2^80 items.
//
// That an item is an older one of the same session cannot be told from it: a rollback is not detected.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

const (
	idSize    = 4
	nonceSize = 24
	header    = len(magic) + idSize + nonceSize
	tagSize   = 16

	// Overhead is how much longer a sealed item is than the item, in bytes.
	Overhead = header + tagSize
	// KeySize is the length of a key's secret, in bytes.
	KeySize = 32

	mark  = "\xfeaspenc"  // of all formats
	magic = mark + "\x01" // of this one
)

// ID names a key in what it has sealed. It is derived from the key's secret, and tells nothing about it.
type ID [idSize]byte

// String is the ID as people see it.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Why a sealed item cannot be opened.
var (
	// ErrUnknownKey says that none of the keys has sealed it, or that a newer version of this program has.
	ErrUnknownKey = errors.New("the item is encrypted with a key that is not known")
	// ErrDamaged says that it is not what was sealed for this session: damaged, forged, or another session's.
	ErrDamaged = errors.New("the item is not as it was encrypted for this session")
)

// Key seals and opens items.
type Key struct {
	id    ID
	block cipher.Block
	mask  [aes.BlockSize]byte // K1 of CMAC (NIST SP 800-38B)
}

// NewKey makes a key of a secret of KeySize bytes.
func NewKey(secret []byte) (*Key, error) {
	if len(secret) != KeySize {
		return nil, fmt.Errorf("the key has %d bytes, not %d", len(secret), KeySize)
	}
	id, err := hkdf.Key(sha256.New, secret, nil, "aspstate key id", idSize)
	if err != nil {
		return nil, err
	}
	k := &Key{id: ID(id)}
	derived, err := hkdf.Key(sha256.New, secret, nil, "aspstate items", KeySize)
	if err != nil {
		return nil, err
	}
	return k, k.init(derived)
}

func (k *Key) init(secret []byte) (err error) {
	if k.block, err = aes.NewCipher(secret); err != nil {
		return err
	}
	k.block.Encrypt(k.mask[:], k.mask[:])
	var carry byte
	for i := len(k.mask) - 1; i >= 0; i-- {
		k.mask[i], carry = k.mask[i]<<1|carry, k.mask[i]>>7
	}
	k.mask[len(k.mask)-1] ^= carry * 0x87
	return nil
}

// ID returns the key's ID.
func (k *Key) ID() ID { return k.id }

// derive returns the cipher for a nonce, which takes the nonce's second half.
func (k *Key) derive(nonce []byte) cipher.AEAD {
	var secret [KeySize]byte
	for i := range 2 {
		half := secret[i*aes.BlockSize:][:aes.BlockSize]
		copy(half, []byte{0, byte(i + 1), 'X', 0})
		copy(half[4:], nonce[:12])
		for j := range half {
			half[j] ^= k.mask[j]
		}
		k.block.Encrypt(half, half)
	}
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		panic(err) // the length is right
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // the block size is right
	}
	return gcm
}

// Seal returns the item sealed for this session, in one new buffer.
func (k *Key) Seal(application, session string, item []byte) []byte {
	out := make([]byte, header, len(item)+Overhead)
	copy(out, magic)
	copy(out[len(magic):], k.id[:])
	nonce := out[header-nonceSize:]
	rand.Read(nonce)
	return k.derive(nonce).Seal(out, nonce[12:], item, associated(out, application, session))
}

// associated is what is authenticated besides the item. Where the name ends is said by its length.
func associated(head []byte, application, session string) []byte {
	a := make([]byte, 0, len(head)+4+len(application)+len(session))
	a = append(a, head...)
	a = binary.BigEndian.AppendUint32(a, uint32(len(application)))
	a = append(a, application...)
	return append(a, session...)
}

// IsSealed reports whether data are a sealed item, whole or not, of whatever version.
func IsSealed(data []byte) bool { return len(data) >= len(mark) && string(data[:len(mark)]) == mark }

// KeyOf returns the ID of the key that has sealed an item. ok is false where data are not a sealed item of a known format.
func KeyOf(data []byte) (id ID, ok bool) {
	if len(data) <= Overhead || string(data[:len(magic)]) != magic {
		return id, false
	}
	return ID(data[len(magic):][:idSize]), true
}

// Open returns what was sealed for this session by one of the keys, in one new buffer: data stay as they are. The errors are
// ErrUnknownKey and ErrDamaged.
func Open(keys []*Key, application, session string, data []byte) ([]byte, error) {
	if len(data) > len(mark) && IsSealed(data) && data[len(mark)] > magic[len(mark)] {
		return nil, fmt.Errorf("%w: by a newer version (format %d)", ErrUnknownKey, data[len(mark)])
	}
	id, ok := KeyOf(data)
	if !ok {
		return nil, ErrDamaged
	}
	for _, k := range keys {
		if k.id != id {
			continue
		}
		head, rest := data[:header], data[header:]
		nonce := head[header-nonceSize:]
		item, err := k.derive(nonce).Open(make([]byte, 0, len(rest)-tagSize), nonce[12:], rest, associated(head, application, session))
		if err != nil {
			return nil, ErrDamaged
		}
		return item, nil
	}
	return nil, fmt.Errorf("%w (%v)", ErrUnknownKey, id)
}
