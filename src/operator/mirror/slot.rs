//! What the slot holds back while no replicator tells: the operator itself looks then.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::{Instant, timeout};

use super::{Memory, replicator::hindered};
use crate::{
    api::Mirror,
    cleanup,
    fault::{Reason, Remedy, Side},
    model::{MirrorIdentity, MirrorPhase, MirrorReport, PostgresEndpoint, SlotPlace, SlotReport},
    operator::{context::Context, obstacle::Obstacle},
    postgres::{
        self, catalog,
        session::Session,
        slot::{self, SlotInfo},
    },
    status::slot_place,
};

/// How often the source is asked.
pub(super) const EVERY: Duration = Duration::from_secs(30);
/// Longest time of a look.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A slot as last seen.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    look: Look,
    at: Instant,
}

/// What the source has answered; nothing when it didn't.
#[derive(Clone, Debug, Default)]
struct Look {
    slot: Option<SlotInfo>,
    /// The server and database that the peer names now.
    place: Option<SlotPlace>,
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
            let Look { slot, place } = look(context, identity, &uid, &source).await;
            if report.phase == MirrorPhase::Suspended {
                let made_at = mirror.status.as_ref().and_then(|status| status.slot.as_ref()).map(slot_place);
                let lost = slot.as_ref().filter(|slot| is_lost(slot));
                let blocker = made_at
                    .zip(place)
                    .and_then(|(made_at, found)| elsewhere(identity, &made_at, &found))
                    .or_else(|| lost.map(invalidated));
                if let Some(blocker) = blocker {
                    report = hindered(identity, blocker);
                }
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
) -> Look {
    let seen = context.memory.mirrors.of(mirror_uid, |Memory { seen, .. }| seen.clone());
    if let Some(seen) = seen.filter(|seen| seen.at.elapsed() < EVERY) {
        return seen.look;
    }
    let read = async {
        let session = Session::connect(source, &mirror.application_name()).await?;
        let place = SlotPlace {
            system_identifier: catalog::system_identifier(&session).await?,
            host: source.host.clone(),
            port: source.port,
            database: source.database.clone(),
        };
        Ok(Look { slot: slot::read(&session, &mirror.slot_name()).await?, place: Some(place) })
    };
    let look = match timeout(ANSWER_WITHIN, read).await {
        Ok(look) => look.unwrap_or_else(|error: postgres::Error| {
            tracing::warn!(mirror = mirror.name, namespace = mirror.namespace, %error, "cannot look at the slot");
            Look::default()
        }),
        Err(_) => Look::default(),
    };
    let seen = Seen { look: look.clone(), at: Instant::now() };
    context.memory.mirrors.of(mirror_uid, |memory| memory.seen = Some(seen));
    look
}

/// What is wrong when the peer names another server or database than that which has the slot: there it holds back WAL, unseen.
fn elsewhere(mirror: &MirrorIdentity, made_at: &SlotPlace, found: &SlotPlace) -> Option<Obstacle> {
    if made_at.is_same(found) {
        return None;
    }
    let slot = mirror.slot_name();
    let message = format!(
        "slot {slot} is at {made_at} and holds back WAL there, but the peer now names {found}. Point the peer back, or run there: {}",
        cleanup::statements(mirror)
    );
    Some(Obstacle::lasting(Reason::SourceReplaced, message))
}

fn is_lost(slot: &SlotInfo) -> bool {
    slot.wal_status.as_deref() == Some("lost")
}

fn invalidated(slot: &SlotInfo) -> Obstacle {
    let message = format!("slot {} was invalidated by the source while the Mirror was suspended", slot.name);
    let resume = Remedy::edit("spec.suspend", "set it to false");
    Obstacle::lasting(Reason::SourceSlotInvalidated, message).remedied([
        Remedy::act(slot.cure()),
        resume,
        Remedy::resync_all(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_at_another_server_is_told_with_its_place() {
        let mirror = MirrorIdentity { namespace: "team".into(), name: "shop".into(), uid: "0a".into() };
        let place = |system: &str, host: &str| SlotPlace {
            system_identifier: system.into(),
            host: host.into(),
            port: 5432,
            database: "app".into(),
        };
        let (old, new) = (place("7", "old"), place("8", "new"));
        assert_eq!(elsewhere(&mirror, &old, &place("7", "alias")), None);
        let Obstacle { failure, passing } = elsewhere(&mirror, &old, &new).unwrap();
        assert_eq!((failure.reason, passing), (Reason::SourceReplaced, false));
        assert_eq!(
            failure.message,
            "slot walferry_0a is at old:5432 in database app (system identifier 7) and holds back WAL there, but the peer now names \
             new:5432 in database app (system identifier 8). Point the peer back, or run there: \
             SELECT pg_drop_replication_slot('walferry_0a'); DROP PUBLICATION IF EXISTS walferry_0a, walferry_0a_inserts;"
        );
    }
}
