package tds

import (
	"encoding/binary"
	"errors"
	"unicode/utf16"
)

// login is what matters in a LOGIN7 message (MS-TDS 2.2.6.4).
type login struct {
	version    uint32 // of TDS
	packetSize int
	integrated bool // wants Windows authentication
	change     bool // wants to change its password
	user       string
	password   string
	database   string
	program    string
}

var errLogin = errors.New("LOGIN7 is malformed")

// The versions of TDS that are spoken. Older clients lack ALL_HEADERS and varbinary(max).
const (
	version72 = 0x72090002
	version73 = 0x730b0003
	version74 = 0x74000004
)

// agreed is the version to speak with a client, 0 if there is none.
func (l login) agreed() uint32 {
	switch {
	case l.version>>24 >= 0x74:
		return version74
	case l.version>>24 == 0x73:
		return version73
	case l.version>>24 == 0x72:
		return version72
	default:
		return 0
	}
}

const loginFixed = 94 // bytes up to and including cbSSPILong

func parseLogin(b []byte) (l login, err error) {
	if len(b) < loginFixed-4 { // cbSSPILong is new in 7.2
		return l, errLogin
	}
	l.version = binary.LittleEndian.Uint32(b[4:])
	l.packetSize = int(binary.LittleEndian.Uint32(b[8:]))
	l.integrated = b[25]&0x80 != 0
	l.change = b[27]&0x01 != 0
	text := func(at int) string {
		from, n := int(binary.LittleEndian.Uint16(b[at:])), 2*int(binary.LittleEndian.Uint16(b[at+2:]))
		if n == 0 {
			return ""
		}
		if from+n > len(b) {
			err = errLogin
			return ""
		}
		field := b[from : from+n]
		if at == 44 { // the password, which is obfuscated
			clear := make([]byte, n)
			for i, c := range field {
				c ^= 0xa5
				clear[i] = c<<4 | c>>4
			}
			field = clear
		}
		return utf16String(field)
	}
	l.user, l.password, l.program, l.database = text(40), text(44), text(48), text(68)
	return l, err
}

// utf16String decodes little-endian UTF-16. Lone surrogates become U+FFFD; an odd last byte is dropped.
func utf16String(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

// appendUTF16 appends a text as little-endian UTF-16.
func appendUTF16(dst []byte, s string) []byte {
	for _, r := range s {
		if r >= 0x10000 {
			high, low := utf16.EncodeRune(r)
			dst = binary.LittleEndian.AppendUint16(dst, uint16(high))
			dst = binary.LittleEndian.AppendUint16(dst, uint16(low))
			continue
		}
		dst = binary.LittleEndian.AppendUint16(dst, uint16(r))
	}
	return dst
}

func utf16Len(s string) (n int) {
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}
