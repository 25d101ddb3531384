// Package sqlserver keeps sessions in SQL Server 2012 or later and Azure SQL, in ASPState's own tables, which web applications
// in mode="SQLServer" may use directly at the same time. Servers on a database are equal.
//
// # Statements
//
// A call is one batch of statements in one transaction and one round trip, on a connection of the pool. A change is an UPDATE whose WHERE
// says when it applies; it locks the row, so that the statements after it in the batch see what it wrote. A batch that
// is refused says why: from there on another round trip renews the session, where that is due. Nothing depends on what an
// UPDATE or OUTPUT says of values before the change, nor on lock hints.
//
// A session that has expired is deleted by the first call that meets it. That makes "missing" final: a call that came
// earlier and still waits for the row finds none.
//
// # Tokens
//
// The only table of our own, ASPStateRequests, has a row (a slot) for each call that a server may have under way; slots are used
// again and again. The batch of a change raises the slot's Seq to the number of its request, or is undone. Where the outcome of
// a try is unknown, its slot is put aside for the retry, which first raises Seq itself: either the try was applied, and the slot
// has what it was answered with, or it never will be, however late it arrives. So nothing here counts on time, and the table stays as
// small as the servers' pools. A GetExclusive that is tried again after its lock was broken gets its cookie again, and the item as
// it is by then.
//
// # Moves
//
// The moves to and from other stores, the servers that share the database, and the sessions that a move has brought are rows of
// ASPStateRequests, too. A database is left by closing all slots, so that a batch under way is either committed before or undone: that costs
// other times nothing. Web applications that use the procedures are not stopped by it. A database that they use is therefore not
// left: Expires tells their use from this store's, which writes whole seconds (see Leave).
//
// # What others see
//
// Items of up to 7,000 bytes are in SessionItemShort, longer ones in SessionItemLong, the other column is NULL. Timeouts are whole
// minutes (others are rounded up). A session that never expires has the largest Timeout there is (4,083 years), which other clients renew as any other.
// Expires is up to a minute later than other clients would set it (backends.Slack). Bit 1 of Flags says that the last
// Get reported and cleared the uninitialized mark, bit 0.
//
// IDs compare exactly. In a database made by aspnet_regsql the key does not tell upper from lower case: an ID that it takes for
// another's is refused and logged while that session lives. Applications are never forgotten, as in ASPState, because
// web servers in mode="SQLServer" keep their AppId for as long as they run; and two names with the same hash are refused, since
// these web servers would compute the same AppId for both.
//
// Names that ASPState cannot hold, because they are longer than 280 bytes, not in lower case or not in the database's code page, are kept
// as "aspstate:" and their SHA-256, the name itself in ASPStateRequests; web applications in mode="SQLServer" have no such names.
//
// # Tried
//
// Babelfish for PostgreSQL 4.3. There a batch whose sp_getapplock is refused must end in an error: five refusals without one on the
// same connection end the whole server (its error stack is full; see granted). Once in many hours it crashed for another reason that is not
// known (a segmentation fault in a Remove). SQL Server itself by reading only: lock hints, DEADLOCK_PRIORITY and READPAST are for it alone.
package sqlserver
