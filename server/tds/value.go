package tds

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/text/encoding/charmap"
)

// value is a parameter's or variable's value. Strings are valid UTF-8.
type value struct {
	kind  kind
	null  bool
	n     int64     // kindInt, kindBit
	s     string    // kindText
	b     []byte    // kindBinary; points into the request
	t     time.Time // kindDateTime
	other string    // kindOther: what it is called
}

type kind uint8

const (
	kindNone kind = iota // NULL that says no more
	kindInt
	kindBit
	kindText
	kindBinary
	kindDateTime
	kindOther // of a type that no procedure takes
)

func integer(n int64) value   { return value{kind: kindInt, n: n} }
func bit(b bool) value        { return value{kind: kindBit, n: map[bool]int64{true: 1}[b]} }
func text(s string) value     { return value{kind: kindText, s: s} }
func binaryOf(b []byte) value { return value{kind: kindBinary, b: b} }

// Types on the wire (MS-TDS 2.2.5.4).
const (
	typeNull      = 0x1f
	typeInt1      = 0x30
	typeBit       = 0x32
	typeInt2      = 0x34
	typeInt4      = 0x38
	typeFloat4    = 0x3b
	typeDateTime  = 0x3d
	typeFloat8    = 0x3e
	typeInt8      = 0x7f
	typeGUID      = 0x24
	typeIntN      = 0x26
	typeBitN      = 0x68
	typeDecimalN  = 0x6a
	typeNumericN  = 0x6c
	typeFloatN    = 0x6d
	typeMoneyN    = 0x6e
	typeDateTimeN = 0x6f
	typeDate      = 0x28
	typeTime      = 0x29
	typeDateTime2 = 0x2a
	typeOffset    = 0x2b
	typeVarBinary = 0xa5
	typeVarChar   = 0xa7
	typeBinary    = 0xad
	typeChar      = 0xaf
	typeNVarChar  = 0xe7
	typeNChar     = 0xef
	typeImage     = 0x22
	typeText      = 0x23
	typeNText     = 0x63
)

const (
	collationLen  = 5
	longLength    = 0xffff // TYPE_INFO's length of the (max) types, whose values come in chunks; else NULL's length
	maxChunkNull  = math.MaxUint64
	maxChunkUnset = math.MaxUint64 - 1
)

// collation is SQL_Latin1_General_CP1_CI_AS, whose code page clients encode varchar in.
var collation = [collationLen]byte{0x09, 0x04, 0xd0, 0x00, 0x34}

var errShort = errors.New("the message ends within a value")

// reader reads a message from its front. After a failure it gives zeros; err tells.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		if r.err == nil {
			r.err = errShort
		}
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) uint8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// value reads a TYPE_INFO and the value that follows it.
func (r *reader) value() value {
	switch t := r.uint8(); t {
	case typeNull:
		return value{null: true}
	case typeInt1:
		return integer(int64(r.uint8()))
	case typeInt2:
		return integer(int64(int16(r.uint16())))
	case typeInt4:
		return integer(int64(int32(r.uint32())))
	case typeInt8:
		return integer(int64(r.uint64()))
	case typeBit:
		return bit(r.uint8() != 0)
	case typeDateTime:
		return dateTime(r.take(8))
	case typeFloat4:
		r.take(4)
		return value{kind: kindOther, other: "real"}
	case typeFloat8:
		r.take(8)
		return value{kind: kindOther, other: "float"}
	case typeIntN, typeBitN, typeDateTimeN, typeFloatN, typeMoneyN, typeGUID, typeDate, typeTime, typeDateTime2, typeOffset, typeDecimalN, typeNumericN:
		return r.shortValue(t)
	case typeVarBinary, typeBinary, typeVarChar, typeChar, typeNVarChar, typeNChar:
		return r.lengthValue(t)
	case typeImage, typeText, typeNText:
		r.uint32() // the longest that the parameter may have
		if t != typeImage {
			r.take(collationLen)
		}
		n := int32(r.uint32())
		if n == -1 {
			return bytesValue(t, nil, true)
		}
		return bytesValue(t, r.take(int(n)), false)
	default:
		if r.err == nil {
			r.err = fmt.Errorf("a parameter has type 0x%02x, which is not served", t)
		}
		return value{}
	}
}

