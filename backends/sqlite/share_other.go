//go:build !linux && !windows

package sqlite

// networkShare cannot tell here.
func networkShare(string) (string, error) { return "", nil }
