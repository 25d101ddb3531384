package tds

import (
	"encoding/binary"
	"errors"
)

// Options of a PRELOGIN message (MS-TDS 2.2.6.5).
const (
	preloginVersion     = 0
	preloginEncryption  = 1
	preloginInstance    = 2
	preloginThread      = 3
	preloginMARS        = 4
	preloginFedAuth     = 6
	preloginEnd         = 0xff
	maxPreloginOptions  = 32
	clientCertificate   = 0x80 // added to the encryption that a client asks for
	encryptOff          = 0    // only the login, where both can
	encryptOn           = 1
	encryptNotSupported = 2
	encryptRequired     = 3
)

// prelogin is what matters in a client's PRELOGIN.
type prelogin struct {
	encryption byte
	fedAuth    bool // asks whether federated authentication is wanted
}

var errPrelogin = errors.New("PRELOGIN is malformed")

func parsePrelogin(b []byte) (prelogin, error) {
	p := prelogin{encryption: encryptNotSupported}
	for i := range maxPreloginOptions {
		at := 5 * i
		if at < len(b) && b[at] == preloginEnd {
			return p, nil
		}
		if at+5 > len(b) {
			return p, errPrelogin
		}
		from, n := int(binary.BigEndian.Uint16(b[at+1:])), int(binary.BigEndian.Uint16(b[at+3:]))
		if from+n > len(b) {
			return p, errPrelogin
		}
		switch b[at] {
		case preloginEncryption:
			if n < 1 {
				return p, errPrelogin
			}
			p.encryption = b[from] &^ clientCertificate
		case preloginFedAuth:
			p.fedAuth = true
		}
	}
	return p, errPrelogin
}

// agree returns the encryption to answer, and whether login and all that follows it are encrypted. A client that cannot
// encrypt is told that it is required, and gives up; so are we then.
func (p prelogin) agree(required bool) (answer byte, login, all, ok bool) {
	switch p.encryption {
	case encryptOn:
		return encryptOn, true, true, true
	case encryptRequired:
		return encryptRequired, true, true, true
	case encryptOff:
		if required {
			return encryptRequired, true, true, true
		}
		return encryptOff, true, false, true
	case encryptNotSupported:
		if required {
			return encryptRequired, false, false, false
		}
		return encryptNotSupported, false, false, true
	default:
		return encryptNotSupported, false, false, false
	}
}

// serverVersion is what PRELOGIN and LOGINACK give as the server's version: 15 is SQL Server 2019, and GetMajorVersion's answer.
var serverVersion = [4]byte{15, 0, 0x07, 0xd0}

const majorVersion = 15

// appendReply appends the answer to a PRELOGIN. MARS is not offered: clients go on without.
func (p prelogin) appendReply(dst []byte, encryption byte) []byte {
	type option struct {
		token byte
		data  []byte
	}
	options := []option{
		{preloginVersion, append(serverVersion[:], 0, 0)},
		{preloginEncryption, []byte{encryption}},
		{preloginInstance, []byte{0}},
		{preloginThread, nil},
		{preloginMARS, []byte{0}},
	}
	if p.fedAuth {
		options = append(options, option{preloginFedAuth, []byte{0}})
	}
	at := 5*len(options) + 1
	for _, o := range options {
		dst = append(dst, o.token)
		dst = binary.BigEndian.AppendUint16(dst, uint16(at))
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(o.data)))
		at += len(o.data)
	}
	dst = append(dst, preloginEnd)
	for _, o := range options {
		dst = append(dst, o.data...)
	}
	return dst
}