// shortValue reads the rest of a type whose values have a length of one byte.
func (r *reader) shortValue(t byte) value {
	switch t {
	case typeDate:
	case typeDecimalN, typeNumericN:
		r.take(3) // length, precision, scale
	default:
		r.uint8() // length or scale
	}
	b := r.take(int(r.uint8()))
	null := len(b) == 0
	switch t {
	case typeIntN:
		v := value{kind: kindInt, null: null}
		switch len(b) {
		case 0:
		case 1:
			v.n = int64(b[0])
		case 2:
			v.n = int64(int16(binary.LittleEndian.Uint16(b)))
		case 4:
			v.n = int64(int32(binary.LittleEndian.Uint32(b)))
		case 8:
			v.n = int64(binary.LittleEndian.Uint64(b))
		default:
			r.err = fmt.Errorf("an integer has %d bytes", len(b))
		}
		return v
	case typeBitN:
		v := value{kind: kindBit, null: null}
		if !null && b[0] != 0 {
			v.n = 1
		}
		return v
	case typeDateTimeN:
		if !null && len(b) != 8 {
			return value{kind: kindOther, other: "smalldatetime"}
		}
		return dateTime(b)
	default:
		return value{kind: kindOther, null: null, other: "numeric, date or uniqueidentifier"}
	}
}

// lengthValue reads the rest of a type whose values have a length of two bytes, or come in chunks.
func (r *reader) lengthValue(t byte) value {
	most := r.uint16()
	if t != typeVarBinary && t != typeBinary {
		r.take(collationLen)
	}
	if most == longLength && (t == typeVarBinary || t == typeVarChar || t == typeNVarChar) {
		b, null := r.chunks()
		return bytesValue(t, b, null)
	}
	n := r.uint16()
	if n == longLength {
		return bytesValue(t, nil, true)
	}
	return bytesValue(t, r.take(int(n)), false)
}

// chunks reads a value of a (max) type (MS-TDS 2.2.5.2.3).
func (r *reader) chunks() (b []byte, null bool) {
	switch n := r.uint64(); {
	case n == maxChunkNull:
		return nil, true
	case n != maxChunkUnset && n > uint64(len(r.b)):
		r.take(len(r.b) + 1)
		return nil, false
	}
	b = []byte{}
	for first := true; r.err == nil; first = false {
		n := r.uint32()
		if n == 0 {
			break
		}
		chunk := r.take(int(n))
		if first {
			b = chunk // most often it is the only one
		} else {
			b = append(b[:len(b):len(b)], chunk...)
		}
	}
	return b, false
}

func bytesValue(t byte, b []byte, null bool) value {
	switch t {
	case typeVarBinary, typeBinary, typeImage:
		return value{kind: kindBinary, null: null, b: b}
	case typeNVarChar, typeNChar, typeNText:
		return value{kind: kindText, null: null, s: utf16String(b)}
	default:
		return value{kind: kindText, null: null, s: latin1String(b)}
	}
}

func latin1String(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = charmap.Windows1252.DecodeByte(c)
	}
	return string(runes)
}

// dateTimeEpoch is day 0 of a datetime, which has 300 ticks a second.
var dateTimeEpoch = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)

func dateTime(b []byte) value {
	if len(b) != 8 {
		return value{kind: kindDateTime, null: true}
	}
	days, ticks := int32(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint32(b[4:])
	return value{kind: kindDateTime, t: dateTimeEpoch.AddDate(0, 0, int(days)).Add(time.Duration(ticks) * time.Second / 300)}
}

// appendDateTime appends a date and time as it stands on a clock on the wall, in its own zone.
func appendDateTime(dst []byte, t time.Time) []byte {
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	days := int32(midnight.Sub(dateTimeEpoch) / (24 * time.Hour))
	clock := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute +
		time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
	dst = binary.LittleEndian.AppendUint32(dst, uint32(days))
	return binary.LittleEndian.AppendUint32(dst, uint32(clock*3/(10*time.Millisecond)))
}
