//! Who may have written to a table and not committed yet.

use std::time::SystemTime;

use tokio_postgres::Row;

use crate::postgres::{Error, session::Session};

/// A transaction that holds a lock under which rows are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its backend; `None` for a prepared transaction, which belongs to no session any more.
    pub pid: Option<i32>,
    /// Distinguishes this transaction from later ones of the same backend.
    pub virtual_transaction: String,
    /// The session's `application_name`, or the prepared transaction's identifier: whom we wait for.
    pub application_name: String,
    /// When it began, if the role may see that (`pg_read_all_stats`).
    pub since: Option<SystemTime>,
}

/// Who writes rows holds ROW EXCLUSIVE beside any stronger lock, who truncates ACCESS EXCLUSIVE. SHARE and
/// SHARE UPDATE EXCLUSIVE alone allow no writing; (auto)vacuum, ANALYZE and index builds hold them for hours,
/// so they are not waited for.
const LOCK_HOLDERS: &str = "\
SELECT DISTINCT l.pid, l.virtualtransaction, coalesce(a.application_name, 'prepared transaction ' || p.gid, ''),
  coalesce(a.xact_start, p.prepared)
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid'
  AND x.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation' AND l.granted
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.relation IN (SELECT t.oid FROM unnest($1::oid[]) AS t (oid)
    UNION SELECT relid FROM unnest($1::oid[]) AS t (oid), pg_partition_tree(t.oid))";

/// The transactions that may have written to these tables (oids; partitions are included with their root) and
/// are still open.
///
/// Call it after ALTER PUBLICATION has committed, and again until none of the first answer's transactions
/// remains: a change made before that commit isn't in the stream, and only then is sure to be in the copy
/// (CREATE INDEX CONCURRENTLY waits likewise).
///
/// # Errors
/// [`Error`] of the query.
pub async fn lock_holders(session: &Session, table_oids: &[u32]) -> Result<Vec<LockHolder>, Error> {
    session.client.query(LOCK_HOLDERS, &[&table_oids]).await?.iter().map(holder).collect()
}

fn holder(row: &Row) -> Result<LockHolder, Error> {
    Ok(LockHolder {
        pid: row.try_get(0)?,
        virtual_transaction: row.try_get(1)?,
        application_name: row.try_get(2)?,
        since: row.try_get(3)?,
    })
}
