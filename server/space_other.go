//go:build !unix

package server

import "errors"

// Windows has a connection wait with the memory that it reads into.
const canTryRead = false

func tryRead(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
