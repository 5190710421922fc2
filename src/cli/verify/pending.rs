//! A change of a table that the stream does not tell, such as a partition that is detached, is seen in the catalog some seconds
//! later. Until then, and while the table is copied again because of it, the sides differ and nothing is wrong.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::VerifyError;
use crate::{
    check,
    clickhouse::Database,
    model::{ReplicatorConfig, TableSpec},
    postgres::{catalog, session::Session, slot},
    replication::{TablePhase, TableRecord},
};

/// How long a change may take until it is seen and taken up.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// What has become of a table since its record was read.
pub(super) enum Change {
    /// Nothing: a difference is one.
    None,
    /// Something, and the mirror has taken it up: compare again.
    TakenUp,
    /// Something that the mirror has not taken up; why, in words.
    Waits(String),
}

/// Looks at a table's record and at what the catalog says of it.
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

    /// What has become of the table since `before` was read, once the mirror has taken it up, or has had a minute for it.
    pub(super) async fn since(&mut self, before: Option<&TableRecord>) -> Result<Change, VerifyError> {
        let Some(before) = before else { return Ok(Change::None) };
        loop {
            let Some(now) = self.record().await? else { return Ok(Change::None) };
            let Some(why) = self.waits(&now).await? else {
                let same = (&now.layout, now.plan, now.phase) == (&before.layout, before.plan, before.phase);
                return Ok(if same { Change::None } else { Change::TakenUp });
            };
            let slot = slot::read(self.session, &self.config.mirror.slot_name()).await?;
            let at_work = slot.is_some_and(|slot| slot.active_pid.is_some());
            if !at_work || self.started.elapsed() >= PATIENCE {
                let then = if at_work { "" } else { ", and no walferry is at work" };
                return Ok(Change::Waits(format!("{why}{then}: verify it again later")));
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
        let layout = catalog::layouts(self.session, &[oid]).await?.remove(&oid);
        let known = record.layout.is_none() || layout == record.layout;
        Ok((!known).then(|| "it has changed at the source, which the mirror has not taken up".to_owned()))
    }
}
