//! The `status` of a ReplicationPeer in the API.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::kubernetes::api_conditions;
use crate::{api::ReplicationPeerStatus, model::MirrorFailure};

/// What came of looking at a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerOutcome {
    /// Not looked at yet.
    Progressing,
    /// It answers, and has what replication needs.
    Connected {
        /// What was found, for people.
        message: String,
    },
    /// A passing fault; tried again by itself.
    Retrying(MirrorFailure),
    /// Waits for a human; the failure says what to do.
    Stalled(MirrorFailure),
    /// It is being deleted, and Mirrors still use it.
    Deleting {
        /// Which Mirrors.
        message: String,
    },
}

/// A peer as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// What came of looking at it.
    pub outcome: PeerOutcome,
    /// The server's version in its own words; `None` when it wasn't asked, which keeps the one that is known.
    pub server_version: Option<String>,
    /// PostgreSQL's system identifier; `None` when it wasn't asked, which keeps the one that is known.
    pub system_identifier: Option<String>,
}

/// The status of a ReplicationPeer; the arguments are those of [`super::mirror_status`].
pub fn peer_status(
    report: &PeerReport,
    generation: Option<i64>,
    previous: Option<&ReplicationPeerStatus>,
    now: &Time,
) -> ReplicationPeerStatus {
    let _ = report;
    let conditions = previous.map_or(&[][..], |previous| &previous.conditions);
    ReplicationPeerStatus {
        observed_generation: generation,
        conditions: api_conditions(Vec::new(), generation, conditions, now),
        ..ReplicationPeerStatus::default()
    }
}
