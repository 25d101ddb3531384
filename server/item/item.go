// Package item reads session items as ASP.NET's in-box session-state stores write them, so that operators can see
// what a session holds: the bytes that the state server protocol carries (MS-ASP) and that ASPState keeps in
// SessionItemShort and SessionItemLong.
//
// Items are little-endian, as .NET's BinaryWriter writes (strings: their length in bytes as a 7-bit number, then UTF-8):
//
//	int32 timeout in minutes; bool has items; bool has static objects; items; static objects; byte 0xFF
//
//	items  = int32 count; unless count is 0: int32 index of the key that is null (-1: none);
//	         the keys that are not null; count x int32 end of the value, counted from the first value's begin; the values
//	value  = byte type; payload
//	static = int32 count; count x (string name; bool has instance; value, or else string type name, bool late bound)
//
// With compressionEnabled="true" all of it is one raw DEFLATE stream (RFC 1951), and one more byte 0xFF follows.
// Nothing marks an item as compressed; one that is does not begin as others do.
//
// Whatever is not of a simple type is an object graph of BinaryFormatter ([MS-NRBF]). Its first records
// name its type; nothing further in it is read, and nothing is ever instantiated.
package item

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"time"
)

// Item is what a session holds.
type Item struct {
	Timeout    time.Duration `json:"-"` // as the web server wrote it into the item; the store has one of its own
	Size       int           `json:"bytes"`
	Compressed bool          `json:"compressed"`
	Inflated   int           `json:"inflated_bytes,omitempty"` // size without compression; where it is not Compressed, 0
	// Items are what pages put into Session, in their order there.
	Items []Entry `json:"items"`
	// StaticObjects are those that global.asax declares with scope="session", as far as the application used one of them.
	StaticObjects []Entry `json:"static_objects"`
}

// Entry is a value in a session, by its name.
type Entry struct {
	Name string `json:"name"` // the key; "" where it is null
	// NullName says that the key is null, which ASP.NET allows once in a session.
	NullName bool `json:"null_name,omitempty"`
	// Type is the full name of the .NET type, as C# writes it: System.Int32, Shop.Cart,
	// System.Collections.Generic.List<System.String>, System.Byte[]. It is "null" for null, and "" where it could not be read.
	Type string `json:"type"`
	// Graph says that the value is an object graph, of which only the type is known.
	Graph bool `json:"graph,omitempty"`
	Size  int  `json:"bytes"` // of the serialized value; 0 where that could not be read
	// Value is a simple value as text that does not depend on a culture: numbers as Go and JSON write them, True or False, 2026-11-22T16:00:00.5 (in
	// whatever time zone the application meant: it is not written), 1.02:03:04.5 for days, hours, minutes, seconds. It is nil
	// for null, for object graphs, for static objects that were not created yet, and where it could not be read.
	Value *string `json:"value,omitempty"`
}

// HideValues takes all values out; names, types and sizes stay.
func (it *Item) HideValues() {
	for _, entries := range [][]Entry{it.Items, it.StaticObjects} {
		for i := range entries {
			entries[i].Value = nil
		}
	}
}

const (
	// A compressed item is read up to this many bytes and this many times its size. Its names and
	// sizes come first, so that they are there even then.
	inflateBytes = 1 << 20
	inflateTimes = 16

	// maxEntries bounds what an item of very many tiny values costs. Pages that keep so many do not exist.
	maxEntries = 1 << 16
)

var errNotItem = errors.New("it is not in the format of ASP.NET's session state; perhaps another serializer wrote it")

// Decode reads an item. Of a damaged one it returns what can be read, and an error that says what is wrong first;
// the error has no session data in it. The memory it takes is bounded by a small multiple of the blob's size.
func Decode(blob []byte) (Item, error) {
	it, err := decode(blob)
	if err != nil {
		inflated, compressedErr := inflate(blob)
		c, damage := decode(inflated)
		c.Compressed, c.Inflated = true, len(inflated)
		if compressedErr == nil {
			compressedErr = damage
		}
		// What begins as an uncompressed item is a damaged one, unless all of it makes sense otherwise.
		if compressedErr == nil || hasHeader(inflated) && !hasHeader(blob) {
			it, err = c, compressedErr
		}
	}
	it.Size = len(blob)
	if err != nil {
		err = fmt.Errorf("item: %w", err)
	}
	return it, err
}

