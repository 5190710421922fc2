//! The Mirror's slot: made, checked, and dropped where nothing is on record of it.

use std::{convert::Infallible, time::Duration};

use super::context::ProvisionContext;
use crate::{
    fault::Reason,
    model::{Lsn, MirrorFailure, MirrorPhase, Progress, ReplicatorConfig},
    postgres::{
        catalog,
        session::Session,
        slot::{self, SlotInfo},
        visibility,
    },
    replication::{
        Destination, Error,
        table::store::{MirrorState, SourceRecord},
    },
};

/// How often the transactions that ran when the slot was made are checked.
const POLL: Duration = Duration::from_millis(20);

/// How long making a slot may take before the status shows what it waits for.
const REPORT_AFTER: Duration = Duration::from_secs(2);

/// The slot's position, and whether it was there before. `announce` records that one is about to be made.
pub(super) async fn ensure_slot<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &MirrorState,
    progress: &Progress,
    announce: impl AsyncFnOnce() -> Result<(), Error>,
) -> Result<(Lsn, bool), Error> {
    let ProvisionContext { config, session, .. } = *context;
    let name = config.mirror.slot_name();
    let found = slot::read(session, &name).await?;
    if state.source.is_some() {
        let found = check_slot(config, state.source.as_ref(), found)?;
        return Ok((found.and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default(), true));
    }
    if let Some(found) = found {
        drop_unrecorded(config, session, state, &found).await?;
    }
    announce().await?;
    let standby = catalog::is_standby(session).await?;
    let lsn = tokio::select! {
        made = slot::create(session, &name) => made?,
        never = report_wait(progress, &name, standby) => match never {},
    };
    tracing::info!(slot = name, %lsn, "created the replication slot");
    progress.set_phase(MirrorPhase::Provisioning, None);
    wait_for_commits(session).await?;
    Ok((lsn, false))
}

/// Drops a slot of this Mirror's name of which nothing is on record: one that a killed run was making, or one
/// that a resync may replace. Its position says nothing about what the destination has.
///
/// # Errors
/// [`Error::SlotUnknown`] where it may be somebody else's.
async fn drop_unrecorded(
    config: &ReplicatorConfig,
    session: &Session,
    state: &MirrorState,
    found: &SlotInfo,
) -> Result<(), Error> {
    require_own(config, found)?;
    let being_made = state.position.as_ref().is_some_and(|position| position.lsn == Lsn::ZERO);
    if !being_made && state.resync.is_none() {
        return Err(Error::SlotUnknown { slot: found.name.clone() });
    }
    slot::end_creation(session, &config.mirror.application_name()).await?;
    if slot::drop(session, &found.name).await? {
        tracing::info!(slot = found.name, "dropped a replication slot that was made and not recorded");
    }
    Ok(())
}

/// Shows what a slot that is being made waits for, when it takes long.
async fn report_wait(progress: &Progress, slot: &str, standby: bool) -> Infallible {
    tokio::time::sleep(REPORT_AFTER).await;
    let waits = "PostgreSQL waits for transactions that ran when the slot was asked for";
    let message = match standby {
        true => format!(
            "replication slot {slot} is being made: {waits}, and the standby has to hear of them from the primary, which says nothing while it is \
             idle. To have it say so, run SELECT pg_log_standby_snapshot() at the primary, several times if transactions run there"
        ),
        false => format!(
            "replication slot {slot} is being made: {waits}. To see them, run SELECT pid::text AS pid_or_gid, xact_start, application_name AS \
             application_or_owner FROM pg_stat_activity WHERE backend_xid IS NOT NULL UNION ALL SELECT gid, prepared, owner::text FROM \
             pg_prepared_xacts ORDER BY 2; end them, or run COMMIT PREPARED or ROLLBACK PREPARED for a prepared one"
        ),
    };
    tracing::info!(slot, why = message, "waits for the replication slot");
    let failure = MirrorFailure::new(Reason::SourceSlotNotReady, message);
    progress.set_phase(MirrorPhase::Provisioning, Some(failure));
    std::future::pending().await
}

/// Waits for the transactions that run when a slot has just been made: one whose commit is in the log before
/// the slot's start is not in the stream, and not in the copy either as long as it is not visible.
async fn wait_for_commits(session: &Session) -> Result<(), Error> {
    let mut awaited = visibility::running(session).await?;
    let mut reported = false;
    while !awaited.is_empty() {
        let running = visibility::running(session).await?;
        awaited.retain(|transaction| running.contains(transaction));
        if !awaited.is_empty() && !std::mem::replace(&mut reported, true) {
            tracing::info!(transactions = ?awaited, "waits for transactions that ran when the slot was made");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// The Mirror's slot as it was found, checked; `None` only when the Mirror has never had one.
///
/// # Errors
/// [`Error::SlotMissing`], [`Error::SlotInvalidated`], [`Error::SlotForeign`], [`Error::SlotNotReady`].
pub(in crate::replication) fn check_slot(
    config: &ReplicatorConfig,
    source: Option<&SourceRecord>,
    found: Option<SlotInfo>,
) -> Result<Option<SlotInfo>, Error> {
    let name = config.mirror.slot_name();
    let Some(found) = found else {
        return match source {
            Some(source) => Err(Error::SlotMissing { slot: name, since: source.start_lsn }),
            None => Ok(None),
        };
    };
    if found.wal_status.as_deref() == Some("lost") {
        return Err(Error::SlotInvalidated {
            slot: name,
            wal_status: "lost".to_owned(),
            reason: found.invalidation_reason.clone(),
            cure: found.cure(),
        });
    }
    require_own(config, &found)?;
    if found.confirmed_flush_lsn.is_none() {
        return Err(Error::SlotNotReady { slot: name });
    }
    Ok(Some(found))
}

/// Refuses a slot that has the name of ours and is none of ours.
///
/// # Errors
/// [`Error::SlotForeign`]
pub(super) fn require_own(config: &ReplicatorConfig, found: &SlotInfo) -> Result<(), Error> {
    let ours = found.plugin.as_deref() == Some("pgoutput")
        && found.database.as_deref() == Some(config.source.database.as_str());
    if ours {
        return Ok(());
    }
    let (plugin, database) = (found.plugin.as_deref(), found.database.as_deref());
    let what = format!("plugin {}, database {}", plugin.unwrap_or("none"), database.unwrap_or("none"));
    Err(Error::SlotForeign { slot: found.name.clone(), found: what })
}
