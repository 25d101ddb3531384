package tds

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Tokens of an answer (MS-TDS 2.2.7).
const (
	tokenReturnStatus = 0x79
	tokenColMetadata  = 0x81
	tokenError        = 0xaa
	tokenInfo         = 0xab
	tokenReturnValue  = 0xac
	tokenLoginAck     = 0xad
	tokenRow          = 0xd1
	tokenEnvChange    = 0xe3
	tokenDone         = 0xfd
	tokenDoneProc     = 0xfe
	tokenDoneInProc   = 0xff
)

// Status bits of the DONE tokens.
const (
	doneMore      = 0x01
	doneError     = 0x02
	doneCount     = 0x10
	doneAttention = 0x20
)

// What a DONE token says that was done.
const (
	didNothing = 0
	didSelect  = 0xc1
	didInsert  = 0xc3
	didDelete  = 0xc4
	didUpdate  = 0xc5
	didExecute = 0xe0
)

// Environment changes.
const (
	envDatabase   = 1
	envLanguage   = 2
	envPacketSize = 4
	envCollation  = 7
	envReset      = 18
)

// sqlError is an error of a statement, as SQL Server numbers it. The connection goes on.
type sqlError struct {
	number int32
	class  byte
	text   string
}

func (e *sqlError) Error() string { return e.text }

func errorf(number int32, class byte, format string, args ...any) *sqlError {
	return &sqlError{number, class, fmt.Sprintf(format, args...)}
}

// column is a type, and the name of a result's column.
type column struct {
	name string
	typ  columnType
}

// columnType is a type that is sent.
type columnType uint8

const (
	columnInt columnType = iota
	columnBit
	columnText     // nvarchar(4000)
	columnVersion  // char(10)
	columnShort    // varbinary(7000)
	columnLong     // varbinary(max)
	columnDateTime // datetime
)

const (
	shortItem = 7000 // bytes: longer items are in the result set of a Get
	maxText   = 4000 // UTF-16 units
)

// tokens is an answer in the making.
type tokens struct {
	b    []byte
	last int // where the status of the latest DONE is
}

func (t *tokens) u16(n uint16) { t.b = binary.LittleEndian.AppendUint16(t.b, n) }
func (t *tokens) u32(n uint32) { t.b = binary.LittleEndian.AppendUint32(t.b, n) }
func (t *tokens) u64(n uint64) { t.b = binary.LittleEndian.AppendUint64(t.b, n) }

// text8 and text16 append a text with its length in one byte and in two.
func (t *tokens) text8(s string) {
	s = cut(s, math.MaxUint8)
	t.b = append(t.b, byte(utf16Len(s)))
	t.b = appendUTF16(t.b, s)
}

func (t *tokens) text16(s string) {
	s = cut(s, maxText)
	t.u16(uint16(utf16Len(s)))
	t.b = appendUTF16(t.b, s)
}

// cut returns as much of a text as fits into n UTF-16 units.
func cut(s string, n int) string {
	for i, r := range s {
		if n -= utf16Len(string(r)); n < 0 {
			return s[:i]
		}
	}
	return s
}

// sized appends a token whose length follows it.
func (t *tokens) sized(token byte, content func()) {
	t.b = append(t.b, token, 0, 0)
	at := len(t.b)
	content()
	binary.LittleEndian.PutUint16(t.b[at-2:], uint16(len(t.b)-at))
}

func (t *tokens) envChange(kind byte, is, was string) {
	t.sized(tokenEnvChange, func() {
		t.b = append(t.b, kind)
		t.text8(is)
		t.text8(was)
	})
}

func (t *tokens) envCollation() {
	t.sized(tokenEnvChange, func() {
		t.b = append(t.b, envCollation, collationLen)
		t.b = append(t.b, collation[:]...)
		t.b = append(t.b, 0)
	})
}

func (t *tokens) envReset() {
	t.sized(tokenEnvChange, func() { t.b = append(t.b, envReset, 0, 0) })
}

// serverName is what errors and messages say that they come from.
const serverName = "aspstate"

func (t *tokens) message(token byte, number int32, class byte, text, procedure string) {
	t.sized(token, func() {
		t.u32(uint32(number))
		t.b = append(t.b, 1, class) // state
		t.text16(text)
		t.text8(serverName)
		t.text8(procedure)
		t.u32(1) // line
	})
}

