// Package transcript plays written-down conversations of the state server
// protocol against a server and compares its answers byte for byte. It is for tests, of
// this server or of any other that can be reached.
//
// In a transcript, "> " lines go to the server and "< " lines come back, with CR LF
// behind each on the wire. ">x " and "<x " give bytes of a body in hexadecimal.
// {any} stands for one decimal number, {id} for a session ID that is new in every
// play. "# " begins a remark. "! closed" says that
// the server closes the connection here; what follows goes over a new one.
package transcript

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Step is one thing to do: bytes to send, an answer to expect, or (with neither)
// the end of the connection.
type Step struct {
	Line int // in the transcript
	Send []byte
	Want string // one whole answer
}

// Parse reads a transcript and fills a new session ID in.
func Parse(text string) ([]Step, error) {
	text = strings.ReplaceAll(text, "{id}", NewID())
	var steps []Step
	inHead := false // within the head of a wanted answer
	for i, line := range strings.Split(strings.TrimRight(text, "\r\n"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		last := func() *Step { return &steps[len(steps)-1] }
		kind, rest, _ := strings.Cut(line, " ")
		switch kind {
		case "", "#":
		case ">", ">x":
			add := []byte(rest + "\r\n")
			if kind == ">x" {
				var err error
				if add, err = hex.DecodeString(rest); err != nil {
					return nil, fmt.Errorf("line %d: %w", i+1, err)
				}
			}
			if len(steps) == 0 || last().Send == nil {
				steps = append(steps, Step{Line: i + 1})
			}
			last().Send = append(last().Send, add...)
		case "<":
			if !inHead {
				steps = append(steps, Step{Line: i + 1})
			}
			last().Want += rest + "\r\n"
			inHead = rest != ""
		case "<x":
			body, err := hex.DecodeString(rest)
			if err != nil || len(steps) == 0 || inHead {
				return nil, fmt.Errorf("line %d: a body needs a head before it and hexadecimal digits (%v)", i+1, err)
			}
			last().Want += string(body)
		case "!":
			if rest != "closed" {
				return nil, fmt.Errorf("line %d: %q is not known", i+1, line)
			}
			steps = append(steps, Step{Line: i + 1})
		default:
			return nil, fmt.Errorf("line %d: %q is neither sent nor received", i+1, line)
		}
	}
	return steps, nil
}

// Play plays the steps over connections that dial opens. The error names the
// line of the transcript.
func Play(steps []Step, dial func() (net.Conn, error)) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	defer func() { conn.Close() }()
	in := bufio.NewReader(conn)
	for _, step := range steps {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		switch {
		case step.Send != nil:
			_, err = conn.Write(step.Send)
		case step.Want != "":
			err = expect(in, step.Want)
		default:
			if _, err = in.ReadByte(); err != io.EOF {
				return fmt.Errorf("line %d: the connection is still open (%v)", step.Line, err)
			}
			conn.Close()
			if conn, err = dial(); err == nil {
				in.Reset(conn)
			}
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", step.Line, err)
		}
	}
	return nil
}

// NewID returns a session ID as ASP.NET makes them: 24 characters, 120 random bits.
func NewID() string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz012345"
	id := make([]byte, 24)
	rand.Read(id)
	for i, b := range id {
		id[i] = alphabet[b%32]
	}
	return string(id)
}

func expect(in *bufio.Reader, want string) error {
	got, err := ReadAnswer(in)
	if err != nil {
		return fmt.Errorf("want %q, got %q and then %w", want, got, err)
	}
	if !matches(string(got), want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// matches compares got with want, in which {any} stands for one decimal number.
func matches(got, want string) bool {
	for i, part := range strings.Split(want, "{any}") {
		if i > 0 {
			rest := strings.TrimLeft(got, "0123456789")
			if rest == got {
				return false
			}
			got = rest
		}
		var ok bool
		if got, ok = strings.CutPrefix(got, part); !ok {
			return false
		}
	}
	return got == ""
}

// ReadAnswer reads one whole answer, head and body.
func ReadAnswer(in *bufio.Reader) (answer []byte, err error) {
	length := 0
	for {
		line, err := in.ReadString('\n')
		answer = append(answer, line...)
		if err != nil {
			return answer, err
		}
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return answer, err
			}
		}
		if line == "\r\n" {
			break
		}
	}
	body := make([]byte, length)
	n, err := io.ReadFull(in, body)
	return append(answer, body[:n]...), err
}
