//! A schema change that the stream does not report, such as a detached partition, is detected in the catalog
//! some seconds later. Until then, and while the table is copied again because of it, the two sides may
//! differ.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::VerifyError;
use crate::{
    check,
    clickhouse::Database,
    model::{ReplicatorConfig, TableSpec},
    postgres::{catalog, session::Session, slot},
    replication::{TablePhase, TableRecord},
};

/// How long a schema change may take until it is detected and applied.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// A slot that nobody reads for so long has no mirror: one that restarts its session is back before.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);

/// What has become of a table since its record was read.
pub(super) enum Change {
    /// Nothing: a difference is one.
    None,
    /// A schema change that the mirror has applied: compare again.
    Applied,
    /// A schema change that the mirror has not applied yet, as a message.
    Waits(String),
}

/// Compares a table's record with the catalog.
pub(super) struct Pending<'a> {
    config: &'a ReplicatorConfig,
    spec: &'a TableSpec,
    session: &'a Session,
    database: &'a Database,
    started: Instant,
}

impl<'a> Pending<'a> {
    pub(super) fn new(
        config: &'a ReplicatorConfig,
        spec: &'a TableSpec,
        session: &'a Session,
        database: &'a Database,
    ) -> Self {
        Pending { config, spec, session, database, started: Instant::now() }
    }

    /// The table's record, if the Mirror has it.
    pub(super) async fn record(&self) -> Result<Option<TableRecord>, VerifyError> {
        let state = check::recorded_state(self.config, self.database).await;
        let mut state = state.map_err(|error| VerifyError::Unsupported(error.to_string()))?;
        Ok(state.tables.remove(&self.spec.id))
    }

    /// What has become of the table since `before` was read, once the mirror has applied it, or a minute has
    /// passed.
    pub(super) async fn since(&mut self, before: Option<&TableRecord>) -> Result<Change, VerifyError> {
        let Some(before) = before else { return Ok(Change::None) };
        let mut idle_since = None;
        loop {
            let Some(now) = self.record().await? else { return Ok(Change::None) };
            let Some(why) = self.waits(&now).await? else {
                let same = (&now.fingerprint, now.plan, now.phase)
                    == (&before.fingerprint, before.plan, before.phase);
                return Ok(if same { Change::None } else { Change::Applied });
            };
            let slot = slot::read(self.session, &self.config.mirror.slot_name()).await?;
            if slot.is_some_and(|slot| slot.active_pid.is_some()) {
                idle_since = None;
            } else {
                idle_since = idle_since.or_else(|| Some(Instant::now()));
            }
            let at_work = idle_since.is_none_or(|since: Instant| since.elapsed() < RESTART_TIMEOUT);
            if !at_work || self.started.elapsed() >= RECHECK_TIMEOUT {
                let then = if at_work { "" } else { ", and no walferry process is running" };
                return Ok(Change::Waits(format!("{why}{then}: run walferry verify again later")));
            }
            sleep(PAUSE).await;
        }
    }

    /// What the mirror has not done yet for the table, if anything.
    async fn waits(&self, record: &TableRecord) -> Result<Option<String>, VerifyError> {
        match record.phase {
            // Nothing more comes.
            TablePhase::Failed => return Ok(None),
            TablePhase::Snapshotting => return Ok(Some("its rows are being copied".to_owned())),
            TablePhase::Streaming => {}
        }
        let oid = record.schema.oid;
        let fingerprint = catalog::fingerprints(self.session, &[oid]).await?.remove(&oid);
        let known = record.fingerprint.is_none() || fingerprint == record.fingerprint;
        Ok((!known)
            .then(|| "the table changed at the source and the mirror has not applied that yet".to_owned()))
    }
}
