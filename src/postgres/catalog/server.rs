//! What the server is set to, and what the session's role may do.

use tokio_postgres::types::PgLsn;

use crate::{
    model::Lsn,
    postgres::{Error, session::Session, slot},
};

/// Settings and privileges that replication depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`, such as 180004.
    pub version_num: u32,
    /// `server_version`, for people.
    pub version: String,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// `wal_level`
    pub wal_level: String,
    /// `max_replication_slots`
    pub max_slots: i64,
    /// Replication slots there are, of any kind.
    pub used_slots: i64,
    /// `max_wal_senders`
    pub max_walsenders: i64,
    /// Walsenders running.
    pub used_walsenders: i64,
    /// `max_slot_wal_keep_size` in mebibytes; -1 for no limit.
    pub max_slot_wal_keep_mib: i64,
    /// Whether a slot that is made is kept over a failover: see [`slot::create`].
    pub failover_slots: bool,
    /// Whether a standby reports the oldest row versions it needs to its primary, also across disconnects:
    /// `hot_standby_feedback` with `primary_slot_name`.
    pub standby_feedback: bool,
    /// Settings that the command line of the server process gives, where ALTER SYSTEM has no effect on them.
    pub on_command_line: Vec<String>,
    /// The role the session runs as.
    pub role: String,
    /// The database the session is in.
    pub database: String,
    /// Whether the role may use slots: REPLICATION, superuser, or member of Amazon RDS's `rds_replication`.
    pub may_replicate: bool,
    /// Whether the role may make publications here: CREATE on the database.
    pub may_create: bool,
}

/// `pg_stat_get_wal_senders` shows only some columns to ordinary roles, but always every walsender.
fn statement() -> String {
    format!(
        "\
SELECT current_setting('server_version'), pg_is_in_recovery(),
  current_setting('wal_level'),
  current_setting('max_replication_slots')::bigint, (SELECT count(*) FROM pg_replication_slots),
  current_setting('max_wal_senders')::bigint, (SELECT count(*) FROM pg_stat_replication),
  (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
  current_user::text, current_database()::text,
  (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)
    OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'MEMBER')),
  has_database_privilege(current_database(), 'CREATE'), {},
  current_setting('hot_standby_feedback')::bool AND current_setting('primary_slot_name') <> '',
  ARRAY(SELECT name FROM pg_settings WHERE source = 'command line')",
        slot::KEPT_OVER_FAILOVER
    )
}

/// Reads [`ServerFacts`].
///
/// # Errors
/// [`Error`] of the query.
pub async fn server_facts(session: &Session) -> Result<ServerFacts, Error> {
    let row = session.client.query_one(&statement(), &[]).await?;
    Ok(ServerFacts {
        version_num: session.server_version_num(),
        version: row.try_get(0)?,
        in_recovery: row.try_get(1)?,
        wal_level: row.try_get(2)?,
        max_slots: row.try_get(3)?,
        used_slots: row.try_get(4)?,
        max_walsenders: row.try_get(5)?,
        used_walsenders: row.try_get(6)?,
        max_slot_wal_keep_mib: row.try_get(7)?,
        role: row.try_get(8)?,
        database: row.try_get(9)?,
        may_replicate: row.try_get(10)?,
        may_create: row.try_get(11)?,
        failover_slots: row.try_get(12)?,
        standby_feedback: row.try_get(13)?,
        on_command_line: row.try_get(14)?,
    })
}

/// Whether the server is a standby now.
///
/// # Errors
/// [`Error`] of the query.
pub async fn is_standby(session: &Session) -> Result<bool, Error> {
    Ok(session.client.query_one("SELECT pg_is_in_recovery()", &[]).await?.try_get(0)?)
}

/// The SQL expression of when the server process began.
pub(in crate::postgres) const STARTED: &str = "extract(epoch FROM pg_postmaster_start_time())::text";

/// When the server process began, in seconds of Unix time: it identifies the process.
///
/// # Errors
/// [`Error`] of the query.
pub async fn server_started(session: &Session) -> Result<String, Error> {
    Ok(session.client.query_one(&format!("SELECT {STARTED}"), &[]).await?.try_get(0)?)
}

/// The cluster's unique number, which its standbys have too.
///
/// # Errors
/// [`Error`] of the query.
pub async fn system_identifier(session: &Session) -> Result<String, Error> {
    let sql = "SELECT system_identifier::text FROM pg_control_system()";
    Ok(session.client.query_one(sql, &[]).await?.try_get(0)?)
}

/// Up to where the write-ahead log is durable here: flushed, or on a standby replayed.
///
/// # Errors
/// [`Error`] of the query.
pub async fn current_wal_lsn(session: &Session) -> Result<Lsn, Error> {
    let row = session.client.query_one(&format!("SELECT {CURRENT_LSN}"), &[]).await?;
    let lsn: PgLsn = row.try_get(0)?;
    Ok(Lsn(lsn.into()))
}

/// The SQL expression of [`current_wal_lsn`].
pub(in crate::postgres) const CURRENT_LSN: &str =
    "(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)";
