//! The first step: everything that a Mirror refers to.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use crate::{
    api::{Mirror, MirrorStatus, ReplicationPeer, conditions::DESTINATION_READY},
    operator::{
        credentials::{self, Credentials},
        object::{MaybeInvalid, peer_names, valid},
        shared::Shared,
        stores::Stores,
    },
    resolve::{self, Target},
};

/// What a Mirror refers to, as it is now.
#[derive(Debug)]
pub(super) struct Fetched {
    /// The peers that exist, by name.
    pub(super) peers: BTreeMap<String, Peer>,
    /// Other Mirrors, with the tables that they write.
    pub(super) others: Vec<Other>,
}

/// A peer.
#[derive(Debug)]
pub(super) enum Peer {
    /// One that matches its type, with its credentials.
    Valid {
        /// The resource.
        peer: Box<ReplicationPeer>,
        /// Endpoint and Secret entries.
        credentials: Credentials,
    },
    /// One that doesn't match its type, and why.
    Invalid(String),
}

/// Another Mirror.
#[derive(Clone, Debug)]
pub(super) struct Other {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// Whether it was created before another.
    pub(super) creation_order: CreationOrder,
    /// The tables that it names as targets.
    pub(super) targets: Vec<Target>,
    /// Whether it has ever connected to its destination. Until then it may name a server that it has no
    /// credentials for.
    pub(super) reached: bool,
}

/// Orders Mirrors by creation: time, then UID.
pub(super) type CreationOrder = (Option<k8s_openapi::jiff::Timestamp>, Option<String>);

/// The place of a Mirror in the order of creation.
pub(super) fn creation_order(mirror: &Mirror) -> CreationOrder {
    (mirror.creation_timestamp().map(|time| time.0), mirror.uid())
}

/// Reads peers from the stores and Secrets from the API server.
///
/// # Errors
/// The API server's error. Missing or invalid objects are left to the next step.
pub(super) async fn fetch(shared: &Shared, mirror: &Mirror) -> Result<Fetched, kube::Error> {
    let namespace = mirror.namespace().unwrap_or_default();
    let mut peers = BTreeMap::new();
    for name in peer_names(mirror) {
        if let Some(found) = shared.peer(&namespace, name).await?
            && !peers.contains_key(name)
        {
            peers.insert(name.to_owned(), read(shared, &found).await?);
        }
    }
    let others = shared.stores.mirrors().filter(|other| other.uid() != mirror.uid());
    Ok(Fetched { peers, others: others.filter_map(|mirror| other(&shared.stores, &mirror)).collect() })
}

async fn read(shared: &Shared, peer: &MaybeInvalid<ReplicationPeer>) -> Result<Peer, kube::Error> {
    match &peer.0 {
        Ok(peer) => {
            let credentials = credentials::read(shared, peer).await?;
            Ok(Peer::Valid { peer: Box::new(peer.clone()), credentials })
        }
        Err(invalid) => Ok(Peer::Invalid(invalid.error.clone())),
    }
}

/// A Mirror with the tables that it writes; `None` when its peer or spec can't be read.
fn other(stores: &Stores, mirror: &Arc<MaybeInvalid<Mirror>>) -> Option<Other> {
    let mirror = valid(mirror)?;
    let namespace = mirror.namespace()?;
    let peer = stores.find(|stores| &stores.peers, &namespace, &mirror.spec.destination_ref.name)?;
    let destination = valid(&peer)?.spec.clickhouse.as_ref()?;
    Some(Other {
        namespace,
        name: mirror.name_any(),
        creation_order: creation_order(mirror),
        targets: resolve::targets(mirror, destination),
        reached: mirror.status.as_ref().is_some_and(has_reached_destination),
    })
}

fn has_reached_destination(status: &MirrorStatus) -> bool {
    let ready = |condition: &Condition| condition.type_ == DESTINATION_READY && condition.status == "True";
    status.last_lsn.is_some() || status.conditions.iter().any(ready)
}
