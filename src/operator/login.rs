//! How to log in to a peer: its spec and the Secrets that it names.

use std::collections::BTreeMap;

use kube::ResourceExt;

use super::{context::Context, obstacle::Obstacle};
use crate::{
    api::{self, ReplicationPeer},
    fault::Reason,
    model::Password,
    resolve::{self, Endpoint, Secrets},
};

/// The entries of Secrets that a peer refers to, by Secret and key; those that are missing are left out.
pub(super) type Entries = BTreeMap<(String, String), Password>;

/// A peer and what its Secrets came to.
#[derive(Debug)]
pub(super) struct Login {
    /// The database, ready to connect to, or what is wrong with the peer or its Secrets.
    pub(super) endpoint: Result<Endpoint, Obstacle>,
    /// What the Secrets hold.
    pub(super) entries: Entries,
}

/// Reads what a peer refers to.
///
/// # Errors
/// What the API server says; that a Secret or key is missing is an obstacle of the peer.
pub(super) async fn read(context: &Context, peer: &ReplicationPeer) -> Result<Login, kube::Error> {
    let mut problems = api::peer_problems(&peer.spec);
    if !problems.is_empty() {
        let endpoint = Err(Obstacle::problems(Reason::InvalidSpec, &problems));
        return Ok(Login { endpoint, entries: Entries::new() });
    }
    let refers = resolve::secret_entries(peer);
    let mut names: Vec<&str> = refers.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    let namespace = peer.namespace().unwrap_or_default();
    let secrets = context.secrets.read(&context.client, &namespace, names).await?;
    let mut entries = Entries::new();
    for (name, key) in &refers {
        if let Ok(value) = secrets.entry(name, key) {
            entries.insert((name.clone(), key.clone()), value);
        }
    }
    let endpoint = resolve::endpoint(peer, &secrets, &mut problems);
    let reason = secrets.missing().unwrap_or(Reason::InvalidSpec);
    Ok(Login { endpoint: endpoint.ok_or_else(|| Obstacle::problems(reason, &problems)), entries })
}

/// What an object that is not what its type says is told; the error names the field.
pub(super) fn unreadable(error: &str) -> Obstacle {
    let message = format!(
        "this object is not as its CustomResourceDefinition asks: {error}; correct it with kubectl edit, or delete it"
    );
    Obstacle::lasting(Reason::InvalidSpec, message)
}
