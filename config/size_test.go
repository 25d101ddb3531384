package config

import "testing"

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "8192": 8192, "8KiB": 8192, "8 kib": 8192, "64MiB": 64 << 20, "1GiB": 1 << 30, "1TiB": 1 << 40, "12B": 12,
		"8388607TiB": 8388607 << 40, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "B", "KiB", "-1", "+1", "1.5MiB", "64MB", "64M", "1e3", "0x10", "1_000", " 1", "8388608TiB", "9223372036854775808", "1 \tKiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
	for size, want := range map[Size]string{0: "0", 1023: "1023", 1024: "1KiB", 1536: "1536", 3 << 20: "3MiB", 1 << 40: "1TiB"} {
		if got := size.String(); got != want {
			t.Errorf("%d is written %s, want %s", size, got, want)
		}
	}
}
