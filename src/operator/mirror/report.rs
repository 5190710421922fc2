//! The report about a Mirror, from its pods and from its replicator's `/status`.

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::{SignedDuration, Timestamp},
};

use super::{
    pod::{ReplicatorState, replicator_state},
    status_client::StatusClient,
};
use crate::{
    fault::Reason,
    model::{Lsn, MirrorFailure, MirrorIdentity, MirrorPhase, MirrorReport},
    operator::blocker::Blocker,
};

/// How long a container that has started may take until it responds.
const STARTUP_TIME: SignedDuration = SignedDuration::from_secs(10);

/// A report about a Mirror without a word from its replicator: it has names and no figures.
pub(super) fn offline_report(
    mirror: &MirrorIdentity,
    phase: MirrorPhase,
    failure: Option<MirrorFailure>,
) -> MirrorReport {
    MirrorReport {
        namespace: mirror.namespace.clone(),
        name: mirror.name.clone(),
        phase,
        failure,
        meanwhile: None,
        warning: None,
        slot_name: mirror.slot_name(),
        publication_name: mirror.publication_name(),
        last_lsn: Lsn::ZERO,
        lag: Default::default(),
        slot: Default::default(),
        slot_place: None,
        tables: Vec::new(),
    }
}

/// The same, about a Mirror that is blocked.
pub(super) fn blocked_report(mirror: &MirrorIdentity, blocker: Blocker) -> MirrorReport {
    let phase = if blocker.transient { MirrorPhase::Retrying } else { MirrorPhase::Stalled };
    offline_report(mirror, phase, Some(blocker.failure))
}

/// The figures of the running replicator with the failure of the spec that is blocked.
pub(super) fn blocked_while_running(blocked: MirrorReport, running: MirrorReport) -> MirrorReport {
    if running.tables.is_empty() {
        return blocked;
    }
    let works = matches!(running.phase, MirrorPhase::Snapshotting | MirrorPhase::Streaming);
    let meanwhile = works.then_some(running.phase);
    let mut failure = blocked.failure;
    if let (Some(failure), true) = (&mut failure, works) {
        failure.message =
            format!("{} (until then the replicator continues with its earlier settings)", failure.message);
    }
    MirrorReport { phase: blocked.phase, failure, meanwhile, ..running }
}

/// The report about the replicator of this Deployment.
pub(super) async fn replicator_report(
    client: &StatusClient,
    mirror: &MirrorIdentity,
    deployment: &Deployment,
    pods: &[Pod],
) -> MirrorReport {
    match replicator_state(Some(deployment), pods) {
        ReplicatorState::Absent => offline_report(mirror, MirrorPhase::Provisioning, None),
        ReplicatorState::Starting { message } => starting(mirror, message),
        ReplicatorState::Failing { reason, message, terminal } => {
            let failure = MirrorFailure::new(reason, message);
            blocked_report(mirror, Blocker { failure, transient: !terminal })
        }
        ReplicatorState::Running { address } => match client.report(&address, mirror).await {
            Ok(report) => report,
            Err(_) if has_just_started(pods, Timestamp::now()) => {
                starting(mirror, "the replicator's container has started".to_owned())
            }
            Err(error) => {
                let message = format!(
                    "the replicator at {address} does not respond: {error}; check whether a NetworkPolicy blocks the operator"
                );
                blocked_report(mirror, Blocker::transient(Reason::ReplicatorUnreachable, message))
            }
        },
    }
}

fn starting(mirror: &MirrorIdentity, message: String) -> MirrorReport {
    let failure = MirrorFailure::new(Reason::ReplicatorStarting, message);
    offline_report(mirror, MirrorPhase::Provisioning, Some(failure))
}

/// Whether a container runs that may not listen yet.
fn has_just_started(pods: &[Pod], now: Timestamp) -> bool {
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref()).flatten();
    let mut starts =
        statuses.filter_map(|container| container.state.as_ref()?.running.as_ref()?.started_at.clone());
    starts.any(|start| now.duration_since(start.0) < STARTUP_TIME)
}
