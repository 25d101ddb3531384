package main

import "fmt"

// bytesText is a size as people write it: 1 KB is 1,024 bytes.
func bytesText(n int) string {
	switch {
	case n >= 1<<40:
		return trim(fmt.Sprintf("%.1f", float64(n)/(1<<40))) + " TB"
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= 1<<20:
		return trim(fmt.Sprintf("%.1f", float64(n)/(1<<20))) + " MB"
	case n >= 1<<10:
		return trim(fmt.Sprintf("%.1f", float64(n)/(1<<10))) + " KB"
	default:
		return fmt.Sprintf("%d B", n)
	}
}

// trim takes a ".0" off.
func trim(s string) string {
	if len(s) > 2 && s[len(s)-2:] == ".0" {
		return s[:len(s)-2]
	}
	return s
}

// countText is a number with its thousands apart.
func countText(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
