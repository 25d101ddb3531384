package tds

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// word is a lexical element of a batch.
type word struct {
	kind  wordKind
	text  string // of a name without brackets, a variable with its @, a mark
	value value  // of a literal
}

type wordKind uint8

const (
	wordEnd wordKind = iota
	wordName
	wordVariable
	wordLiteral
	wordMark // one of ; , = . ( ) -
)

// is reports whether the word is this name or mark, in any letter case.
func (w word) is(text string) bool {
	return (w.kind == wordName || w.kind == wordMark) && strings.EqualFold(w.text, text)
}

var errUnclosed = errors.New("a string, name or comment has no end")

// lex splits a batch into words; the last is wordEnd.
func lex(s string) (words []word, err error) {
	for {
		if s, err = skipBlanks(s); err != nil {
			return nil, err
		}
		if s == "" {
			return append(words, word{}), nil
		}
		var w word
		if w, s, err = nextWord(s); err != nil {
			return nil, err
		}
		words = append(words, w)
	}
}

// skipBlanks skips spaces and comments.
func skipBlanks(s string) (string, error) {
	for {
		s = strings.TrimLeftFunc(s, unicode.IsSpace)
		switch {
		case strings.HasPrefix(s, "--"):
			_, s, _ = strings.Cut(s, "\n")
		case strings.HasPrefix(s, "/*"):
			var closed bool
			if _, s, closed = strings.Cut(s[2:], "*/"); !closed {
				return "", errUnclosed
			}
		default:
			return s, nil
		}
	}
}

func nextWord(s string) (w word, rest string, err error) {
	switch c := s[0]; {
	case c == '\'':
		return quoted(s[1:])
	case (c == 'N' || c == 'n') && len(s) > 1 && s[1] == '\'':
		return quoted(s[2:])
	case c == '[', c == '"':
		end := map[byte]string{'[': "]", '"': `"`}[c]
		name, rest, ok := strings.Cut(s[1:], end)
		if !ok {
			return w, "", errUnclosed
		}
		return word{kind: wordName, text: name}, rest, nil
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		n := span(s[2:], func(c rune) bool { return strings.ContainsRune("0123456789abcdefABCDEF", c) })
		digits := s[2 : 2+n]
		if n%2 == 1 {
			digits = "0" + digits
		}
		b, err := hex.DecodeString(digits)
		return word{kind: wordLiteral, value: binaryOf(b)}, s[2+n:], err
	case '0' <= c && c <= '9':
		n := span(s, unicode.IsDigit)
		number, err := strconv.ParseInt(s[:n], 10, 64)
		if err != nil || number > math.MaxUint32 {
			return w, "", fmt.Errorf("%s is too large", cut(s[:n], 30))
		}
		return word{kind: wordLiteral, value: integer(number)}, s[n:], nil
	case strings.IndexByte(";,=.()-", c) >= 0:
		return word{kind: wordMark, text: s[:1]}, s[1:], nil
	}
	n := span(s, func(c rune) bool {
		return c == '_' || c == '@' || c == '#' || c == '$' || unicode.IsLetter(c) || unicode.IsDigit(c)
	})
	if n == 0 {
		r, _ := utf8.DecodeRuneInString(s)
		return w, "", fmt.Errorf("%q has no meaning here", r)
	}
	w = word{kind: wordName, text: s[:n]}
	if s[0] == '@' {
		w.kind = wordVariable
	}
	return w, s[n:], nil
}

// quoted reads a string literal behind its opening quote. Two quotes in it are one.
func quoted(s string) (w word, rest string, err error) {
	var b strings.Builder
	for {
		part, rest, ok := strings.Cut(s, "'")
		if !ok {
			return w, "", errUnclosed
		}
		b.WriteString(part)
		if !strings.HasPrefix(rest, "'") {
			return word{kind: wordLiteral, value: text(b.String())}, rest, nil
		}
		b.WriteByte('\'')
		s = rest[1:]
	}
}

// span is how many bytes s begins with that are of a kind.
func span(s string, of func(rune) bool) int {
	if n := strings.IndexFunc(s, func(c rune) bool { return !of(c) }); n >= 0 {
		return n
	}
	return len(s)
}
