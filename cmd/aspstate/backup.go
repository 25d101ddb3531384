package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"aspstate/backends/sqlite"
	"aspstate/config"
)

func backupCommand(environ []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Copy the sessions of an SQLite file to another file, while the server serves",
		Long: "backup writes all sessions to a new FILE. It asks the running server, through its listener for operators; if no server has the\n" +
			"database file open, it reads the file itself. To restore, stop the server and put FILE in the place of the database file.\n" +
			"For PostgreSQL and SQL Server use the tools of the database.",
		Args: cobra.ExactArgs(1),
	}
	connect := addOperators(cmd, environ)
	config.AddFlags(cmd.Flags(), "sqlConnectionString")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path := args[0]
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("backup: %s is there already: name a new file", path)
		}
		settings, _ := cmd.Flags().GetString("config")
		here := !cmd.Flags().Changed("admin")
		if here {
			c, err := config.Load(settings, environ, cmd.Flags())
			if err != nil {
				return err
			}
			if here, err = backupHere(cmd.Context(), c, path); err != nil {
				return err
			}
		}
		if !here {
			o, err := connect()
			if err == nil {
				err = o.download(cmd.Context(), "/api/backup", path)
			}
			if err != nil {
				return fmt.Errorf("backup: %w", err)
			}
		}
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has all sessions, %s\n", path, size(info.Size()))
		return err
	}
	return cmd
}

// backupHere makes the backup if no server has the file, and reports whether it did.
func backupHere(ctx context.Context, c *config.Config, path string) (done bool, err error) {
	place := c.Place()
	if place.Mode == config.ModeStateServer || place.Backend != config.SQLite {
		return false, errors.New("backup: only an SQLite file can be backed up: use the tools of the database (see docs/backup.md)")
	}
	if _, err := os.Stat(place.Path); err != nil {
		return false, fmt.Errorf("backup: there is no database: %w; name it in sqlConnectionString or --config", err)
	}
	file, err := sqlite.Open(place.Path)
	switch {
	case errors.Is(err, sqlite.ErrInUse):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, errors.Join(file.Backup(ctx, path), file.Close())
}

// download has the server send a file, and keeps it at a path only if it is whole and on disk.
func (o *operators) download(ctx context.Context, from, path string) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.base+from, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if o.token != "" {
		req.Header.Set("Authorization", "Bearer "+o.token)
	}
	client := o.client
	client.Timeout = 0 // it takes as long as the file is large
	resp, err := client.Do(req)
	if err != nil {
		return o.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.ContentLength <= 0 {
		return o.refused(resp)
	}
	part := path + ".part"
	file, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(file, resp.Body); err == nil { // less than announced is an error
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return nil
}
