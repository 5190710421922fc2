//! The replication slot: the source's promise to keep every change that we have not made durable yet.
//!
//! <https://www.postgresql.org/docs/current/view-pg-replication-slots.html>

use std::{fmt, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_postgres::{Row, types::PgLsn};

use super::{Error, catalog::CURRENT_LSN, quote::literal, session::Session};
use crate::model::{Lsn, SlotReport};

/// How long an ended walsender gets to let its slot go.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a walsender must have heard nothing from its reader to count as left behind: three times the
/// longest pause between two reports.
const SILENCE: Duration = Duration::from_secs(3);

/// A replication slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Its name.
    pub name: String,
    /// The output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// The database it decodes; `None` for a physical slot.
    pub database: Option<String>,
    /// The process that reads from it.
    pub active_pid: Option<i32>,
    /// The oldest WAL it keeps.
    pub restart_lsn: Option<Lsn>,
    /// Up to where the reader has confirmed to need nothing again.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; a lost slot is invalidated and never usable again.
    pub wal_status: Option<String>,
    /// Why the server has invalidated it, such as `rows_removed`: see [`SlotInfo::cure`].
    pub invalidation_reason: Option<String>,
    /// Bytes of WAL that can still be written before the slot may be lost; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL it keeps; `None` when it is lost.
    pub retained_bytes: Option<u64>,
    /// Up to where the source's WAL is durable.
    pub current_lsn: Lsn,
    /// How many transactions ago the oldest began whose catalog rows it keeps from vacuum.
    pub catalog_xmin_age: Option<i32>,
    /// Since when no client reads from it; from PostgreSQL 17.
    pub inactive_since: Option<String>,
}

/// The statement that drops a slot.
pub fn drop_statement(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", literal(slot))
}

/// The statement that terminates a slot's reader.
pub fn end_reader_statement(slot: &str) -> String {
    format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    )
}

impl SlotInfo {
    /// What to do so that a slot in the place of this one, which was invalidated, is not invalidated too. It
    /// can be followed by a comma.
    ///
    /// <https://www.postgresql.org/docs/current/view-pg-replication-slots.html>
    pub fn cure(&self) -> &'static str {
        match self.invalidation_reason.as_deref() {
            // PostgreSQL 16 says of a standby's slot only that there was a conflict.
            Some("rows_removed" | "conflict") => {
                "set hot_standby_feedback = on and primary_slot_name at the standby"
            }
            Some("wal_level_insufficient") => "set wal_level = logical at the primary",
            Some("idle_timeout") => "raise idle_replication_slot_timeout",
            _ => "raise max_slot_wal_keep_size",
        }
    }

    /// The slot as the status shows it.
    pub fn report(&self) -> SlotReport {
        SlotReport {
            wal_status: self.wal_status.clone(),
            retained_wal_bytes: self.retained_bytes,
            safe_wal_bytes: self.safe_wal_size,
            catalog_xmin_age: self.catalog_xmin_age,
            // The server keeps it for a while after a client reads from the slot again.
            inactive_since: self.inactive_since.clone().filter(|_| self.active_pid.is_none()),
            takeovers: 0,
            failovers: 0,
        }
    }
}

/// What [`slot_info`] reads, of `pg_replication_slots s` and [`CURRENT_LSN`] as `current.lsn`.
pub(super) const COLUMNS: &str = "s.slot_name::text, s.plugin::text, s.database::text, s.active_pid, s.restart_lsn, \
                                  s.confirmed_flush_lsn, s.wal_status, s.safe_wal_size, current.lsn, age(s.catalog_xmin), \
                                  to_jsonb(s) ->> 'inactive_since', CASE WHEN to_jsonb(s) ? 'invalidation_reason' \
                                  THEN to_jsonb(s) ->> 'invalidation_reason' WHEN to_jsonb(s) ->> 'conflicting' = 'true' \
                                  THEN 'conflict' END";

/// How many those are.
pub(super) const COLUMN_COUNT: usize = 12;