func (t *tokens) fail(e *sqlError, procedure string) {
	t.message(tokenError, e.number, e.class, e.text, procedure)
}

func (t *tokens) info(number int32, text string) {
	t.message(tokenInfo, number, 0, text, "")
}

func (t *tokens) loginAck(version uint32) {
	t.sized(tokenLoginAck, func() {
		t.b = append(t.b, 1) // the dialect: T-SQL
		t.b = binary.BigEndian.AppendUint32(t.b, version)
		t.text8("Microsoft SQL Server")
		t.b = append(t.b, serverVersion[:]...)
	})
}

// done ends a statement, a procedure or a batch. More is said to follow, until end.
func (t *tokens) done(token byte, status, did uint16, rows int) {
	t.b = append(t.b, token)
	t.last = len(t.b)
	t.u16(status | doneMore)
	t.u16(did)
	t.u64(uint64(rows))
}

// end says that nothing follows the latest DONE.
func (t *tokens) end() { t.b[t.last] &^= doneMore }

func (t *tokens) returnStatus(n int32) {
	t.b = append(t.b, tokenReturnStatus)
	t.u32(uint32(n))
}

func (t *tokens) returnValue(ordinal int, name string, typ columnType, v value) {
	t.b = append(t.b, tokenReturnValue)
	t.u16(uint16(ordinal))
	t.text8(name)
	t.b = append(t.b, 1) // an OUTPUT parameter
	t.u32(0)             // user type
	t.u16(0)             // flags
	t.typeInfo(typ)
	t.value(typ, v)
}

func (t *tokens) columns(columns ...column) {
	t.b = append(t.b, tokenColMetadata)
	t.u16(uint16(len(columns)))
	for _, c := range columns {
		t.u32(0)      // user type
		t.u16(0x0001) // nullable
		t.typeInfo(c.typ)
		t.text8(c.name)
	}
}

// rowToken begins a row; its values follow.
func (t *tokens) rowToken() { t.b = append(t.b, tokenRow) }

func (t *tokens) typeInfo(typ columnType) {
	switch typ {
	case columnInt:
		t.b = append(t.b, typeIntN, 4)
	case columnBit:
		t.b = append(t.b, typeBitN, 1)
	case columnDateTime:
		t.b = append(t.b, typeDateTimeN, 8)
	case columnShort:
		t.b = append(t.b, typeVarBinary)
		t.u16(shortItem)
	case columnLong:
		t.b = append(t.b, typeVarBinary)
		t.u16(longLength)
	case columnVersion:
		t.b = append(t.b, typeChar)
		t.u16(10)
		t.b = append(t.b, collation[:]...)
	case columnText:
		t.b = append(t.b, typeNVarChar)
		t.u16(2 * maxText)
		t.b = append(t.b, collation[:]...)
	}
}

func (t *tokens) value(typ columnType, v value) {
	switch typ {
	case columnInt:
		if v.null {
			t.b = append(t.b, 0)
			return
		}
		t.b = append(t.b, 4)
		t.u32(uint32(v.n))
	case columnBit:
		if v.null {
			t.b = append(t.b, 0)
			return
		}
		t.b = append(t.b, 1, byte(v.n))
	case columnDateTime:
		if v.null {
			t.b = append(t.b, 0)
			return
		}
		t.b = append(t.b, 8)
		t.b = appendDateTime(t.b, v.t)
	case columnShort:
		if v.null {
			t.u16(longLength)
			return
		}
		t.u16(uint16(len(v.b)))
		t.b = append(t.b, v.b...)
	case columnLong:
		if v.null {
			t.u64(maxChunkNull)
			return
		}
		t.u64(uint64(len(v.b)))
		if len(v.b) > 0 {
			t.u32(uint32(len(v.b)))
			t.b = append(t.b, v.b...)
		}
		t.u32(0)
	case columnVersion:
		if v.null {
			t.u16(longLength)
			return
		}
		t.u16(10)
		t.b = append(t.b, fmt.Sprintf("%-10.10s", v.s)...)
	case columnText:
		if v.null {
			t.u16(longLength)
			return
		}
		s := cut(v.s, maxText)
		t.u16(uint16(2 * utf16Len(s)))
		t.b = appendUTF16(t.b, s)
	}
}
