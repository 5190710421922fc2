//! One snapshot for several transactions, with the list of the transactions that are visible in it.
//!
//! <https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION>

use tokio::sync::Mutex;
use tokio_postgres::types::PgLsn;

use super::{Error, copy, quote, session::Session};
use crate::model::{Lsn, PostgresEndpoint, TableSchema, TransactionSnapshot};

/// An application's lock is never waited for so long that PostgreSQL looks for deadlocks (`deadlock_timeout`,
/// 1 s) and may end the application's transaction for it.
const LOCK_TIMEOUT: &str = "500ms";

/// A transaction that locks tables before it takes its snapshot.
#[derive(Debug)]
pub struct Locking(Session);

impl Locking {
    /// Begins it, on a connection of its own.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn begin(endpoint: &PostgresEndpoint, application_name: &str) -> Result<Locking, Error> {
        let session = Session::connect(endpoint, application_name).await?;
        // Each statement has a snapshot of its own, so that the one that is shared is taken after the locks.
        let sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"
        );
        session.client.batch_execute(&sql).await?;
        Ok(Locking(session))
    }

    /// Keeps TRUNCATE and whatever else rewrites the table, or a partition of it, out until the snapshot is
    /// dropped: PostgreSQL would show it empty to an older snapshot.
    ///
    /// # Errors
    /// [`Error::Server`]: 55P03 when another session holds such a lock; the table is gone or may not be read.
    pub async fn lock(&self, table: &TableSchema) -> Result<(), Error> {
        let sql = copy::lock_statement(table, copy::Source::Whole);
        Ok(self.0.client.batch_execute(&sql).await?)
    }

    /// Takes the snapshot.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a standby; else [`Error`] of the query.
    pub async fn share(self) -> Result<SharedSnapshot, Error> {
        // The snapshot is taken when the statement begins, the log's end is read after that.
        let sql = "SELECT pg_export_snapshot(), pg_current_snapshot()::text, \
                   CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END";
        let row = self.0.client.query_one(sql, &[]).await?;
        let Some(end) = row.try_get::<_, Option<PgLsn>>(2)? else {
            return Err(Error::Unsupported {
                what: "copying a table without a key from a standby".to_owned(),
                message:
                    "a standby's snapshots don't list the transactions in progress; copy from the primary"
                        .to_owned(),
            });
        };
        Ok(SharedSnapshot {
            id: row.try_get(0)?,
            sees: parse(row.try_get(1)?)?,
            end: Lsn(end.into()),
            session: Mutex::new(Some(self.0)),
        })
    }
}

/// A snapshot that other transactions can use for as long as this lives.
#[derive(Debug)]
pub struct SharedSnapshot {
    id: String,
    /// Which transactions it sees.
    pub sees: TransactionSnapshot,
    /// The end of the log when it had been taken: it sees nothing that was committed later.
    pub end: Lsn,
    session: Mutex<Option<Session>>,
}

impl SharedSnapshot {
    /// The statement by which another transaction takes this snapshot for its own, before any query.
    pub fn import_statement(&self) -> String {
        format!("SET TRANSACTION SNAPSHOT {}", quote::literal(&self.id))
    }
}

impl SharedSnapshot {
    /// Whether a session waits for a lock on a table that is kept from being rewritten for this snapshot.
    ///
    /// # Errors
    /// [`Error`] of the query: the snapshot is then gone.
    pub async fn blocks_other_sessions(&self) -> Result<bool, Error> {
        let session = self.session.lock().await;
        let Some(session) = session.as_ref() else { return Ok(false) };
        let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND NOT granted \
                   AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))";
        Ok(session.client.query_one(sql, &[]).await?.try_get(0)?)
    }

    /// Gives up the locks, and the snapshot with them.
    pub async fn release(&self) {
        if let Some(session) = self.session.lock().await.take() {
            session.close().await;
        }
    }
}

/// Whether an import failed because the snapshot is gone.
pub fn is_lost_snapshot(error: &Error) -> bool {
    matches!(error.sqlstate(), Some("22023" | "42704" | "55000"))
}

/// Which transactions a snapshot that is taken now sees.
///
/// # Errors
/// [`Error`] of the query.
pub async fn current(session: &Session) -> Result<TransactionSnapshot, Error> {
    parse(session.client.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?)
}

fn parse(text: String) -> Result<TransactionSnapshot, Error> {
    TransactionSnapshot::try_from(text).map_err(|error| Error::Protocol(error.to_string()))
}
