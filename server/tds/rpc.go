package tds

import (
	"errors"
	"fmt"
	"strings"
)

// rpc is a remote procedure call (MS-TDS 2.2.6.6).
type rpc struct {
	name       string // as the client wrote it
	parameters []parameter
}

// parameter is an argument of a call.
type parameter struct {
	name   string // with its @, as the client wrote it; "" is by position
	output bool
	unset  bool // the procedure's default is wanted
	value  value
}

const (
	procByID       = 0xffff // in the place of a name's length: a number follows
	procExecuteSQL = 10

	parameterOutput  = 0x01
	parameterDefault = 0x02

	maxParameters = 2100 // SQL Server's own limit

	rpcNext    = 0xff // another call follows
	rpcNoExec  = 0xfe
	rpcNextOld = 0x80
)

// errorUnknownID says that a special procedure was called that is not served.
type errorUnknownID uint16

func (e errorUnknownID) Error() string { return fmt.Sprintf("procedure number %d", uint16(e)) }

// skipHeaders skips ALL_HEADERS, with which requests begin from TDS 7.2 on.
func (r *reader) skipHeaders() {
	n := r.uint32()
	if r.err == nil && n < 4 {
		r.err = errors.New("ALL_HEADERS are malformed")
	}
	r.take(int(n) - 4)
}

func parseRPC(message []byte) (call rpc, err error) {
	r := &reader{b: message}
	r.skipHeaders()
	switch n := r.uint16(); n {
	case procByID:
		id := r.uint16()
		if r.err == nil && id != procExecuteSQL {
			return call, errorUnknownID(id)
		}
		call.name = executeSQL
	default:
		call.name = utf16String(r.take(2 * int(n)))
	}
	r.uint16() // options: recompile, no metadata
	for r.err == nil && len(r.b) > 0 {
		switch r.b[0] {
		case rpcNext, rpcNoExec, rpcNextOld:
			// No name has so many letters.
			return call, errors.New("several procedures are called at once")
		}
		if len(call.parameters) == maxParameters {
			return call, errors.New("there are too many parameters")
		}
		var p parameter
		p.name = utf16String(r.take(2 * int(r.uint8())))
		status := r.uint8()
		p.output, p.unset = status&parameterOutput != 0, status&parameterDefault != 0
		p.value = r.value()
		call.parameters = append(call.parameters, p)
	}
	return call, r.err
}

// procedureName is the bare name of a procedure, in lower case: that of "[ASPState].[dbo].[TempResetTimeout]" is
// "tempresettimeout". Which database and schema stand in front does not matter.
func procedureName(name string) string {
	name = strings.TrimSpace(name)
	if open := strings.LastIndexByte(name, '['); open >= 0 && strings.HasSuffix(name, "]") {
		name = name[open+1 : len(name)-1]
	} else if dot := strings.LastIndexByte(name, '.'); dot >= 0 {
		name = name[dot+1:]
	}
	return strings.ToLower(strings.Trim(name, `"`))
}
