package item

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

var (
	errShort    = errors.New("it ends too early")
	errNegative = errors.New("a length is negative or too large")
)

// reader reads what .NET's BinaryWriter wrote. After an error it returns zero values.
type reader struct {
	rest []byte
	err  error
}

// bytes returns the next n bytes, or as many as there are and sets the error.
func (r *reader) bytes(n int) []byte {
	switch {
	case r.err != nil:
		return nil
	case n < 0:
		r.err = errNegative
		return nil
	case n > len(r.rest):
		r.err = errShort
		n = len(r.rest)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); r.err == nil {
		return b[0]
	}
	return 0
}

func (r *reader) bool() bool { return r.byte() != 0 }

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); r.err == nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); r.err == nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) int32() int32 { return int32(r.uint32()) }

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); r.err == nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// string reads a length in 7-bit groups, lowest first, and so many bytes of UTF-8.
func (r *reader) string() string {
	var n uint64
	for shift := 0; ; shift += 7 {
		b := r.byte()
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			break
		}
		if shift == 28 { // an int32 has five groups at most
			r.err = errNegative
			break
		}
	}
	if n > math.MaxInt32 {
		r.err = errNegative
	}
	if b := r.bytes(int(n)); r.err == nil {
		return strings.ToValidUTF8(string(b), "\uFFFD")
	}
	return ""
}

// count reads the number of entries. Each takes at least two bytes, so that a wrong number is seen before memory is taken for it.
func (r *reader) count() int {
	n := int(r.int32())
	switch {
	case r.err != nil:
		return 0
	case n < 0 || n > len(r.rest)/2:
		r.err = fmt.Errorf("it cannot have %d values", n)
		return 0
	case n > maxEntries:
		r.err = fmt.Errorf("it has %d values, and only items of up to %d are read", n, maxEntries)
		return 0
	}
	return n
}

// whole reads the value that all of r is.
func (r *reader) whole(e *Entry) error {
	r.value(e)
	if r.err == nil && !e.Graph && len(r.rest) > 0 {
		r.err = fmt.Errorf("%d bytes follow its end", len(r.rest))
	}
	if r.err != nil {
		e.Value = nil
	}
	return r.err
}

// value reads a value as AltSerialization writes it: a byte for the type, then the payload. Of an object graph it reads no more than what
// names the type.
func (r *reader) value(e *Entry) {
	kind := r.byte()
	if r.err != nil {
		return
	}
	if kind == 20 {
		e.Graph = true
		e.Type = r.graphType()
		return
	}
	if int(kind) >= len(typeNames) || typeNames[kind] == "" {
		r.err = fmt.Errorf("there is no type %d", kind)
		return
	}
	e.Type = typeNames[kind]
	if kind == 21 { // null
		return
	}
	if text := r.text(kind); r.err == nil {
		e.Value = &text
	}
}

// typeNames are the types that a value's first byte names.
var typeNames = [22]string{
	1: "System.String", 2: "System.Int32", 3: "System.Boolean", 4: "System.DateTime", 5: "System.Decimal", 6: "System.Byte",
	7: "System.Char", 8: "System.Single", 9: "System.Double", 10: "System.SByte", 11: "System.Int16", 12: "System.Int64",
	13: "System.UInt16", 14: "System.UInt32", 15: "System.UInt64", 16: "System.TimeSpan", 17: "System.Guid",
	18: "System.IntPtr", 19: "System.UIntPtr", 21: "null",
}

