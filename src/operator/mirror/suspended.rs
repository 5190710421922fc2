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

/// The report about a suspended Mirror, and whether its slot is about to be lost.
pub(super) async fn report(
    context: &Context,
    mirror: &MirrorIdentity,
    mirror_uid: &str,
    source: &PostgresEndpoint,
) -> (MirrorReport, bool) {
    let slot = look(context, mirror, mirror_uid, source).await;
    let mut report = match &slot {
        Some(slot) if is_lost(slot) => hindered(mirror, invalidated(mirror, slot)),
        _ => unasked(mirror, MirrorPhase::Suspended, None),
    };
    report.retained_wal_bytes = slot.as_ref().and_then(|slot| slot.retained_bytes);
    report.slot_wal_status = slot.as_ref().and_then(|slot| slot.wal_status.clone());
    (report, slot.is_some_and(|slot| is_at_risk(&slot)))
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

/// Whether the source may soon remove WAL that the slot still needs: more than four fifths of what it may keep are in use.
fn is_at_risk(slot: &SlotInfo) -> bool {
    let retained = i64::try_from(slot.retained_bytes.unwrap_or_default()).unwrap_or(i64::MAX);
    slot.wal_status.as_deref() == Some("unreserved")
        || slot.safe_wal_size.is_some_and(|safe| safe < retained / 4)
}

fn invalidated(mirror: &MirrorIdentity, slot: &SlotInfo) -> Obstacle {
    let message = format!(
        "slot {} was invalidated while the Mirror was suspended: the source has removed WAL that it still needed. Raise \
         max_slot_wal_keep_size, resume, and {RESYNC_ADVICE}",
        slot.name
    );
    Obstacle::lasting(check::reason::SOURCE_SLOT_INVALIDATED, mirror.named(&message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lsn;

    fn slot(wal_status: &str, safe: Option<i64>, retained: u64) -> SlotInfo {
        SlotInfo {
            name: "walferry_0a".to_owned(),
            plugin: None,
            database: None,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: None,
            wal_status: Some(wal_status.to_owned()),
            safe_wal_size: safe,
            retained_bytes: Some(retained),
            current_lsn: Lsn::ZERO,
        }
    }

    #[test]
    fn warns_before_the_slot_is_lost() {
        assert!(!is_at_risk(&slot("reserved", None, 1 << 40)));
        assert!(!is_at_risk(&slot("extended", Some(500), 500)));
        assert!(is_at_risk(&slot("extended", Some(100), 900)));
        assert!(is_at_risk(&slot("unreserved", Some(-10), 1000)));
        assert!(is_lost(&slot("lost", None, 0)) && !is_lost(&slot("unreserved", None, 0)));
    }
}
