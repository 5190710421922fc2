//! What the slot retains while no replicator reports it: the operator reads it from the source then.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::report::blocked_report;
use crate::{
    api::Mirror,
    cleanup,
    fault::{Reason, Remedy, Side},
    model::{MirrorIdentity, MirrorPhase, MirrorReport, PostgresEndpoint, SlotPlace, SlotReport},
    operator::blocker::Blocker,
    postgres::{
        self, catalog,
        session::Session,
        slot::{self, SlotInfo},
    },
    status::slot_place,
};

/// How often the source is queried.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The time limit of a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(15);

/// The last observation of a Mirror's slot by the operator itself.
#[derive(Debug, Default)]
pub(super) struct SlotHealth(Option<(Instant, Observation)>);

/// What the source has answered; empty when it didn't answer.
#[derive(Clone, Debug, Default)]
struct Observation {
    slot: Option<SlotInfo>,
    /// The server and database that the peer names now.
    place: Option<SlotPlace>,
}

impl SlotHealth {
    /// The report, completed with what the slot retains.
    ///
    /// A replicator that is offline or failing reports nothing of the slot, or what it saw long ago: then the
    /// source is queried. It isn't when the failure is about the source itself, or when there never was a
    /// slot.
    pub(super) async fn complete(
        &mut self,
        mirror: &Mirror,
        identity: &MirrorIdentity,
        source: Option<&PostgresEndpoint>,
        mut report: MirrorReport,
    ) -> MirrorReport {
        let Some(source) = source.filter(|_| needs_query(mirror, &report)) else {
            self.0 = None;
            return report;
        };
        let Observation { slot, place } = self.observe(identity, source).await;
        if report.phase == MirrorPhase::Suspended {
            let made_at = mirror.status.as_ref().and_then(|status| status.slot.as_ref()).map(slot_place);
            let lost = slot.as_ref().filter(|slot| is_lost(slot));
            let blocker = made_at
                .zip(place)
                .and_then(|(made_at, found)| elsewhere(identity, &made_at, &found))
                .or_else(|| lost.map(invalidated));
            if let Some(blocker) = blocker {
                report = blocked_report(identity, blocker);
            }
        }
        // The replicator's counters stay.
        let SlotReport { takeovers, failovers, .. } = report.slot;
        let observed = slot.as_ref().map(SlotInfo::report).unwrap_or_default();
        report.slot = SlotReport { takeovers, failovers, ..observed };
        report
    }

    /// The last observation or, when it is too old, a new one. A source that doesn't answer must not hide the
    /// rest of the report.
    async fn observe(&mut self, mirror: &MirrorIdentity, source: &PostgresEndpoint) -> Observation {
        if let Some((at, observation)) = &self.0
            && at.elapsed() < CHECK_INTERVAL
        {
            return observation.clone();
        }
        let observation = match timeout(QUERY_TIMEOUT, query(mirror, source)).await {
            Ok(Ok(observation)) => observation,
            Ok(Err(error)) => {
                let MirrorIdentity { namespace, name, .. } = mirror;
                tracing::warn!(mirror = name, namespace, %error, "cannot read the slot");
                Observation::default()
            }
            Err(_) => Observation::default(),
        };
        self.0 = Some((Instant::now(), observation.clone()));
        observation
    }
}

fn needs_query(mirror: &Mirror, report: &MirrorReport) -> bool {
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

async fn query(mirror: &MirrorIdentity, source: &PostgresEndpoint) -> Result<Observation, postgres::Error> {
    let session = Session::connect(source, &mirror.application_name()).await?;
    let place = SlotPlace {
        system_identifier: catalog::system_identifier(&session).await?,
        host: source.host.clone(),
        port: source.port,
        database: source.database.clone(),
    };
    Ok(Observation { slot: slot::read(&session, &mirror.slot_name()).await?, place: Some(place) })
}

/// The blocker when the peer names another server or database than the one that has the slot, which still
/// retains WAL there.
fn elsewhere(mirror: &MirrorIdentity, made_at: &SlotPlace, found: &SlotPlace) -> Option<Blocker> {
    if made_at.is_same(found) {
        return None;
    }
    let slot = mirror.slot_name();
    let message = format!(
        "slot {slot} is at {made_at} and retains WAL there, but the peer now names {found}. Point the peer back, or run there: {}",
        cleanup::statements(mirror)
    );
    Some(Blocker::terminal(Reason::SourceReplaced, message))
}

fn is_lost(slot: &SlotInfo) -> bool {
    slot.wal_status.as_deref() == Some("lost")
}

fn invalidated(slot: &SlotInfo) -> Blocker {
    let message = format!("slot {} was invalidated by the source while the Mirror was suspended", slot.name);
    let resume = Remedy::edit("spec.suspend", "set it to false");
    Blocker::terminal(Reason::SourceSlotInvalidated, message).with_remedies([
        Remedy::act(slot.cure()),
        resume,
        Remedy::resync_all(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_at_another_server_is_reported_with_its_place() {
        let mirror = MirrorIdentity { namespace: "team".into(), name: "shop".into(), uid: "0a".into() };
        let place = |system: &str, host: &str| SlotPlace {
            system_identifier: system.into(),
            host: host.into(),
            port: 5432,
            database: "app".into(),
        };
        let (old, new) = (place("7", "old"), place("8", "new"));
        assert_eq!(elsewhere(&mirror, &old, &place("7", "alias")), None);
        let Blocker { failure, transient } = elsewhere(&mirror, &old, &new).unwrap();
        assert_eq!((failure.reason, transient), (Reason::SourceReplaced, false));
        assert_eq!(
            failure.message,
            "slot walferry_0a is at old:5432 in database app (system identifier 7) and retains WAL there, but the peer now names \
             new:5432 in database app (system identifier 8). Point the peer back, or run there: \
             SELECT pg_drop_replication_slot('walferry_0a'); DROP PUBLICATION IF EXISTS walferry_0a, walferry_0a_inserts;"
        );
    }
}
