//! A suspended Mirror: no pod runs, so the operator itself looks at what the slot holds back.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{
    Memory,
    replicator::{hindered, unasked},
};
use crate::{
    check,
    model::{MirrorIdentity, MirrorPhase, MirrorReport, PostgresEndpoint, RESYNC_ADVICE},
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

/// The report about a suspended Mirror.
pub(super) async fn report(
    context: &Context,
    mirror: &MirrorIdentity,
    mirror_uid: &str,
    source: &PostgresEndpoint,
) -> MirrorReport {
    let slot = look(context, mirror, mirror_uid, source).await;
    let mut report = match &slot {
        Some(slot) if is_lost(slot) => hindered(mirror, invalidated(mirror, slot)),
        _ => unasked(mirror, MirrorPhase::Suspended, None),
    };
    report.slot = slot.as_ref().map(SlotInfo::report).unwrap_or_default();
    report
}

/// The slot, asked for not too often. A source that doesn't answer keeps nobody from being suspended.
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
        "slot {} was invalidated while the Mirror was suspended: the source has removed WAL that it still needed. Raise \
         max_slot_wal_keep_size, resume, and {RESYNC_ADVICE}",
        slot.name
    );
    Obstacle::lasting(check::reason::SOURCE_SLOT_INVALIDATED, mirror.named(&message))
}
