//! The `status` of a ReplicationPeer in the API.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Condition, ConditionStatus, conditions::condition, kubernetes::api_conditions};
use crate::{
    api::{ReplicationPeerStatus, conditions as types},
    fault::{Reason, RemedyRenderer, remedy::sentence},
    model::MirrorFailure,
};

/// What came of looking at a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerOutcome {
    /// Not checked yet.
    Progressing,
    /// It answers, and has what replication needs.
    Connected {
        /// What was found, for people.
        message: String,
    },
    /// A transient error, retried automatically.
    Retrying(MirrorFailure),
    /// Manual action required; the failure says what to do.
    Stalled(MirrorFailure),
    /// It is being deleted, and Mirrors still use it.
    Deleting {
        /// Which Mirrors.
        message: String,
    },
}

impl PeerOutcome {
    /// The same with the remedies in its message.
    pub fn with_remedies(mut self, renderer: &dyn RemedyRenderer) -> PeerOutcome {
        if let PeerOutcome::Retrying(failure) | PeerOutcome::Stalled(failure) = &mut self {
            failure.message = sentence(&failure.message, &failure.remedies, renderer);
        }
        self
    }
}

/// A peer as last observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// What came of looking at it.
    pub outcome: PeerOutcome,
    /// The server's version in its own words; `None` when it didn't say, which keeps the one that is known.
    pub server_version: Option<String>,
    /// PostgreSQL's system identifier; `None` when it didn't say, which keeps the one that is known.
    pub system_identifier: Option<String>,
}

/// The status of a ReplicationPeer; the arguments are as those of [`super::mirror_status`].
pub fn peer_status(
    report: &PeerReport,
    generation: Option<i64>,
    previous: Option<&ReplicationPeerStatus>,
    now: &Time,
) -> ReplicationPeerStatus {
    let nothing = ReplicationPeerStatus::default();
    let previous = previous.unwrap_or(&nothing);
    ReplicationPeerStatus {
        observed_generation: generation,
        server_version: report.server_version.clone().or_else(|| previous.server_version.clone()),
        system_identifier: report.system_identifier.clone().or_else(|| previous.system_identifier.clone()),
        conditions: api_conditions(conditions(&report.outcome), generation, &previous.conditions, now),
    }
}

/// `Ready`, and with it `Reconciling` or `Stalled` while it is true.
fn conditions(outcome: &PeerOutcome) -> Vec<Condition> {
    use ConditionStatus::{False, True, Unknown};
    let (ready, other) = match outcome {
        PeerOutcome::Progressing => {
            let message = "connecting to the database and checking the requirements of replication";
            (
                condition(types::READY, Unknown, Reason::Progressing, message),
                Some(condition(types::RECONCILING, True, Reason::Progressing, message)),
            )
        }
        PeerOutcome::Connected { message } => {
            (condition(types::READY, True, Reason::Connected, message), None)
        }
        PeerOutcome::Retrying(MirrorFailure { reason, message, .. }) => (
            condition(types::READY, False, Reason::ProgressingWithRetry, message),
            Some(condition(types::RECONCILING, True, *reason, message)),
        ),
        PeerOutcome::Stalled(MirrorFailure { reason, message, .. }) => (
            condition(types::READY, False, *reason, message),
            Some(condition(types::STALLED, True, *reason, message)),
        ),
        PeerOutcome::Deleting { message } => (
            condition(types::READY, False, Reason::Deleting, message),
            Some(condition(types::RECONCILING, True, Reason::Deleting, message)),
        ),
    };
    [Some(ready), other].into_iter().flatten().collect()
}
