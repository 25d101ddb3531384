package item

import (
	"errors"
	"strings"
)

// graphType reads the begin of an object graph up to the name of its root's type ([MS-NRBF] 2.4 to 2.6): the header, the libraries
// (assemblies) that the root's record needs, and the begin of that record.
func (r *reader) graphType() string {
	if r.byte() != 0 { // SerializedStreamHeader
		return r.noGraph()
	}
	r.bytes(4 * 4) // root's ID, header's ID, major and minor version
	for r.err == nil {
		switch r.byte() {
		case 12: // BinaryLibrary
			r.int32()
			r.string()
		case 2, 3, 4, 5: // ClassWithMembers and its relatives, which begin alike
			r.int32()
			return typeName(r.string())
		case 6: // BinaryObjectString
			return "System.String"
		case 7: // BinaryArray
			return r.arrayType()
		case 8: // MemberPrimitiveTyped
			return r.primitive()
		case 15: // ArraySinglePrimitive
			r.bytes(4 + 4)
			return r.primitive() + "[]"
		case 16: // ArraySingleObject
			return "System.Object[]"
		case 17: // ArraySingleString
			return "System.String[]"
		default:
			return r.noGraph()
		}
	}
	return ""
}

func (r *reader) noGraph() string {
	if r.err == nil {
		r.err = errors.New("it is marked as an object graph of BinaryFormatter and is none")
	}
	return ""
}

// arrayType reads a BinaryArray ([MS-NRBF] 2.4.3.1) behind its first byte, up to the type of its elements.
func (r *reader) arrayType() string {
	r.int32()
	kind, rank := r.byte(), int(r.int32())
	if rank < 1 || rank > 32 || kind > 5 { // .NET has arrays of at most 32 dimensions
		return r.noGraph()
	}
	r.bytes(4 * rank) // lengths
	if kind >= 3 {
		r.bytes(4 * rank) // lower bounds
	}
	var element string
	switch r.byte() { // BinaryTypeEnumeration
	case 0:
		element = r.primitive()
	case 1:
		element = "System.String"
	case 2:
		element = "System.Object"
	case 3, 4: // a class of the system's, or of a library whose ID follows
		element = typeName(r.string())
	case 5:
		element = "System.Object[]"
	case 6:
		element = "System.String[]"
	case 7:
		element = r.primitive() + "[]"
	default:
		return r.noGraph()
	}
	if r.err != nil {
		return ""
	}
	// C# writes the outer array's brackets first: System.Int32[][,] is an array of System.Int32[,].
	inner := strings.TrimRight(element, "[,]")
	return inner + "[" + strings.Repeat(",", rank-1) + "]" + element[len(inner):]
}

// primitive reads a PrimitiveTypeEnumeration.
func (r *reader) primitive() string {
	names := [...]string{1: "System.Boolean", 2: "System.Byte", 3: "System.Char", 5: "System.Decimal", 6: "System.Double", 7: "System.Int16",
		8: "System.Int32", 9: "System.Int64", 10: "System.SByte", 11: "System.Single", 12: "System.TimeSpan", 13: "System.DateTime",
		14: "System.UInt16", 15: "System.UInt32", 16: "System.UInt64", 17: "null", 18: "System.String"}
	b := r.byte()
	if int(b) >= len(names) || names[b] == "" {
		return r.noGraph()
	}
	return names[b]
}

// typeName writes the name of a type as C# does and leaves out assemblies:
//
//	System.Collections.Generic.Dictionary`2[[System.String, mscorlib, …],[Shop.Line[], Shop, …]]
//
// is System.Collections.Generic.Dictionary<System.String, Shop.Line[]>. What is not built so stays as it is.
func typeName(name string) string {
	short, rest, ok := shorten(name, 0)
	if !ok || rest != "" {
		return name
	}
	return short
}

// shorten reads one type name without its assembly and returns what follows it.
func shorten(s string, depth int) (short, rest string, ok bool) {
	const maxDepth = 16 // no one reads deeper
	if depth > maxDepth {
		return "", "", false
	}
	var b strings.Builder
	for s != "" {
		switch c := s[0]; {
		case c == ',' || c == ']':
			return b.String(), s, true
		case c == '`': // the number of type arguments, which are seen anyway
			s = strings.TrimLeft(s[1:], "0123456789")
		case strings.HasPrefix(s, "[["):
			s = s[1:]
			b.WriteByte('<')
			for {
				argument, after, ok := shorten(s[1:], depth+1)
				if !ok {
					return "", "", false
				}
				b.WriteString(argument)
				_, after, ok = strings.Cut(after, "]") // skips the assembly
				if !ok || after == "" {
					return "", "", false
				}
				if s = after; strings.HasPrefix(s, ",[") {
					s = s[1:]
					b.WriteString(", ")
					continue
				}
				break
			}
			if s[0] != ']' {
				return "", "", false
			}
			s = s[1:]
			b.WriteByte('>')
		case c == '[': // an array's brackets
			brackets, after, ok := strings.Cut(s, "]")
			if !ok {
				return "", "", false
			}
			b.WriteString(brackets + "]")
			s = after
		default:
			b.WriteByte(c)
			s = s[1:]
		}
	}
	return b.String(), "", true
}
