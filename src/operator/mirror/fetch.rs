//! The first step: everything that a Mirror refers to.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use crate::{
    api::{Mirror, MirrorStatus, ReplicationPeer, conditions::DESTINATION_READY},
    operator::{
        context::Context,
        login::{self, Login},
        scope::{Guarded, peers_of, valid},
    },
    resolve::{self, Target},
};

/// What a Mirror refers to, as it is now.
#[derive(Debug)]
pub(super) struct Fetched {
    /// The peers that are there, by name.
    pub(super) peers: BTreeMap<String, Peer>,
    /// Other Mirrors, with the tables that they write.
    pub(super) others: Vec<Other>,
}

/// A peer.
#[derive(Debug)]
pub(super) enum Peer {
    /// One that is what its type says, and how to log in.
    Valid {
        /// The resource.
        peer: Box<ReplicationPeer>,
        /// The way in.
        login: Login,
    },
    /// One that can't be read, and why.
    Unreadable(String),
}

/// Another Mirror.
#[derive(Clone, Debug)]
pub(super) struct Other {
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
    /// Its age.
    pub(super) seniority: Seniority,
    /// The tables that it names as targets.
    pub(super) targets: Vec<Target>,
    /// Whether it has ever reached its destination. Until then it may name a server that it has no login for.
    pub(super) reached: bool,
}

/// Which of two Mirrors was there first: time of creation, then UID.
pub(super) type Seniority = (Option<k8s_openapi::jiff::Timestamp>, Option<String>);

/// How old a Mirror is.
pub(super) fn seniority(mirror: &Mirror) -> Seniority {
    (mirror.creation_timestamp().map(|time| time.0), mirror.uid())
}

/// Reads them. Peers come from the stores, Secrets from the API server.
///
/// # Errors
/// What the API server says; what is missing or wrong is for the next step.
pub(super) async fn fetch(context: &Context, mirror: &Mirror) -> Result<Fetched, kube::Error> {
    let namespace = mirror.namespace().unwrap_or_default();
    let mut peers = BTreeMap::new();
    for name in peers_of(mirror) {
        if let Some(found) = context.peer(&namespace, name).await?
            && !peers.contains_key(name)
        {
            peers.insert(name.to_owned(), read(context, &found).await?);
        }
    }
    let others = context.mirrors().filter(|other| other.uid() != mirror.uid());
    Ok(Fetched { peers, others: others.filter_map(|other| writes(context, &other)).collect() })
}

async fn read(context: &Context, peer: &Guarded<ReplicationPeer>) -> Result<Peer, kube::Error> {
    match &peer.0 {
        Ok(peer) => {
            let login = login::read(context, peer).await?;
            Ok(Peer::Valid { peer: Box::new(peer.clone()), login })
        }
        Err(invalid) => Ok(Peer::Unreadable(invalid.error.clone())),
    }
}

/// A Mirror with the tables that it writes; `None` when that can't be told.
fn writes(context: &Context, mirror: &Arc<Guarded<Mirror>>) -> Option<Other> {
    let mirror = valid(mirror)?;
    let namespace = mirror.namespace()?;
    let peer = context.find(|scope| &scope.peers, &namespace, &mirror.spec.destination_ref.name)?;
    let destination = valid(&peer)?.spec.clickhouse.as_ref()?;
    Some(Other {
        namespace,
        name: mirror.name_any(),
        seniority: seniority(mirror),
        targets: resolve::targets(mirror, destination),
        reached: mirror.status.as_ref().is_some_and(has_reached_destination),
    })
}

fn has_reached_destination(status: &MirrorStatus) -> bool {
    let ready = |condition: &Condition| condition.type_ == DESTINATION_READY && condition.status == "True";
    status.last_lsn.is_some() || status.conditions.iter().any(ready)
}
