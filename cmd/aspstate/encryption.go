package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"aspstate/backends"
	"aspstate/config"
	"aspstate/server"
	"aspstate/server/admin"
	"aspstate/server/seal"
)

// Encryption of items at rest: the keys of the settings, and what speaks against them in a store.

// encryptionOf makes what the settings say about encryption.
func encryptionOf(c *config.Config) (e server.Encryption, err error) {
	e.Seal, e.AcceptUnencrypted = c.Encryption.Seal, c.Encryption.AcceptUnencrypted
	for _, k := range c.Encryption.Keys {
		key, err := seal.NewKey(k.Secret())
		if err != nil {
			return e, fmt.Errorf("encryption.keys: %v: %w", k, err)
		}
		for _, other := range e.Keys { // one of four thousand million
			if other.ID() == key.ID() {
				return e, fmt.Errorf("encryption.keys: %v has the ID of another key (%v): make a new one", k, key.ID())
			}
		}
		e.Keys = append(e.Keys, key)
	}
	return e, nil
}

// directlyUsed is implemented by stores whose database web applications can use beside us.
type directlyUsed interface {
	InDirectUse(ctx context.Context) error
}

// checkDirectUse returns an error where items are to be encrypted which web applications read from the database themselves.
func checkDirectUse(ctx context.Context, store backends.Store, c *config.Config) error {
	direct, ok := store.(directlyUsed)
	if !ok || !c.Encryption.On() {
		return nil
	}
	if err := direct.InDirectUse(ctx); err != nil {
		return fmt.Errorf("encryption.keys: web applications cannot read encrypted sessions from the database, only through aspstate (tds.listen): %w", err)
	}
	return nil
}

const checkTimeout = 30 * time.Second

// checkEncryption finds out whether the store's items go with the settings. An unknown key is an error, because a key that is
// missing here would make pages fail until somebody notices. Items that are not encrypted, and have to be, are only reported: were the start
// refused for them, whoever can plant one could have encryption turned off.
func (p *process) checkEncryption(ctx context.Context, store backends.Store, c *config.Config) error {
	e, err := encryptionOf(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := checkDirectUse(ctx, store, c); err != nil {
		return err
	}
	inspector, ok := store.(backends.Inspector)
	if !ok {
		return nil
	}
	sample, err := server.SampleSealed(ctx, inspector)
	if err != nil {
		return fmt.Errorf("look for encrypted sessions: %w", err)
	}
	for _, id := range slices.SortedFunc(maps.Keys(sample.Keys), func(a, b seal.ID) int { return strings.Compare(a.String(), b.String()) }) {
		if slices.ContainsFunc(e.Keys, func(k *seal.Key) bool { return k.ID() == id }) {
			continue
		}
		return fmt.Errorf("sessions in the store are encrypted with key %v, which is not in encryption.keys%s: list it there, behind the first one", id, idsOf(c, e))
	}
	if c.Encryption.On() && !c.Encryption.AcceptUnencrypted && sample.Clear > 0 {
		p.log.Error("there are sessions in the store that are not encrypted, and pages that ask for them fail; if encryption is being turned on, set encryption.acceptUnencrypted",
			"found", sample.Clear)
	}
	return nil
}

// idsOf are the keys of the settings and their IDs, in brackets; "" where there are none.
func idsOf(c *config.Config, e server.Encryption) string {
	if len(e.Keys) == 0 {
		return ""
	}
	texts := make([]string, len(e.Keys))
	for i, k := range e.Keys {
		texts[i] = fmt.Sprintf("%v is %v", c.Encryption.Keys[i], k.ID())
	}
	return " (" + strings.Join(texts, ", ") + ")"
}

// applyEncryption puts the keys into force. was are the settings before, nil for none.
func (p *process) applyEncryption(was, c *config.Config) {
	e, err := encryptionOf(c)
	if err != nil { // checkEncryption has said so
		return
	}
	p.sessions.SetEncryption(e)
	if len(e.Keys) > 0 && (was == nil || fmt.Sprint(was.Encryption) != fmt.Sprint(c.Encryption) || !slices.Equal(was.Encryption.Keys, c.Encryption.Keys)) {
		ids := make([]string, len(e.Keys))
		for i, k := range e.Keys {
			ids[i] = k.ID().String()
		}
		p.log.Info("encryption of sessions at rest", "encrypts", e.Seal, "keys", ids, "accept_unencrypted", e.AcceptUnencrypted || !e.Seal)
	}
}

// encryptionNotes say what check has to tell about encryption: the IDs of the keys, and what it excludes.
func encryptionNotes(c *config.Config) (notes []string) {
	e, err := encryptionOf(c)
	if err != nil {
		return []string{err.Error()}
	}
	for i, k := range e.Keys {
		notes = append(notes, fmt.Sprintf("the key in %v is %v", c.Encryption.Keys[i], k.ID()))
	}
	if c.Encryption.On() && c.Mode == config.ModeSQLServer && c.SQLConnectionString.Backend == config.SQLServer {
		notes = append(notes, `web applications in mode="SQLServer" that use the database directly cannot read encrypted sessions: have them use aspstate (tds.listen)`)
	}
	return notes
}

func keysCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Count sessions by the key that they are encrypted with",
		Long: "keys counts all sessions by the key that they are encrypted with. It has the server read every session, which takes\n" +
			"its time. A key that no session is encrypted with any more can be removed from encryption.keys.",
		Args: cobra.NoArgs,
	}
	connect, shows := addOperators(cmd, environ), addShows(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := connect()
		if err != nil {
			return err
		}
		return shows.run(cmd.Context(), cmd.OutOrStdout(), func(ctx context.Context) (any, func(io.Writer), error) {
			sum, err := o.keys(ctx)
			return sum, func(w io.Writer) { keyTable(w, sum) }, err
		})
	}
	return cmd
}

// keys asks for the numbers, part by part.
func (o *operators) keys(ctx context.Context) (sum admin.Keys, err error) {
	for query := (url.Values{}); ; query.Set("after", sum.Next) {
		var part admin.Keys
		if err := o.get(ctx, "/api/keys", query, &part); err != nil {
			return sum, err
		}
		sum.NotEncrypted += part.NotEncrypted
		sum.UnknownFormat += part.UnknownFormat
		for _, k := range part.Keys {
			i := slices.IndexFunc(sum.Keys, func(have admin.Key) bool { return have.ID == k.ID })
			if i < 0 {
				sum.Keys = append(sum.Keys, k)
				continue
			}
			sum.Keys[i].Sessions += k.Sessions
		}
		if sum.Next = part.Next; sum.Next == "" {
			return sum, nil
		}
	}
}

var uses = map[string]string{"encrypts": "encrypts", "decrypts": "decrypts", "": "not in encryption.keys: sessions cannot be read"}

func keyTable(w io.Writer, sum admin.Keys) {
	var rows [][]string
	for _, k := range sum.Keys {
		rows = append(rows, []string{k.ID, fmt.Sprint(k.Sessions), uses[k.Use]})
	}
	rows = append(rows, []string{"(none)", fmt.Sprint(sum.NotEncrypted), "not encrypted"})
	if sum.UnknownFormat > 0 {
		rows = append(rows, []string{"(unknown)", fmt.Sprint(sum.UnknownFormat), "in a format that this version cannot read"})
	}
	tableOf(w, []string{"KEY", "SESSIONS", "USE"}, rows)
}