// text reads the payload of a simple value.
func (r *reader) text(kind byte) string {
	switch kind {
	case 1:
		return r.string()
	case 2:
		return strconv.Itoa(int(r.int32()))
	case 3:
		if r.bool() {
			return "True"
		}
		return "False"
	case 4:
		return r.dateTime()
	case 5:
		return r.decimal()
	case 6:
		return strconv.Itoa(int(r.byte()))
	case 7:
		return r.char()
	case 8:
		return strconv.FormatFloat(float64(math.Float32frombits(r.uint32())), 'g', -1, 32)
	case 9:
		return strconv.FormatFloat(math.Float64frombits(r.uint64()), 'g', -1, 64)
	case 10:
		return strconv.Itoa(int(int8(r.byte())))
	case 11:
		return strconv.Itoa(int(int16(r.uint16())))
	case 12:
		return strconv.FormatInt(int64(r.uint64()), 10)
	case 13:
		return strconv.Itoa(int(r.uint16()))
	case 14:
		return strconv.FormatUint(uint64(r.uint32()), 10)
	case 15:
		return strconv.FormatUint(r.uint64(), 10)
	case 16:
		return timeSpan(int64(r.uint64()))
	case 17:
		return r.guid()
	case 18: // pointers are as wide as those of the process that wrote them
		if len(r.rest) == 4 {
			return strconv.Itoa(int(r.int32()))
		}
		return strconv.FormatInt(int64(r.uint64()), 10)
	default: // 19
		if len(r.rest) == 4 {
			return strconv.FormatUint(uint64(r.uint32()), 10)
		}
		return strconv.FormatUint(r.uint64(), 10)
	}
}

// ticks are the unit of DateTime and TimeSpan: 100 ns.
const ticksPerSecond = 10_000_000

// dateTime reads the ticks since the year 1. Whether they are UTC or local is not written.
func (r *reader) dateTime() string {
	const (
		last       = 3155378975999999999           // 9999-12-31T23:59:59.9999999
		unixOrigin = 62135596800                   // seconds from the year 1 to 1970
		layout     = "2006-01-02T15:04:05.9999999" // no zeros at its end
	)
	ticks := int64(r.uint64())
	if r.err == nil && (ticks < 0 || ticks > last) {
		r.err = errors.New("it is no date")
	}
	return time.Unix(ticks/ticksPerSecond-unixOrigin, ticks%ticksPerSecond*100).UTC().Format(layout)
}

// timeSpan writes as .NET's constant format does, without zeros at its end.
func timeSpan(ticks int64) string {
	sign, t := "", uint64(ticks)
	if ticks < 0 {
		sign, t = "-", -t
	}
	seconds, fraction := t/ticksPerSecond, t%ticksPerSecond
	s := fmt.Sprintf("%02d:%02d:%02d", seconds/3600%24, seconds/60%60, seconds%60)
	if days := seconds / 86400; days > 0 {
		s = fmt.Sprintf("%d.%s", days, s)
	}
	if fraction > 0 {
		s += strings.TrimRight(fmt.Sprintf(".%07d", fraction), "0")
	}
	return sign + s
}

// decimal reads what Decimal.GetBits gives: 96 bits, low word first, then sign and scale.
func (r *reader) decimal() string {
	lo, mid, hi, flags := r.uint32(), r.uint32(), r.uint32(), r.uint32()
	scale := int(flags >> 16 & 0xff)
	if r.err == nil && (scale > 28 || flags&0x7f00ffff != 0) {
		r.err = errors.New("it is no decimal")
	}
	if r.err != nil {
		return ""
	}
	n := new(big.Int).Lsh(big.NewInt(int64(hi)), 64)
	n.Or(n, new(big.Int).SetUint64(uint64(mid)<<32|uint64(lo)))
	digits := n.String()
	if scale > 0 {
		if missing := scale + 1 - len(digits); missing > 0 {
			digits = strings.Repeat("0", missing) + digits
		}
		point := len(digits) - scale
		digits = digits[:point] + "." + digits[point:]
	}
	if flags>>31 == 1 {
		return "-" + digits
	}
	return digits
}

// char reads one character of UTF-8; BinaryWriter refuses to write half a surrogate pair.
func (r *reader) char() string {
	c, n := utf8.DecodeRune(r.rest)
	if c == utf8.RuneError && n <= 1 || c > math.MaxUint16 {
		if r.err == nil {
			r.err = errors.New("it is no character")
		}
		return ""
	}
	r.bytes(n)
	return string(c)
}

// guid reads Guid.ToByteArray: the first three groups are little-endian.
func (r *reader) guid() string {
	a, b, c := r.uint32(), r.uint16(), r.uint16()
	d := r.bytes(8)
	if r.err != nil {
		return ""
	}
	return fmt.Sprintf("%08x-%04x-%04x-%s-%s", a, b, c, hex.EncodeToString(d[:2]), hex.EncodeToString(d[2:]))
}
