package tds

import (
	"encoding/binary"
	"errors"
)

// packetType is the first byte of a packet (MS-TDS 2.2.3.1.1).
type packetType uint8

const (
	packetBatch       packetType = 0x01
	packetRPC         packetType = 0x03
	packetReply       packetType = 0x04
	packetAttention   packetType = 0x06
	packetBulk        packetType = 0x07
	packetTransaction packetType = 0x0e
	packetLogin       packetType = 0x10
	packetPrelogin    packetType = 0x12
)

const (
	packetHeader = 8

	statusEOM       = 0x01 // the message ends with this packet
	statusIgnore    = 0x02 // the client gives the message up (with statusEOM)
	statusReset     = 0x08 // the connection is another user's from here on
	statusResetSkip = 0x10 // and its transaction goes on, of which there are none here

	defaultPacket = 4096
	minPacket     = 512
	maxPacket     = 32767
)

// header is the head of a packet. Its length includes the head.
type header struct {
	kind   packetType
	status byte
	length int
}

var errPacket = errors.New("not a TDS packet")

// parseHeader reads the head of a packet, of which b has all bytes.
func parseHeader(b []byte) (header, error) {
	h := header{packetType(b[0]), b[1], int(binary.BigEndian.Uint16(b[2:]))}
	switch h.kind {
	case packetBatch, packetRPC, packetAttention, packetBulk, packetTransaction, packetLogin, packetPrelogin:
	default:
		return h, errPacket
	}
	if h.length < packetHeader || h.length > maxPacket+1 {
		return h, errPacket
	}
	return h, nil
}

// appendMessage appends a message as packets of at most size bytes.
func appendMessage(dst []byte, kind packetType, size int, message []byte) []byte {
	for id := byte(1); ; id++ {
		n := min(len(message), size-packetHeader)
		status := byte(0)
		if n == len(message) {
			status = statusEOM
		}
		dst = append(dst, byte(kind), status)
		dst = binary.BigEndian.AppendUint16(dst, uint16(n+packetHeader))
		dst = append(dst, 0, 0, id, 0) // SPID 0, packet number, window
		dst = append(dst, message[:n]...)
		if message = message[n:]; len(message) == 0 {
			return dst
		}
	}
}
