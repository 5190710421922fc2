//! Which transactions others can see.
//!
//! A commit is in the log, and so in the stream and before a slot's start, a moment before anybody sees it;
//! while it waits for a synchronous standby, for long.

use super::{Error, session::Session, shared_snapshot};

/// The transactions that have written in this database, or are prepared, and have not ended: their numbers'
/// lower 32 bits.
///
/// Each holds a lock on its own number until its changes are visible to others. A snapshot would not list
/// those that began last.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn running(session: &Session) -> Result<Vec<u32>, Error> {
    const HOLDERS: &str = "\
        SELECT l.transactionid::text::bigint FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
        WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
          AND (a.datname IS NULL OR a.datname = current_database())";
    let rows = session.client.query(HOLDERS, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get::<_, i64>(0)? as u32)).collect()
}

/// On a standby the number, its lower 32 bits, that is above those of all transactions that have written by
/// now; `None` on a primary.
///
/// A standby does not know who holds which lock at the primary, and its snapshots don't list the running
/// transactions.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn next_on_standby(session: &Session) -> Result<Option<u32>, Error> {
    // The age of the first ordinary number is the distance to the next one.
    const NEXT: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN age('3'::xid) END";
    let age: Option<i32> = session.client.query_one(NEXT, &[]).await?.try_get(0)?;
    Ok(age.map(|age| age.cast_unsigned().wrapping_add(3)))
}

/// The oldest transaction that is running, of those below `next`, by the lower 32 bits of its number; `None`
/// when all have ended.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn oldest_below(session: &Session, next: u32) -> Result<Option<u32>, Error> {
    let oldest = shared_snapshot::current(session).await?.oldest();
    Ok((oldest.wrapping_sub(next).cast_signed() < 0).then_some(oldest))
}

/// Whether a query that begins now sees all of these transactions, if they have committed.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn sees(session: &Session, transactions: &[u32]) -> Result<bool, Error> {
    let snapshot = shared_snapshot::current(session).await?;
    Ok(transactions.iter().all(|xid| snapshot.sees(*xid)))
}

/// Whether a transaction that has committed, but is not visible yet, has altered the table with this oid: it
/// holds its locks until it is.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn alters(session: &Session, transaction: u32, table: u32) -> Result<bool, Error> {
    const LOCKED: &str = "\
        SELECT EXISTS (SELECT FROM pg_locks x JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction \
        WHERE x.locktype = 'transactionid' AND x.granted AND x.transactionid::text = $1 AND l.locktype = 'relation' \
          AND l.relation = $2 AND l.granted AND l.mode = 'AccessExclusiveLock')";
    Ok(session.client.query_one(LOCKED, &[&transaction.to_string(), &table]).await?.try_get(0)?)
}
