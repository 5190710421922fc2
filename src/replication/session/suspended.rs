//! A suspended Mirror: what its slot holds back is shown, and nothing is read or written.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::slot::check_slot;
use crate::{
    model::{MirrorPhase, Progress, ReplicatorConfig, SlotReport},
    postgres::{session::Session, slot},
    replication::{Error, Policy, failure, policy},
};

/// How often the slot is checked.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Shows what the slot holds back, until `stop`, or once.
pub(super) async fn run(
    config: &ReplicatorConfig,
    progress: &Progress,
    stop: &CancellationToken,
    once: bool,
) {
    progress.set_phase(MirrorPhase::Suspended, None);
    loop {
        let check = show_slot(config, progress);
        match stop.run_until_cancelled(check).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(mirror = config.mirror.name, %error, "cannot check the slot of a suspended mirror");
            }
        }
        if once || stop.run_until_cancelled(tokio::time::sleep(CHECK_EVERY)).await.is_none() {
            return;
        }
    }
}

async fn show_slot(config: &ReplicatorConfig, progress: &Progress) -> Result<(), Error> {
    let session = Session::connect(&config.source, &config.mirror.application_name()).await?;
    let Some(slot) = slot::read(&session, &config.mirror.slot_name()).await? else {
        progress.set_slot(SlotReport::default());
        return Ok(());
    };
    progress.set_slot(slot.report());
    progress.set_durable_lsn(slot.confirmed_flush_lsn.unwrap_or_default());
    progress.set_source_lsn(slot.current_lsn);
    match check_slot(config, None, Some(slot)) {
        Err(error) if policy(&error).0 == Policy::Stall => {
            progress.set_phase(MirrorPhase::Stalled, Some(failure(&error)));
            Ok(())
        }
        other => {
            progress.set_phase(MirrorPhase::Suspended, None);
            other.map(drop)
        }
    }
}
