package item

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// What follows writes items as .NET does, byte by byte and without the code under test.

func i32(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(int32(n))) }

func i64(n int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(n)) }

// str is BinaryWriter.Write(string).
func str(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// pair is a key with the bytes of its value, the type's byte first.
type pair struct {
	key   string
	value []byte
}

// items is SessionStateItemCollection.Serialize; null is the index of the key that is null, or -1.
func items(null int, pairs ...pair) []byte {
	out := i32(len(pairs))
	if len(pairs) == 0 {
		return out
	}
	out = append(out, i32(null)...)
	var sizes, values []byte
	for i, p := range pairs {
		if i != null {
			out = append(out, str(p.key)...)
		}
		values = append(values, p.value...)
		sizes = append(sizes, i32(len(values))...)
	}
	return cat(out, sizes, values)
}

// session is SessionStateUtility.Serialize with a timeout of 20 minutes; nil stands for no items or static objects.
func session(items, static []byte) []byte {
	flag := func(b []byte) byte {
		if b == nil {
			return 0
		}
		return 1
	}
	return cat(i32(20), []byte{flag(items), flag(static)}, items, static, []byte{0xff})
}

func compress(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.DefaultCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), 0xff)
}

// graph is an object graph's value: BinaryFormatter's header and the given records, up to MessageEnd.
func graph(records ...[]byte) []byte {
	return cat([]byte{20, 0}, i32(1), i32(-1), i32(1), i32(0), cat(records...), []byte{11})
}

const mscorlib = ", mscorlib, Version=4.0.0.0, Culture=neutral, PublicKeyToken=b77a5c561934e089"

var (
	listOfStrings = graph([]byte{4}, i32(1), str("System.Collections.Generic.List`1[[System.String"+mscorlib+"]]"),
		i32(3), str("_items"), str("_size"), str("_version"), []byte{6, 0, 0, 8, 8, 9}, i32(2), i32(1), i32(1),
		[]byte{17}, i32(2), i32(1), []byte{6}, i32(3), str("secret"))
	cart = graph([]byte{12}, i32(2), str("Shop, Version=1.0.0.0, Culture=neutral, PublicKeyToken=null"),
		[]byte{5}, i32(1), str("Shop.Cart"), i32(1), str("total"), []byte{0, 8}, i32(2), i32(7))
	byteArray = graph([]byte{15}, i32(1), i32(3), []byte{2, 1, 2, 3})
)

// shop is an item with a bit of everything.
func shop() []byte {
	return session(
		items(2, pair{"name", cat([]byte{1}, str("Ed"))}, pair{"cart", cart}, pair{"", cat([]byte{2}, i32(7))}, pair{"list", listOfStrings}, pair{"gone", []byte{21}}),
		cat(i32(2), str("basket"), []byte{0}, str("Shop.Basket"), []byte{1}, str("visits"), []byte{1, 2}, i32(3)))
}
