//! Which transactions others can see.
//!
//! A commit is in the log, and so in the stream and before a slot's start, a moment before anybody sees it; while it waits for
//! a synchronous standby, for long.

use super::{Error, session::Session, shared_snapshot};

/// The transactions that have written in this database, or are prepared, and have not ended: their numbers' lower 32 bits.
///
/// Each holds a lock on its own number until others see what it did. A snapshot would not tell those that began last.
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

/// Whether a query that begins now sees all of these transactions, if they have committed.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn sees(session: &Session, transactions: &[u32]) -> Result<bool, Error> {
    let snapshot = shared_snapshot::current(session).await?;
    Ok(transactions.iter().all(|xid| snapshot.sees(*xid)))
}
