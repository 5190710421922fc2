//! The credentials of a peer: its spec combined with the Secrets that it names.

use std::collections::BTreeMap;

use kube::ResourceExt;

use super::{blocker::Blocker, shared::Shared};
use crate::{
    api::{self, ReplicationPeer},
    fault::Reason,
    model::Password,
    resolve::{self, Endpoint, Secrets},
};

/// The Secret entries that a peer refers to, by Secret and key. Missing ones are left out.
pub(super) type SecretEntries = BTreeMap<(String, String), Password>;

/// A peer's endpoint, and the Secret entries that it was made from.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The database with username and password, or what is wrong with the peer or its Secrets.
    pub(super) endpoint: Result<Endpoint, Blocker>,
    /// The Secret entries.
    pub(super) entries: SecretEntries,
}

/// Reads the Secrets that a peer refers to and resolves its endpoint.
///
/// # Errors
/// The API server's error. A missing Secret or key is a blocker of the endpoint instead.
pub(super) async fn read(shared: &Shared, peer: &ReplicationPeer) -> Result<Credentials, kube::Error> {
    let mut problems = api::peer_problems(&peer.spec);
    if !problems.is_empty() {
        let endpoint = Err(Blocker::problems(Reason::InvalidSpec, &problems));
        return Ok(Credentials { endpoint, entries: SecretEntries::new() });
    }
    let refers = resolve::secret_entries(peer);
    let mut names: Vec<&str> = refers.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    let namespace = peer.namespace().unwrap_or_default();
    let secrets = shared.secrets.read(&shared.client, &namespace, names).await?;
    let mut entries = SecretEntries::new();
    for (name, key) in &refers {
        if let Ok(value) = secrets.entry(name, key) {
            entries.insert((name.clone(), key.clone()), value);
        }
    }
    let endpoint = resolve::endpoint(peer, &secrets, &mut problems);
    let reason = secrets.missing().unwrap_or(Reason::InvalidSpec);
    Ok(Credentials { endpoint: endpoint.ok_or_else(|| Blocker::problems(reason, &problems)), entries })
}
