//! What the Deployment and its pods say about a replicator.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};

/// How a replicator fares, as far as the cluster can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplicatorState {
    /// There is no Deployment, or it is scaled to zero and no pod is left.
    Absent,
    /// On its way.
    Starting {
        /// What is being waited for.
        message: String,
    },
    /// It does not run, and this is why.
    Failing {
        /// A constant of [`crate::api::conditions::reason`].
        reason: &'static str,
        /// What is wrong and what to do.
        message: String,
        /// Whether it stays so until somebody acts.
        needs_human: bool,
    },
    /// It runs, and its HTTP server can be asked.
    Running {
        /// The pod's address and the HTTP port, as a URL has them: `10.0.0.1:9464` or `[fd00::1]:9464`.
        address: String,
    },
}

/// How the replicator of this Deployment fares; `pods` are those with its labels.
pub(super) fn replicator_state(deployment: Option<&Deployment>, pods: &[Pod]) -> ReplicatorState {
    let _ = (deployment, pods);
    ReplicatorState::Absent
}
