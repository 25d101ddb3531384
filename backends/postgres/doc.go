// Package postgres keeps sessions in PostgreSQL 13 or later, for farms of several servers on one database. All
// servers on a database are equal, and use it as one.
//
// # Batches
//
// Calls queue up in lanes, and a lane runs what has queued up as one statement on the lane's connection: one round trip, one
// commit and one flush of the log for all. A lane reads (Get and ResetTimeout, from a snapshot), one
// touches (GetExclusive, Release, Remove, renewals), one sets items. Statements lock rows in the order of their
// keys, so that servers never deadlock, and a key that is twice in a batch waits for the next one. Where one call makes a statement
// fail, its calls run one by one. Large items, applications and sweeping have connections of their own.
//
// A call ends with its context, whatever its statement does. A connection whose statement takes longer than all of its callers wait is
// closed and replaced; then the outcome is unknown.
//
// # Tokens
//
// What a first try did has to be known in the database, since its answer may have been lost. The row keeps, in recent, an entry for
// each request that changed it and may still be tried again, with the mark and the lock that it was given. Few are
// kept, because a connection (a stream of statements, to be exact) has one statement under way at a time: when it
// writes the row again, the answer to what it wrote before has been delivered, and that entry goes. If it was not
// delivered (the caller had gone, the connection was lost) the connection takes a new stream number, and the entries of the old one stay for a
// minute. So an undisturbed row has an entry or two for each server that used the session in the last minute, and the
// statements find and replace them without looking at each.
//
// A statement that was cut off may still be on its way, and arrive after its retry was answered. So the entry of a retry
// stays for a minute as well, whatever its answer, and no statement has any effect ten seconds (forty with large items) after it was sent (by
// the database's clock, which every answer tells).
//
// Remove leaves the row behind for two minutes, expired and without its item, for the sake of its entries; a session that
// is created anew takes over all but those of locks. A GetExclusive that is tried again after its lock was broken gets its
// cookie again, and the item as it is by then.
//
// Measured, entries in the row cost 6 % more processor time of the server than no tokens at all; a table of requests beside the sessions 30 %, before
// anybody looks tokens up or deletes them.
//
// # Writes
//
// No index has a column that locks, writes or renewals change, so that these stay HOT: the new version of the row is
// on the same page and no index is touched. Expired sessions are found by sweep_at, which is the expiry as of the
// creation: the sweeper moves it forward where it finds the session alive, about once in a timeout. Items over 2 KB are stored out of line, and
// what does not change an item leaves them there.
//
// Everything is committed synchronously: releases and renewals share commits that locks need. A commit that the server did not
// replicate as configured comes with a warning, and counts as unknown.
//
// # Poolers and other engines
//
// Nothing depends on the session of a connection, and every statement is a transaction of its own: PgBouncer with pool_mode=transaction works.
// Without prepared statements there (max_prepared_statements=0) the store notices, and has every statement planned anew; this costs several times the
// processor time. PgBouncer refuses most parameters of connection strings: set search_path with ALTER ROLE.
//
// Tried: PostgreSQL 15, PgBouncer 1.18. By reading only: PostgreSQL 13 (nothing here is newer), Citus, YugabyteDB and CockroachDB. Their
// statements may fail with 40001, which is retried; fillfactor, autovacuum settings and storage are an optional part of the
// schema; the sweeper does without advisory locks where they are refused, and hand-over without NOTIFY. Whether each has every function of
// bytes that the statements use was not tried.
//
// # Handing locks over
//
// A server whose requests wait for a lock marks the row (flags bit 1). The Release, Set or Remove that finds the mark clears
// it and notifies the schema's channel in the same statement; without a mark there is no NOTIFY, whose commits exclude each other.
// LISTEN needs a direct connection: behind a pooler, where nothing arrives, Listen says so and waiters poll.
package postgres