/// Whether a slot that is made now is one for failover: the server knows the setting and names standbys, and
/// is none itself.
pub(super) const KEPT_OVER_FAILOVER: &str =
    "coalesce(current_setting('synchronized_standby_slots', true), '') <> '' AND NOT pg_is_in_recovery()";

fn read_statement() -> String {
    format!(
        "SELECT {COLUMNS} FROM pg_replication_slots s, (SELECT {CURRENT_LSN} AS lsn) current WHERE s.slot_name::text = $1::text"
    )
}

/// Reads a slot; `None` when there is none of that name.
///
/// # Errors
/// [`Error`] of the query.
pub async fn read(session: &Session, name: &str) -> Result<Option<SlotInfo>, Error> {
    let row = session.client.query_opt(&read_statement(), &[&name]).await?;
    row.as_ref().map(slot_info).transpose()
}

/// The slot of a row that begins with [`COLUMNS`].
pub(super) fn slot_info(row: &Row) -> Result<SlotInfo, Error> {
    let lsn = |index: usize| -> Result<Option<Lsn>, Error> {
        Ok(row.try_get::<_, Option<PgLsn>>(index)?.map(|lsn| Lsn(lsn.into())))
    };
    let restart_lsn = lsn(4)?;
    let current_lsn = lsn(8)?.unwrap_or_default();
    Ok(SlotInfo {
        name: row.try_get(0)?,
        plugin: row.try_get(1)?,
        database: row.try_get(2)?,
        active_pid: row.try_get(3)?,
        restart_lsn,
        confirmed_flush_lsn: lsn(5)?,
        wal_status: row.try_get(6)?,
        safe_wal_size: row.try_get(7)?,
        retained_bytes: restart_lsn.map(|restart| current_lsn.bytes_since(restart)),
        current_lsn,
        catalog_xmin_age: row.try_get(9)?,
        inactive_since: row.try_get(10)?,
        invalidation_reason: row.try_get(11)?,
    })
}

/// Makes a logical slot for pgoutput and gives the position that streaming begins at. Where the server names
/// standbys that logical slots wait for (`synchronized_standby_slots`, from PostgreSQL 17), it is one that is
/// kept over a failover to them.
///
/// Waits for every transaction that is running when it is called, so it may take long.
///
/// # Errors
/// [`Error`] of the statement: 42710 the slot exists, 53400 no slot is free, 42501 the role may not, 55000
/// `wal_level`.
pub async fn create(session: &Session, name: &str) -> Result<Lsn, Error> {
    let failover: bool =
        session.client.query_one(&format!("SELECT {KEPT_OVER_FAILOVER}"), &[]).await?.try_get(0)?;
    let sql = match failover {
        true => "SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput', failover => true)",
        false => "SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput')",
    };
    let lsn: PgLsn = session.patiently(session.client.query_one(sql, &[&name])).await?.try_get(0)?;
    Ok(Lsn(lsn.into()))
}

