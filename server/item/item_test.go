package item

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

func mustDecode(t *testing.T, blob []byte) Item {
	t.Helper()
	it, err := Decode(blob)
	if err != nil {
		t.Fatal(err)
	}
	return it
}

// describe writes entries as name:type:bytes=value, for comparison.
func describe(entries []Entry) string {
	var parts []string
	for _, e := range entries {
		s := fmt.Sprintf("%s:%s:%d", e.Name, e.Type, e.Size)
		if e.NullName {
			s = "(null)" + s
		}
		if e.Graph {
			s += " graph"
		}
		if e.Value != nil {
			s += "=" + *e.Value
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, "\n")
}

func compare(t *testing.T, what string, got []Entry, want ...string) {
	t.Helper()
	if got, want := describe(got), strings.Join(want, "\n"); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

// Bytes that real web servers wrote, or that were seen in captures.
func TestDecodeReal(t *testing.T) {
	empty := mustDecode(t, unhex("140000000000FF"))
	if empty.Timeout != 20*time.Minute || empty.Size != 7 || empty.Compressed || len(empty.Items) != 0 || len(empty.StaticObjects) != 0 {
		t.Errorf("empty item: %+v", empty)
	}
	it := mustDecode(t, unhex("14000000010003000000FFFFFFFF046E616D650361676505707269636504000000090000001200000001024564022C000000090000000000404140FF"))
	compare(t, "profiler trace", it.Items, "name:System.String:4=Ed", "age:System.Int32:5=44", "price:System.Double:9=34.5")
	it = mustDecode(t, unhex("14000000010001000000ffffffff01610900000001076361707461696eff"))
	compare(t, "transcript", it.Items, "a:System.String:9=captain")
}

func TestDecode(t *testing.T) {
	it := mustDecode(t, shop())
	compare(t, "items", it.Items,
		"name:System.String:4=Ed",
		fmt.Sprintf("cart:Shop.Cart:%d graph", len(cart)),
		"(null):System.Int32:5=7",
		fmt.Sprintf("list:System.Collections.Generic.List<System.String>:%d graph", len(listOfStrings)),
		"gone:null:1")
	compare(t, "static objects", it.StaticObjects, "basket:Shop.Basket:13", "visits:System.Int32:5=3")

	compressed := mustDecode(t, compress(t, shop()))
	if !compressed.Compressed || compressed.Inflated != len(shop()) || compressed.Size != len(compress(t, shop())) {
		t.Errorf("compressed: %v, inflated %d, size %d", compressed.Compressed, compressed.Inflated, compressed.Size)
	}
	compare(t, "compressed items", compressed.Items, describe(it.Items))
	compare(t, "compressed static objects", compressed.StaticObjects, describe(it.StaticObjects))

	it.HideValues()
	text, err := json.Marshal(it)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "value") || strings.Contains(string(text), "Ed") || !strings.Contains(string(text), "Shop.Cart") {
		t.Errorf("with hidden values: %s", text)
	}
}

func TestValues(t *testing.T) {
	f32 := func(f float32) []byte { return i32(int(int32(math.Float32bits(f)))) }
	f64 := func(f float64) []byte { return i64(int64(math.Float64bits(f))) }
	u16 := func(n uint16) []byte { return binary.LittleEndian.AppendUint16(nil, n) }
	decimal := func(lo, mid, hi, flags uint32) []byte {
		return cat(i32(int(lo)), i32(int(mid)), i32(int(hi)), i32(int(flags)))
	}
	for _, tc := range []struct {
		kind     byte
		payload  []byte
		typeName string
		want     string
	}{
		{1, str(""), "System.String", ""},
		{1, str("Grüße 🛒"), "System.String", "Grüße 🛒"},
		{1, str(strings.Repeat("x", 300)), "System.String", strings.Repeat("x", 300)}, // a length of two groups
		{1, []byte{2, 'a', 0x80}, "System.String", "a\uFFFD"},
		{2, i32(-44), "System.Int32", "-44"},
		{3, []byte{1}, "System.Boolean", "True"},
		{3, []byte{0}, "System.Boolean", "False"},
		{4, i64(0), "System.DateTime", "0001-01-01T00:00:00"},
		{4, i64(621355968000000000), "System.DateTime", "1970-01-01T00:00:00"}, // DateTime.UnixEpoch.Ticks
		{4, i64(621355968000000000 + 1_234_567), "System.DateTime", "1970-01-01T00:00:00.1234567"},
		{4, i64(621355968000000000 - 5_000_000), "System.DateTime", "1969-12-31T23:59:59.5"},
		{4, i64(3155378975999999999), "System.DateTime", "9999-12-31T23:59:59.9999999"}, // DateTime.MaxValue.Ticks
		{5, decimal(345, 0, 0, 1<<16), "System.Decimal", "34.5"},
		{5, decimal(1, 0, 0, 3<<16|1<<31), "System.Decimal", "-0.001"},
		{5, decimal(1, 0, 0, 0), "System.Decimal", "1"},
		{5, decimal(math.MaxUint32, math.MaxUint32, math.MaxUint32, 0), "System.Decimal", "79228162514264337593543950335"}, // Decimal.MaxValue
		{5, decimal(0, 1, 0, 0), "System.Decimal", "4294967296"},
		{6, []byte{200}, "System.Byte", "200"},
		{7, []byte("ß"), "System.Char", "ß"},
		{8, f32(0.1), "System.Single", "0.1"},
		{9, f64(0.1), "System.Double", "0.1"},
		{9, f64(math.Inf(-1)), "System.Double", "-Inf"},
		{10, []byte{200}, "System.SByte", "-56"},
		{11, u16(0xfffe), "System.Int16", "-2"},
		{12, i64(math.MinInt64), "System.Int64", "-9223372036854775808"},
		{13, u16(0xfffe), "System.UInt16", "65534"},
		{14, i32(-1), "System.UInt32", "4294967295"},
		{15, i64(-1), "System.UInt64", "18446744073709551615"},
		{16, i64(0), "System.TimeSpan", "00:00:00"},
		{16, i64(937_845_000_000), "System.TimeSpan", "1.02:03:04.5"},
		{16, i64(-600_000_000), "System.TimeSpan", "-00:01:00"},
		{16, i64(math.MinInt64), "System.TimeSpan", "-10675199.02:48:05.4775808"}, // TimeSpan.MinValue
		{17, unhex("78563412bc9af0de0123456789abcdef"), "System.Guid", "12345678-9abc-def0-0123-456789abcdef"},
		{18, i32(-5), "System.IntPtr", "-5"},
		{18, i64(-5), "System.IntPtr", "-5"},
		{19, i32(-1), "System.UIntPtr", "4294967295"},
		{19, i64(-1), "System.UIntPtr", "18446744073709551615"},
	} {
		value := append([]byte{tc.kind}, tc.payload...)
		it := mustDecode(t, session(items(-1, pair{"k", value}), nil))
		if e := it.Items[0]; e.Type != tc.typeName || e.Value == nil || *e.Value != tc.want || e.Size != len(value) || e.Graph {
			t.Errorf("%s % x: %s, want %s", tc.typeName, tc.payload, describe(it.Items), tc.want)
		}
	}
}

func TestGraphTypes(t *testing.T) {
	class := func(name string) []byte { return graph([]byte{4}, i32(1), str(name), i32(0)) }
	array := func(kind byte, dimensions int, element ...byte) []byte {
		bounds := bytes.Repeat(i32(1), dimensions)
		if kind >= 3 {
			bounds = append(bounds, bounds...)
		}
		return graph([]byte{7}, i32(1), []byte{kind}, i32(dimensions), bounds, element)
	}
	for _, tc := range []struct {
		value []byte
		want  string
	}{
		{byteArray, "System.Byte[]"},
		{graph([]byte{16}, i32(1), i32(0)), "System.Object[]"},
		{graph([]byte{17}, i32(1), i32(0)), "System.String[]"},
		{graph([]byte{6}, i32(1), str("x")), "System.String"},
		{graph([]byte{8, 13}, i64(0)), "System.DateTime"},
		{graph([]byte{5}, i32(1), str("Shop.Colour")), "Shop.Colour"},
		{graph([]byte{2}, i32(1), str("System.Data.DataTable")), "System.Data.DataTable"},
		{array(0, 1, cat([]byte{4}, str("Shop.Line"), i32(2))...), "Shop.Line[]"},
		{array(0, 1, cat([]byte{3}, str("System.Nullable`1[[System.Int32"+mscorlib+"]]"))...), "System.Nullable<System.Int32>[]"},
		{array(2, 2, 0, 8), "System.Int32[,]"},
		{array(1, 1, 7, 8), "System.Int32[][]"},
		{array(1, 1, cat([]byte{4}, str("Shop.Line[,]"), i32(2))...), "Shop.Line[][,]"},
		{array(3, 1, 2), "System.Object[]"},
		{array(0, 1, 5), "System.Object[][]"},
		{class("Shop.Pair`2[[System.Collections.Generic.List`1[[Shop.Line[], Shop, Version=1.0.0.0]]" + mscorlib + "],[System.Int32" + mscorlib + "]]"),
			"Shop.Pair<System.Collections.Generic.List<Shop.Line[]>, System.Int32>"},
		{class("Shop.Outer`1+Inner[[System.Int32" + mscorlib + "]]"), "Shop.Outer+Inner<System.Int32>"},
		{class("Broken`1[[System.Int32"), "Broken`1[[System.Int32"},
		{class("Broken`1[[System.Int32]"), "Broken`1[[System.Int32]"},
		{class(strings.Repeat("A[[", 40) + strings.Repeat("]]", 40)), strings.Repeat("A[[", 40) + strings.Repeat("]]", 40)},
	} {
		it := mustDecode(t, session(items(-1, pair{"k", tc.value}), nil))
		if e := it.Items[0]; e.Type != tc.want || !e.Graph || e.Value != nil || e.Size != len(tc.value) {
			t.Errorf("%s, want a graph of %s", describe(it.Items), tc.want)
		}
	}
}

func TestStaticObjects(t *testing.T) {
	// An object graph has no size, so that only the last one can be read over.
	it := mustDecode(t, session(nil, cat(i32(1), str("cart"), []byte{1}, cart)))
	compare(t, "graph at the end", it.StaticObjects, fmt.Sprintf("cart:Shop.Cart:%d graph", len(cart)))

	it, err := Decode(session(nil, cat(i32(2), str("cart"), []byte{1}, cart, str("visits"), []byte{1, 2}, i32(3))))
	if err == nil || !strings.Contains(err.Error(), "static object 1 of 2") {
		t.Errorf("graph before others: %v", err)
	}
	compare(t, "graph before others", it.StaticObjects, "cart:Shop.Cart:0 graph")
}

// What can be read of a damaged item is read.
func TestDamaged(t *testing.T) {
	good := session(items(-1, pair{"name", cat([]byte{1}, str("Ed"))}, pair{"yrs", cat([]byte{2}, i32(44))}, pair{"cart", cart}), nil)
	changed := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	const keys = 4 + 2 + 4 + 4 // where they begin
	const sizes = keys + 5 + 4 + 5
	const values = sizes + 3*4
	all := []string{"name:System.String:4=Ed", "yrs:System.Int32:5=44", fmt.Sprintf("cart:Shop.Cart:%d graph", len(cart))}
	none := []string{"name::0", "yrs::0", "cart::0"}
	for _, tc := range []struct {
		what  string
		blob  []byte
		err   string
		items []string
	}{
		{"nothing", nil, "not in the format", nil},
		{"other bytes", []byte("<DataSet><Table1/></DataSet>"), "not in the format", nil},
		{"random bytes", bytes.Repeat([]byte{0xde, 0xad, 0xbe, 0xef}, 20), "not in the format", nil},
		{"no end mark", good[:len(good)-1], "end mark is missing", all},
		{"more behind the end", append(bytes.Clone(good), 1, 2), "2 bytes follow its end", all},
		{"other end mark", changed(len(good)-1, 0xfe), "end mark is missing", all},
		{"truncated in the last value", good[:len(good)-4], "value 3 of 3: it ends too early", all},
		{"truncated in the second value", good[:values+6], "value 2 of 3: it ends too early", []string{all[0], "yrs:System.Int32:5", fmt.Sprintf("cart::%d", len(cart))}},
		{"truncated in the sizes", good[:sizes+5], "size of value 2 of 3", []string{"name::4", "yrs::0", "cart::0"}},
		{"truncated in the keys", good[:keys+7], "key 2 of 3: it ends too early", []string{"name::0"}},
		{"truncated before the count", good[:6], "it ends too early", nil},
		{"negative count", changed(keys-5, 0x80), "cannot have -", nil},
		{"count too large", changed(keys-6, 0x7f), "cannot have 8323075 values", nil},
		{"truncated in a pointer", session(items(-1, pair{"p", cat([]byte{18}, i64(7))}), nil)[:25], "value 1 of 1: it ends too early", []string{"p:System.IntPtr:9"}},
		{"size too large", changed(sizes+1, 1), "size of value 2 of 3: its size is not positive", []string{"name::260", "yrs::0", "cart::0"}},
		{"size of nothing", changed(sizes, 0), "size of value 1 of 3", none},
		{"unknown type", changed(values+4, 99), "value 2 of 3: there is no type 99", []string{all[0], "yrs::5", all[2]}},
		{"type 0", changed(values+4, 0), "value 2 of 3: there is no type 0", []string{all[0], "yrs::5", all[2]}},
		{"string longer than its value", changed(values+1, 90), "value 1 of 3: it ends too early", []string{"name:System.String:4", all[1], all[2]}},
		{"string shorter than its value", changed(values+1, 1), "value 1 of 3: 1 bytes follow its end", []string{"name:System.String:4", all[1], all[2]}},
		{"graph without header", changed(values+10, 7), "value 3 of 3: it is marked as an object graph", []string{all[0], all[1], fmt.Sprintf("cart::%d graph", len(cart))}},
	} {
		it, err := Decode(tc.blob)
		if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.HasPrefix(err.Error(), "item: ") {
			t.Errorf("%s: error %v, want one with %q", tc.what, err, tc.err)
		}
		if it.Compressed || it.Size != len(tc.blob) {
			t.Errorf("%s: compressed %v, size %d", tc.what, it.Compressed, it.Size)
		}
		compare(t, tc.what, it.Items, tc.items...)
	}
	// No value in the error: it may be logged.
	for at := range good {
		if _, err := Decode(changed(at, good[at]^0x11)); err != nil && (strings.Contains(err.Error(), "Ed") || strings.Contains(err.Error(), "yrs")) {
			t.Errorf("byte %d changed: the error has session data: %v", at, err)
		}
	}
}

func TestDamagedValues(t *testing.T) {
	for what, value := range map[string][]byte{
		"date before all":    cat([]byte{4}, i64(-1)),
		"date after all":     cat([]byte{4}, i64(3155378976000000000)),
		"decimal of scale29": cat([]byte{5}, i32(1), i32(0), i32(0), i32(29<<16)),
		"decimal with flags": cat([]byte{5}, i32(1), i32(0), i32(0), i32(1)),
		"char of no bytes":   {7},
		"char beyond UTF-16": append([]byte{7}, "🛒"...),
		"half a char":        {7, 0xc3},
		"short guid":         {17, 1, 2, 3},
		"string of 6 groups": {1, 0x81, 0x80, 0x80, 0x80, 0x80, 0x00, 'x'},
		"string of 4 GB":     {1, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"bool of 2 bytes":    {3, 1, 1},
		"array of rank 0":    graph([]byte{7}, i32(1), []byte{0}, i32(0)),
		"array of rank 33":   graph([]byte{7}, i32(1), []byte{0}, i32(33), bytes.Repeat(i32(1), 33), []byte{1}),
		"unknown record":     graph([]byte{99}),
	} {
		it, err := Decode(session(items(-1, pair{"k", value}, pair{"next", cat([]byte{2}, i32(7))}), nil))
		if err == nil || !strings.HasPrefix(err.Error(), "item: value 1 of 2: ") {
			t.Errorf("%s: error %v", what, err)
		}
		if len(it.Items) != 2 || it.Items[0].Value != nil || it.Items[1].Value == nil || *it.Items[1].Value != "7" {
			t.Errorf("%s: %s", what, describe(it.Items))
		}
	}
}

func TestDamagedCompressed(t *testing.T) {
	random := make([]byte, 4000) // does not compress, so that damage in the middle leaves the keys alone
	source := rand.NewChaCha8([32]byte{})
	source.Read(random)
	blob := compress(t, session(items(-1, pair{"first", cat([]byte{1}, str("Ed"))}, pair{"noise", cat([]byte{20}, random)}), nil))

	it, err := Decode(blob[:len(blob)/2])
	if err == nil || !it.Compressed {
		t.Errorf("truncated: %v, compressed %v", err, it.Compressed)
	}
	if len(it.Items) != 2 || it.Items[0].Value == nil || *it.Items[0].Value != "Ed" || it.Items[1].Size != 4001 {
		t.Errorf("truncated: %s", describe(it.Items))
	}
	for what, damaged := range map[string][]byte{
		"end mark is missing":  blob[:len(blob)-1],
		"1 bytes follow its e": append(bytes.Clone(blob), 0xff),
		"it was truncated or":  append(bytes.Clone(blob[:len(blob)-1]), 0xfe),
	} {
		if it, err := Decode(damaged); err == nil || !strings.Contains(err.Error(), what) || !it.Compressed {
			t.Errorf("%s: %v, compressed %v", what, err, it.Compressed)
		}
	}
}

// What was sent to be as expensive as possible costs a bounded multiple of its size.
func TestMemory(t *testing.T) {
	tiny := make([]pair, maxEntries)
	for i := range tiny {
		tiny[i].value = []byte{21}
	}
	many := session(items(-1, tiny...), nil)
	tooMany := session(items(-1, append(tiny, tiny...)...), nil)
	bomb := compress(t, session(items(-1, pair{"zeros", cat([]byte{20}, make([]byte, 16<<20))}), nil))
	text := session(items(-1, pair{"text", cat([]byte{1}, str(strings.Repeat("\x80.", 1<<20)))}), nil)
	for _, tc := range []struct {
		what   string
		blob   []byte
		times  int
		err    string
		values int
	}{
		{"as many values as are read", many, 32, "", maxEntries},
		{"more", tooMany, 1, "only items of up to 65536", 0},
		{"count without values", append(i32(20), 1, 0, 0xff, 0xff, 0xff, 0x7f), 1, "cannot have", 0},
		{"16 MiB of zeros, compressed", bomb, 4*inflateTimes + 1, "the rest is not read", 1},
		{"text that is not UTF-8", text, 8, "", 1},
		{"nested type names", session(items(-1, pair{"k", graph([]byte{4}, i32(1), str(strings.Repeat("A[[", 1<<18)), i32(0))}), nil), 4, "", 1},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		it, err := Decode(tc.blob)
		runtime.ReadMemStats(&after)
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: error %v, want %q", tc.what, err, tc.err)
		}
		if len(it.Items) != tc.values {
			t.Errorf("%s: %d items", tc.what, len(it.Items))
		}
		const fixed = 8 << 20 // an inflater's tables, and inflateBytes with what growing to it takes
		if taken, limit := after.TotalAlloc-before.TotalAlloc, uint64(fixed+tc.times*len(tc.blob)); taken > limit {
			t.Errorf("%s: took %d bytes for a blob of %d, want at most %d", tc.what, taken, len(tc.blob), limit)
		}
	}
}

// FuzzDecode: operators look at what any web application wrote. A panic here would take the server down, with every session that is only in memory.
func FuzzDecode(f *testing.F) {
	for _, blob := range [][]byte{
		nil, unhex("140000000000FF"), shop(), compress(f, shop()), []byte("<DataSet/>"),
		unhex("14000000010003000000FFFFFFFF046E616D650361676505707269636504000000090000001200000001024564022C000000090000000000404140FF"),
		unhex("14000000010001000000ffffffff01610900000001076361707461696eff"),
		session(items(-1, pair{"b", byteArray}, pair{"d", cat([]byte{5}, make([]byte, 16))}, pair{"g", cat([]byte{17}, make([]byte, 16))}), nil),
		session(nil, cat(i32(1), str("cart"), []byte{1}, cart)),
	} {
		f.Add(blob)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		before := bytes.Clone(blob)
		it, err := Decode(blob)
		if !bytes.Equal(before, blob) {
			t.Fatal("the blob was changed")
		}
		size, kept := len(blob)+it.Inflated, 0
		for _, e := range it.Items {
			if e.Size < 0 || err == nil && (e.Size == 0 || e.Type == "") {
				t.Errorf("%s of %d bytes without an error", e.Type, e.Size)
			}
			kept += len(e.Name) + len(e.Type)
			if e.Value != nil {
				kept += len(*e.Value)
			}
		}
		if limit := 64*size + 1024; kept > limit {
			t.Errorf("keeps %d bytes of a blob of %d", kept, size)
		}
		if err != nil || it.Compressed {
			return
		}
		// A truncated item is never taken for a whole one, unless it ends with an object graph, whose size is not written.
		if n := len(it.StaticObjects); n == 0 || !it.StaticObjects[n-1].Graph {
			if _, err := Decode(blob[:len(blob)-1]); err == nil {
				t.Error("truncated, and no error")
			}
		}
		compressed, err := Decode(compress(t, blob))
		if err != nil || !compressed.Compressed || compressed.Inflated != len(blob) {
			t.Fatalf("compressed: %v, %+v", err, compressed)
		}
		compressed.Compressed, compressed.Inflated, compressed.Size = false, 0, it.Size
		if !reflect.DeepEqual(it, compressed) {
			t.Errorf("%+v\ncompressed %+v", it, compressed)
		}
	})
}
