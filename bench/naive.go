package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Naive PostgreSQL: what a web application does that keeps its sessions in a table and asks the database itself. Every
// statement is prepared and commits by itself. The table is as kind to it as ours is: updates stay on their page, and items are
// not compressed.
const (
	naiveTable = `
CREATE TABLE IF NOT EXISTS naive (
    session_id  text        PRIMARY KEY,
    expires     timestamptz NOT NULL,
    timeout     integer     NOT NULL,
    locked      boolean     NOT NULL,
    lock_date   timestamptz NOT NULL,
    lock_cookie integer     NOT NULL,
    item        bytea       NOT NULL
) WITH (fillfactor = 70);
ALTER TABLE naive ALTER COLUMN item SET STORAGE EXTERNAL`

	naiveCreate = `
INSERT INTO naive VALUES ($1, now() + interval '20 minutes', 20, false, now(), 1, $2)
ON CONFLICT (session_id) DO UPDATE SET item = excluded.item, expires = excluded.expires, locked = false`

	naiveLock = `
UPDATE naive SET locked = true, lock_date = now(), lock_cookie = lock_cookie + 1, expires = now() + timeout * interval '1 minute'
WHERE session_id = $1 AND NOT locked AND expires > now()
RETURNING item, timeout, lock_cookie`

	naiveWrite = `
UPDATE naive SET item = $3, locked = false, expires = now() + timeout * interval '1 minute'
WHERE session_id = $1 AND lock_cookie = $2`

	naiveRead = `SELECT item, timeout, lock_cookie FROM naive WHERE session_id = $1 AND NOT locked AND expires > now()`
)

// sendNaive sends the load to a database, over a pool as wide as the load: cycle, get or fill, without a rate.
func (l Load) sendNaive(url string, server meter) (r Result, err error) {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return r, err
	}
	config.MaxConns, config.MinConns = int32(l.Conns), int32(l.Conns)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return r, err
	}
	defer pool.Close()
	if l.Op == "fill" {
		if _, err := pool.Exec(ctx, naiveTable); err != nil {
			return r, err
		}
	}
	items := make([]byte, l.Size+1<<20)
	rand.Read(items)
	warm, from := time.Now(), time.Now().Add(l.Warm)
	to := from.Add(l.For)
	if l.Op == "fill" {
		from, to = warm, warm.Add(24*time.Hour)
	}
	var running sync.WaitGroup
	errs := make([]error, l.Conns)
	histograms := make([]Histogram, l.Conns)
	for c := range l.Conns {
		running.Go(func() {
			own := (l.Sessions - c + l.Conns - 1) / l.Conns
			for n := 0; l.Op != "fill" || n < own; n++ {
				nth := n
				if l.Op != "fill" {
					nth = mathrand.IntN(own)
				}
				begun := time.Now()
				if !begun.Before(to) {
					return
				}
				id := sessionID(uint64(c + nth*l.Conns))
				at := mathrand.IntN(len(items) - l.Size)
				if errs[c] = l.naiveUnit(ctx, pool, string(id[:]), items[at:at+l.Size]); errs[c] != nil {
					return
				}
				if ended := time.Now(); !ended.Before(from) && ended.Before(to) {
					histograms[c].Add(ended.Sub(begun))
				}
			}
		})
	}
	time.Sleep(time.Until(from))
	cost, client, begun := server(), ownCPU(), time.Now()
	if l.Op != "fill" {
		time.Sleep(time.Until(to))
	} else {
		running.Wait()
	}
	used, clientCPU, took := cost(), ownCPU()-client, time.Since(begun)
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	for i := range histograms {
		r.histogram.Merge(&histograms[i])
	}
	r.finish(took, used, clientCPU)
	return r, nil
}

func (l Load) naiveUnit(ctx context.Context, pool *pgxpool.Pool, id string, body []byte) error {
	var item []byte
	var timeout, cookie int
	switch l.Op {
	case "fill":
		_, err := pool.Exec(ctx, naiveCreate, id, body)
		return err
	case "cycle":
		if err := pool.QueryRow(ctx, naiveLock, id).Scan(&item, &timeout, &cookie); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if tag, err := pool.Exec(ctx, naiveWrite, id, cookie, body); err != nil || tag.RowsAffected() != 1 {
			return fmt.Errorf("write: %v, %w", tag, err)
		}
	case "get":
		if err := pool.QueryRow(ctx, naiveRead, id).Scan(&item, &timeout, &cookie); err != nil {
			return fmt.Errorf("read: %w", err)
		}
	default:
		return fmt.Errorf("there is no %q here", l.Op)
	}
	if len(item) != l.Size {
		return fmt.Errorf("the item has %d bytes, want %d", len(item), l.Size)
	}
	return nil
}