/// Ends sessions of `application_name` that are still creating a slot for a client that is gone: the server
/// keeps creating it, for as long as some transaction runs, and the slot would appear after everything was
/// cleaned up. Waits until they have ended.
///
/// # Errors
/// [`Error`] of the queries.
pub async fn end_creation(session: &Session, application_name: &str) -> Result<(), Error> {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1::text \
               AND pid <> pg_backend_pid() AND state = 'active' \
               AND query LIKE '%pg_create_logical_replication_slot%'";
    let started = Instant::now();
    while !session.client.query(sql, &[&application_name]).await?.is_empty() {
        if started.elapsed() >= RELEASE_TIMEOUT {
            tracing::warn!(application_name, "a session is still creating a slot");
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Drops a slot; `false` when it was not there.
///
/// # Errors
/// [`Error`] of the statement: 55006 when a process reads from the slot.
pub async fn drop(session: &Session, name: &str) -> Result<bool, Error> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name::text = $1::text";
    match session.client.query(sql, &[&name]).await.map_err(Error::from) {
        Ok(rows) => Ok(!rows.is_empty()),
        // undefined_object: another client dropped it between the query and the drop.
        Err(error) if error.sqlstate() == Some("42704") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Who reads from a slot after [`release_own_walsender`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// No client: the slot was free, or became free while waiting.
    Free,
    /// No client: the stale walsender of an earlier run was terminated.
    Terminated,
    /// Another application, another process for the same Mirror, or our own that didn't go, as words say.
    Held(String),
}

/// Waits until no client reads from the slot, and ends the walsender that an earlier run of the same Mirror
/// left behind (after a cut, the server may notice only much later).
///
/// Ours is recognized by its application name, and a stale one by its silence: a living reader reports at
/// least once a second.
///
/// # Errors
/// [`Error`] of the queries: 42501 when the walsender runs as another role.
pub async fn release_own_walsender(
    session: &Session,
    slot_name: &str,
    application_name: &str,
) -> Result<Release, Error> {
    let started = Instant::now();
    let mut first: Option<Reader> = None;
    let mut ended = false;
    while let Some(reader) = read_reader(session, slot_name, application_name).await? {
        let known = first.get_or_insert_with(|| reader.clone());
        if !reader.ours || reader != *known || started.elapsed() >= RELEASE_TIMEOUT {
            return Ok(Release::Held(reader.to_string()));
        }
        if !ended && started.elapsed() >= SILENCE {
            session.client.execute("SELECT pg_terminate_backend($1)", &[&reader.pid]).await?;
            tracing::info!(slot = slot_name, pid = reader.pid, "ended the walsender of an earlier run");
            ended = true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(if ended { Release::Terminated } else { Release::Free })
}

/// The slot's reader, as text; `None` when there is none.
///
/// # Errors
/// [`Error`] of the query.
pub async fn reader(session: &Session, slot_name: &str) -> Result<Option<String>, Error> {
    Ok(read_reader(session, slot_name, "").await?.map(|reader| reader.to_string()))
}

/// Who reads from a slot, and when it last reported.
#[derive(Clone, PartialEq, Eq)]
struct Reader {
    pid: i32,
    ours: bool,
    /// Its application name, where the role may see that.
    application_name: Option<String>,
    reported: Option<String>,
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.application_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => write!(f, "PID {} ({name})", self.pid),
            None => write!(f, "PID {}", self.pid),
        }
    }
}

async fn read_reader(
    session: &Session,
    slot_name: &str,
    application_name: &str,
) -> Result<Option<Reader>, Error> {
    let sql = "SELECT s.active_pid, coalesce(a.application_name = $2::text, false), r.reply_time::text, a.application_name \
               FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid \
               LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid \
               WHERE s.slot_name::text = $1::text AND s.active_pid IS NOT NULL";
    let row = session.client.query_opt(sql, &[&slot_name, &application_name]).await?;
    let reader = |row: &Row| -> Result<Reader, Error> {
        Ok(Reader {
            pid: row.try_get(0)?,
            ours: row.try_get(1)?,
            reported: row.try_get(2)?,
            application_name: row.try_get(3)?,
        })
    };
    row.as_ref().map(reader).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_position_of_a_primary_or_a_standby() {
        assert_eq!(
            read_statement(),
            "SELECT s.slot_name::text, s.plugin::text, s.database::text, s.active_pid, s.restart_lsn, \
             s.confirmed_flush_lsn, s.wal_status, s.safe_wal_size, current.lsn, age(s.catalog_xmin), \
             to_jsonb(s) ->> 'inactive_since', CASE WHEN to_jsonb(s) ? 'invalidation_reason' \
             THEN to_jsonb(s) ->> 'invalidation_reason' WHEN to_jsonb(s) ->> 'conflicting' = 'true' \
             THEN 'conflict' END FROM pg_replication_slots s, \
             (SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END) \
             AS lsn) current WHERE s.slot_name::text = $1::text"
        );
    }
}
