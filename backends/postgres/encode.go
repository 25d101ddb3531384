package postgres

import (
	"encoding/binary"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Values go to and from the server in PostgreSQL's binary format. pgx's own mode that works through
// every pooler sends text, which doubles each item.

// array begins an array of n elements.
func array(oid uint32, n, room int) []byte {
	b := make([]byte, 0, 20+room)
	b = binary.BigEndian.AppendUint32(b, 1) // dimensions
	b = binary.BigEndian.AppendUint32(b, 0) // no NULL
	b = binary.BigEndian.AppendUint32(b, oid)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return binary.BigEndian.AppendUint32(b, 1) // the first index
}

func int4s[T any](all []*T, of func(*T) int32) []byte {
	b := array(pgtype.Int4OID, len(all), 8*len(all))
	for _, c := range all {
		b = binary.BigEndian.AppendUint32(b, 4)
		b = binary.BigEndian.AppendUint32(b, uint32(of(c)))
	}
	return b
}

func int8s[T any](all []*T, of func(*T) int64) []byte {
	b := array(pgtype.Int8OID, len(all), 12*len(all))
	for _, c := range all {
		b = binary.BigEndian.AppendUint32(b, 8)
		b = binary.BigEndian.AppendUint64(b, uint64(of(c)))
	}
	return b
}

func timestamps[T any](all []*T, of func(*T) time.Time) []byte {
	b := array(pgtype.TimestamptzOID, len(all), 12*len(all))
	for _, c := range all {
		b = binary.BigEndian.AppendUint32(b, 8)
		b = append(b, timestamp(of(c))...)
	}
	return b
}

// byteas appends what of appends for each.
func byteas[T any](all []*T, room int, of func([]byte, *T) []byte) []byte {
	b := array(pgtype.ByteaOID, len(all), room+4*len(all))
	for _, c := range all {
		at := len(b)
		b = of(append(b, 0, 0, 0, 0), c)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return b
}

// epoch is where timestamptz counts microseconds from.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func timestamp(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.Sub(epoch).Microseconds()))
}

// instant decodes a timestamptz, which must be neither NULL nor infinite.
func instant(b []byte) time.Time {
	return epoch.Add(time.Duration(binary.BigEndian.Uint64(b)) * time.Microsecond)
}

func int4(b []byte) int32 { return int32(binary.BigEndian.Uint32(b)) }
func int8(b []byte) int64 { return int64(binary.BigEndian.Uint64(b)) }
