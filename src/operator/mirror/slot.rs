//! What the slot holds back while no replicator tells: the operator itself looks then.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::{Instant, timeout};

use super::{Memory, replicator::hindered};
use crate::{
    api::Mirror,
    fault::{Reason, Side},
    model::{MirrorIdentity, MirrorPhase, MirrorReport, PostgresEndpoint, RESYNC_ADVICE, SlotReport},
    operator::{context::Context, obstacle::Obstacle},
    postgres::{
        self,
        session::Session,
        slot::{self, SlotInfo},
    },
};

/// How often the source is asked.
pub(super) const EVERY: Duration = Duration::from_secs(30);
/// Longest time of a look.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A slot as last seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    slot: Option<SlotInfo>,
    at: Instant,
}

/// The report with what the slot holds back.
///
/// A replicator that can't be asked, or is busy with a fault, tells nothing of the slot, or what it saw long ago: then the source
/// is asked. It is left alone when it is what the fault is about, and before there ever was a slot.
pub(super) async fn look_where_unread(
    context: &Context,
    mirror: &Mirror,
    identity: &MirrorIdentity,
    mut report: MirrorReport,
) -> MirrorReport {
    let uid = mirror.uid().unwrap_or_default();
    match asks(mirror, &report).then(|| source(context, &uid)).flatten() {
        Some(source) => {
            let slot = look(context, identity, &uid, &source).await;
            if let Some(lost) = slot.as_ref().filter(|slot| is_lost(slot))
                && report.phase == MirrorPhase::Suspended
            {
                report = hindered(identity, invalidated(identity, lost));
            }
            // What the replicator counts stays.
            let SlotReport { takeovers, failovers, .. } = report.slot;
            let seen = slot.as_ref().map(SlotInfo::report).unwrap_or_default();
            report.slot = SlotReport { takeovers, failovers, ..seen };
        }
        None => context.memory.mirrors.of(&uid, |memory| memory.seen = None),
    }
    report
}

fn asks(mirror: &Mirror, report: &MirrorReport) -> bool {
    let had_a_slot = mirror.status.as_ref().is_some_and(|status| status.last_lsn.is_some());
    let source_fails = report.failure.as_ref().is_some_and(|failure| failure.reason.side() == Side::Source);
    if report.meanwhile.is_some() {
        return false;
    }
    match report.phase {
        MirrorPhase::Suspended => true,
        MirrorPhase::Provisioning | MirrorPhase::Retrying | MirrorPhase::Stalled => {
            had_a_slot && !source_fails
        }
        MirrorPhase::Snapshotting
        | MirrorPhase::Streaming
        | MirrorPhase::Finished
        | MirrorPhase::Deleting => false,
    }
}

fn source(context: &Context, mirror_uid: &str) -> Option<PostgresEndpoint> {
    context.memory.mirrors.of(mirror_uid, |memory| Some(memory.endpoints.as_ref()?.source.clone()))
}

/// The slot, asked for not too often. A source that doesn't answer keeps nothing else from being told.
async fn look(
    context: &Context,
    mirror: &MirrorIdentity,
    mirror_uid: &str,
    source: &PostgresEndpoint,
) -> Option<SlotInfo> {
    let seen = context.memory.mirrors.of(mirror_uid, |Memory { seen, .. }| seen.clone());
    if let Some(seen) = seen.filter(|seen| seen.at.elapsed() < EVERY) {
        return seen.slot;
    }
    let read = async {
        let session = Session::connect(source, &mirror.application_name()).await?;
        slot::read(&session, &mirror.slot_name()).await
    };
    let slot = match timeout(ANSWER_WITHIN, read).await {
        Ok(slot) => slot.unwrap_or_else(|error: postgres::Error| {
            tracing::warn!(mirror = mirror.name, namespace = mirror.namespace, %error, "cannot look at the slot");
            None
        }),
        Err(_) => None,
    };
    let seen = Seen { slot: slot.clone(), at: Instant::now() };
    context.memory.mirrors.of(mirror_uid, |memory| memory.seen = Some(seen));
    slot
}

fn is_lost(slot: &SlotInfo) -> bool {
    slot.wal_status.as_deref() == Some("lost")
}

fn invalidated(mirror: &MirrorIdentity, slot: &SlotInfo) -> Obstacle {
    let message = format!(
        "slot {} was invalidated by the source while the Mirror was suspended. To go on, {}; then resume, and {RESYNC_ADVICE}",
        slot.name,
        slot.cure()
    );
    Obstacle::lasting(Reason::SourceSlotInvalidated, mirror.named(&message))
}
