package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes.
type Size int64

// units are the factors between bytes and the units a size may be written in.
var units = []struct {
	name   string
	factor int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

var errSize = errors.New("not a size: write bytes, or a whole number of KiB, MiB, GiB or TiB")

// ParseSize reads a size such as 8192, 64MiB or 1 GiB. Units are binary; KB, MB
// and GB are refused, because they mean different things to different people.
func ParseSize(text string) (Size, error) {
	digits, factor := text, int64(1)
	for _, u := range units {
		if n := len(text) - len(u.name); n > 0 && strings.EqualFold(text[n:], u.name) {
			digits, factor = strings.TrimRight(text[:n], " "), u.factor
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/factor {
		return 0, errSize
	}
	return Size(int64(n) * factor), nil
}

// String writes the size in the largest unit that loses nothing.
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && int64(s)%u.factor == 0 && u.factor > 1 {
			return strconv.FormatInt(int64(s)/u.factor, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
