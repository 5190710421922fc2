//! The files' resources, with each other's help, into configurations.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use sha2::{Digest, Sha256};

use super::{
    documents::Place,
    resources::{Found, Key, Resources},
    secrets::SecretDocument,
};
use crate::{
    api::{Mirror, Problem, ReplicationPeer},
    cli::advice,
    model::{MirrorIdentity, Password, ReplicatorConfig},
    resolve::{self, Endpoint, MissingEntry, Secrets, Target},
};

impl Resources {
    /// A configuration for each Mirror whose references hold; what doesn't goes to `problems`.
    pub(super) fn resolve(&self, problems: &mut Vec<String>) -> Vec<ReplicatorConfig> {
        let mut endpoints = BTreeMap::new();
        for (key, (place, peer)) in &self.peers {
            let mut found = Vec::new();
            let endpoint = peer.as_ref().and_then(|peer| match &self.mounted {
                Some(mounted) => resolve::endpoint(peer, mounted, &mut found),
                None => {
                    let secrets = SecretsOfFiles { secrets: &self.secrets, key };
                    resolve::endpoint(peer, &secrets, &mut found)
                }
            });
            problems.extend(found.into_iter().map(|problem| format!("{place}: {problem}")));
            endpoints.insert(key.clone(), endpoint);
        }
        let mut configs = Vec::new();
        let mut writers = Writers::default();
        for key in &self.order {
            let Some((place, Some(mirror))) = self.mirrors.get(key) else { continue };
            let mut wrong = |problem: Problem| problems.push(format!("{place}: {problem}"));
            match resolve::ends(mirror, |name| named(&endpoints, key, name)) {
                Ok(Some((source, destination))) => {
                    let peer = self.peers.get(&key.sibling(&mirror.spec.destination_ref.name));
                    let peer = peer.and_then(|(_, peer)| peer.as_ref());
                    writers.claim(place, mirror, peer).into_iter().for_each(wrong);
                    let config =
                        resolve::replicator_config(identity(key, mirror), mirror, source, destination);
                    // What the operator mounts is not for people to edit.
                    let file = self.mounted.is_none().then(|| place.file());
                    configs.extend(config.map(|config| {
                        let renderer = Some(advice::renderer(&config.mirror, file));
                        ReplicatorConfig { renderer, ..config }
                    }));
                }
                Ok(None) => {}
                Err(found) => found.into_iter().for_each(&mut wrong),
            }
        }
        configs
    }
}

/// The peer of this name, in the Mirror's namespace.
fn named<'a>(
    endpoints: &'a BTreeMap<Key, Option<Endpoint>>,
    mirror: &Key,
    name: &str,
) -> Result<Option<&'a Endpoint>, String> {
    if let Some(found) = endpoints.get(&mirror.sibling(name)) {
        return Ok(found.as_ref());
    }
    let namespace = &mirror.namespace;
    let known = endpoints.keys().filter(|key| key.namespace == *namespace).map(|key| key.name.as_str());
    let known = known.collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none" } else { &known };
    Err(format!("no ReplicationPeer {name} in namespace {namespace} (the files have there: {known})"))
}

/// The Secrets that one peer may refer to.
struct SecretsOfFiles<'a> {
    secrets: &'a Found<SecretDocument>,
    key: &'a Key,
}

impl Secrets for SecretsOfFiles<'_> {
    fn entry(&self, name: &str, key: &str) -> Result<Password, Option<MissingEntry>> {
        match self.secrets.get(&self.key.sibling(name)) {
            None => Err(Some(MissingEntry::Secret(format!(
                "no Secret {name} in namespace {} among the files",
                self.key.namespace
            )))),
            // The error of the Secret's own document has been reported.
            Some((_, None)) => Err(None),
            Some((place, Some(secret))) => secret
                .get(key)
                .cloned()
                .ok_or_else(|| Some(MissingEntry::Key(format!("Secret {name} ({place}) has no key {key}")))),
        }
    }
}

/// The Mirror that writes each target table: no other one may.
#[derive(Default)]
struct Writers(HashMap<Target, String>);

impl Writers {
    fn claim(
        &mut self,
        place: &Place,
        mirror: &Mirror,
        destination: Option<&ReplicationPeer>,
    ) -> Vec<Problem> {
        let Some(destination) = destination.and_then(|peer| peer.spec.clickhouse.as_ref()) else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        for (index, target) in resolve::targets(mirror, destination).into_iter().enumerate() {
            let path = format!("spec.tables[{index}]");
            let Target { database, table, .. } = target.clone();
            if let Some(earlier) = self.0.insert(target, format!("{path} of {place}")) {
                let message = format!(
                    "target table {table} in database {database} is already written by {earlier}; give one of them another target.table"
                );
                problems.push(Problem::new(path, message));
            }
        }
        problems
    }
}

/// The UID that an API server gave to a Mirror, without its dashes; `None` when it has none.
///
/// # Errors
/// When what is there isn't a UID.
pub(super) fn uid(mirror: &Mirror) -> Result<Option<String>, Problem> {
    let Some(given) = &mirror.metadata.uid else { return Ok(None) };
    let uid: String = given.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    if uid.len() == 32 && uid.bytes().all(|c| c.is_ascii_hexdigit()) {
        return Ok(Some(uid));
    }
    Err(Problem::new(
        "metadata.uid",
        "must have 32 hexadecimal digits; leave it out unless a cluster gave it",
    ))
}

/// Without an API server there is no UID: then it is the first 32 hexadecimal digits of SHA-256 of
/// `namespace/name`, so that the same file finds the same slot again.
fn identity(key: &Key, mirror: &Mirror) -> MirrorIdentity {
    struct Hex<'a>(&'a [u8]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
    let of_name = || {
        let digest = Sha256::digest(format!("{}/{}", key.namespace, key.name));
        Hex(&digest[..16]).to_string()
    };
    MirrorIdentity {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: uid(mirror).ok().flatten().unwrap_or_else(of_name),
    }
}