// inflate returns what could be read of a compressed item, also with an error.
func inflate(blob []byte) ([]byte, error) {
	in := bytes.NewReader(blob)
	limit := inflateBytes + inflateTimes*len(blob)
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(in), int64(limit)+1))
	switch {
	case err != nil:
		return out, fmt.Errorf("compressed data are damaged behind %d bytes: %w", len(out), err)
	case len(out) > limit:
		return out[:limit], fmt.Errorf("compressed data are more than %d bytes; the rest is not read", limit)
	}
	if last, err := in.ReadByte(); err != nil || last != end {
		return out, errEnd
	}
	if in.Len() > 0 {
		return out, fmt.Errorf("%d bytes follow its end", in.Len())
	}
	return out, nil
}

// end is the last byte of every item. It is there so that a truncated item shows.
const end = 0xff

var errEnd = errors.New("its end mark is missing; it was truncated or damaged")

// hasHeader reports whether blob begins as an uncompressed item does. Compressed ones do not: their fourth byte is hardly ever 0
// and is not followed by two that are 0 or 1.
func hasHeader(blob []byte) bool {
	return len(blob) >= 6 && blob[3] == 0 && blob[4] <= 1 && blob[5] <= 1
}

// decode reads an uncompressed item.
func decode(blob []byte) (Item, error) {
	it := Item{Items: []Entry{}, StaticObjects: []Entry{}} // lists in JSON, not null
	if !hasHeader(blob) {
		return it, errNotItem
	}
	r := reader{rest: blob}
	it.Timeout = time.Duration(r.int32()) * time.Minute
	hasItems, hasStatic := r.bool(), r.bool()

	var first error // values are read on behind the first one that is damaged
	if hasItems {
		first = r.items(&it)
	}
	if hasStatic && r.err == nil {
		if err := r.staticObjects(&it); first == nil {
			first = err
		}
	}
	if r.err != nil {
		if first == nil {
			first = r.err
		}
		return it, first
	}
	if mark := r.byte(); r.err != nil || mark != end {
		r.err = errEnd
	} else if len(r.rest) > 0 {
		r.err = fmt.Errorf("%d bytes follow its end", len(r.rest))
	}
	if first == nil {
		first = r.err
	}
	return it, first
}

// items reads what pages put into Session. The error is that of a damaged value; r.err is set where reading cannot go on.
func (r *reader) items(it *Item) error {
	count := r.count()
	if count == 0 {
		return r.err
	}
	nullKey := r.int32()
	entries := make([]Entry, count)
	for i := range entries {
		if i == int(nullKey) {
			entries[i].NullName = true
		} else {
			entries[i].Name = r.string()
		}
		if r.err != nil {
			it.Items = entries[:i]
			return fmt.Errorf("key %d of %d: %w", i+1, count, r.err)
		}
	}
	it.Items = entries

	begin := 0
	sized := 0 // so many entries have a size
	for i := range entries {
		last := int(r.int32())
		if r.err == nil && last <= begin {
			r.err = errors.New("its size is not positive")
		}
		if r.err != nil {
			break
		}
		entries[i].Size = last - begin
		begin = last
		sized++
	}
	// The values begin only behind the last size: without all of the sizes none can be found.
	if sized < count {
		return fmt.Errorf("size of value %d of %d: %w", sized+1, count, r.err)
	}

	var first error
	for i := range entries {
		value := reader{rest: r.bytes(entries[i].Size)}
		err := value.whole(&entries[i])
		if r.err != nil { // truncated, but its type may be there
			entries[i].Value, err = nil, r.err
		}
		if err != nil && first == nil {
			first = fmt.Errorf("value %d of %d: %w", i+1, count, err)
		}
		if r.err != nil {
			break
		}
	}
	return first
}

// staticObjects reads the static objects. Their sizes are not written: reading ends at one that has an object graph.
func (r *reader) staticObjects(it *Item) error {
	count := r.count()
	for i := range count {
		var e Entry
		e.Name = r.string()
		hasInstance := r.bool()
		before := len(r.rest)
		switch {
		case r.err != nil:
		case !hasInstance:
			e.Type = typeName(r.string())
			r.bool() // late bound: a COM object or a type that was named by its CLSID
		default:
			r.value(&e)
			if e.Graph && r.err == nil {
				if i < count-1 {
					r.err = errors.New("it is an object graph, and the size of those is not written; the rest is not read")
				} else if len(r.rest) > 0 {
					r.bytes(len(r.rest) - 1) // all but the end mark
				}
			}
		}
		if r.err == nil {
			e.Size = before - len(r.rest)
		}
		if r.err == nil || e.Graph {
			it.StaticObjects = append(it.StaticObjects, e)
		}
		if r.err != nil {
			return fmt.Errorf("static object %d of %d: %w", i+1, count, r.err)
		}
	}
	return r.err
}
