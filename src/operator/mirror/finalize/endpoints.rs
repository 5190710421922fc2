//! The databases to clean up.

use kube::ResourceExt;

use super::deletion_view::SpecView;
use crate::{
    api::Mirror,
    fault::Reason,
    model::{ClickHouseEndpoint, PostgresEndpoint, ReplicatorConfig},
    operator::{blocker::Blocker, credentials, error::Error, object::MaybeInvalid, shared::Shared},
    resolve::Endpoint,
};

/// The databases that a Mirror was last run with.
#[derive(Clone, Debug)]
pub(in crate::operator::mirror) struct Endpoints {
    pub(in crate::operator::mirror) source: PostgresEndpoint,
    pub(in crate::operator::mirror) destination: ClickHouseEndpoint,
}

impl Endpoints {
    /// The databases of a replicator.
    pub(in crate::operator::mirror) fn of(config: &ReplicatorConfig) -> Endpoints {
        Endpoints { source: config.source.clone(), destination: config.destination.clone() }
    }

    /// The databases that the peers name now or, where a peer or its Secret is gone already, the `last` ones.
    ///
    /// # Errors
    /// The API server's error, or what is wrong with the peers.
    pub(super) async fn current(
        shared: &Shared,
        mirror: &MaybeInvalid<Mirror>,
        spec: &SpecView,
        last: Option<&Endpoints>,
    ) -> Result<Endpoints, Error> {
        let namespace = mirror.namespace().unwrap_or_default();
        match (Endpoints::of_peers(shared, &namespace, spec).await, last) {
            (Err(Error::Blocked(blocker)), Some(last)) => {
                tracing::info!(
                    namespace,
                    mirror = mirror.name_any(),
                    reason = %blocker.failure.reason,
                    "cleaning up with the last known settings of the peers"
                );
                Ok(last.clone())
            }
            (current, _) => current,
        }
    }

    async fn of_peers(shared: &Shared, namespace: &str, spec: &SpecView) -> Result<Endpoints, Error> {
        let source = endpoint(shared, namespace, &spec.source_ref.name).await?;
        let destination = endpoint(shared, namespace, &spec.destination_ref.name).await?;
        match (source, destination) {
            (Endpoint::Postgres(source), Endpoint::ClickHouse(destination)) => {
                Ok(Endpoints { source, destination })
            }
            _ => {
                let message =
                    "spec.sourceRef must name a postgres peer and spec.destinationRef a clickhouse peer";
                Err(Blocker::terminal(Reason::InvalidSpec, message).into())
            }
        }
    }
}

async fn endpoint(shared: &Shared, namespace: &str, name: &str) -> Result<Endpoint, Error> {
    let missing = || {
        let message = format!("ReplicationPeer {name} in namespace {namespace} no longer exists");
        Blocker::terminal(Reason::PeerMissing, message)
    };
    let peer = shared.peer(namespace, name).await?.ok_or_else(missing)?;
    match &peer.0 {
        Ok(peer) => Ok(credentials::read(shared, peer).await?.endpoint?),
        Err(invalid) => Err(Blocker::invalid_object(&invalid.error).into()),
    }
}
