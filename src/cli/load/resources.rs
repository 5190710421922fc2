//! The resources of the files, by kind and name.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    documents::{Document, Place},
    mounted::MountedSecrets,
    resolve,
    schema::{self, Schemas},
    secrets::SecretDocument,
};
use crate::api::{self, Mirror, Problem, ReplicationPeer};

/// A resource of the files; `None` when its document is wrong and that has been reported.
pub(super) type Found<T> = BTreeMap<Key, (Place, Option<T>)>;

#[derive(Default)]
pub(super) struct Resources {
    pub(super) peers: Found<ReplicationPeer>,
    pub(super) secrets: Found<SecretDocument>,
    pub(super) mirrors: Found<Mirror>,
    /// Where Secrets are when they are not documents.
    pub(super) mounted: Option<MountedSecrets>,
    /// Mirrors in the order of the files.
    pub(super) order: Vec<Key>,
}

impl Resources {
    /// Takes a document in, and adds to `problems` what is wrong with it.
    pub(super) fn add(&mut self, schemas: &Schemas, document: Document, problems: &mut Vec<Problem>) {
        let Document { place, value } = document;
        let kind = match identify(&value) {
            Ok(kind) => kind,
            Err(problem) => return problems.push(problem),
        };
        if let Some(schema) = schemas.get(kind) {
            problems.extend(schema::problems(schema, &value, ""));
        }
        let key = Key::of(&value, problems);
        let earlier = match kind {
            "ReplicationPeer" => self.add_peer(key, &place, value, problems),
            "Mirror" => self.add_mirror(key, &place, value, problems),
            _ => self.add_secret(key, &place, &value, problems),
        };
        if let Some(earlier) = earlier {
            problems.push(Problem::new("metadata.name", format!("the same {kind} is already in {earlier}")));
        }
    }

    /// Gives the place of an earlier document with this key.
    fn add_peer(
        &mut self,
        key: Key,
        place: &Place,
        value: Value,
        problems: &mut Vec<Problem>,
    ) -> Option<Place> {
        let peer = problems.is_empty().then(|| typed::<ReplicationPeer>(value, problems)).flatten();
        problems.extend(peer.iter().flat_map(|peer| api::peer_problems(&peer.spec)));
        let peer = peer.filter(|_| problems.is_empty());
        self.peers.insert(key, (place.clone(), peer)).map(|(place, _)| place)
    }

    /// Gives the place of an earlier document with this key.
    fn add_mirror(
        &mut self,
        key: Key,
        place: &Place,
        value: Value,
        problems: &mut Vec<Problem>,
    ) -> Option<Place> {
        let mut mirror = problems.is_empty().then(|| typed::<Mirror>(value, problems)).flatten();
        for name in mirror.iter_mut().flat_map(|mirror| api::normalize(&mut mirror.spec)) {
            tracing::warn!(document = %place, field = name.path, "{name}");
        }
        problems.extend(mirror.iter().flat_map(|mirror| api::mirror_problems(&mirror.spec)));
        problems.extend(mirror.iter().filter_map(|mirror| resolve::uid(mirror).err()));
        if !self.mirrors.contains_key(&key) {
            self.order.push(key.clone());
        }
        let mirror = mirror.filter(|_| problems.is_empty());
        self.mirrors.insert(key, (place.clone(), mirror)).map(|(place, _)| place)
    }

    /// Gives the place of an earlier document with this key.
    fn add_secret(
        &mut self,
        key: Key,
        place: &Place,
        value: &Value,
        problems: &mut Vec<Problem>,
    ) -> Option<Place> {
        let valid = problems.is_empty();
        problems.extend(self.mounted.as_ref().map(MountedSecrets::no_document));
        let secret = valid.then(|| SecretDocument::new(value, problems));
        let secret = secret.filter(|_| problems.is_empty());
        self.secrets.insert(key, (place.clone(), secret)).map(|(place, _)| place)
    }
}

/// Namespace and name of a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    fn of(value: &Value, problems: &mut Vec<Problem>) -> Key {
        let mut text = |pointer: &str, path: &str, default: &str| {
            let text = value.pointer(pointer).and_then(Value::as_str).unwrap_or(default);
            // The schema reports a missing field.
            if value.pointer(pointer).is_some_and(Value::is_string) && !api::is_object_name(text) {
                let rule = "must be 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part";
                problems.push(Problem::new(path, rule));
            }
            text.to_owned()
        };
        Key {
            namespace: text("/metadata/namespace", "metadata.namespace", "default"),
            name: text("/metadata/name", "metadata.name", ""),
        }
    }

    pub(super) fn sibling(&self, name: &str) -> Key {
        Key { namespace: self.namespace.clone(), name: name.to_owned() }
    }
}

fn identify(value: &Value) -> Result<&'static str, Problem> {
    if !value.is_object() {
        return Err(Problem::new("document", "expected an object with apiVersion, kind, metadata and spec"));
    }
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (kind, version) = match text("kind") {
        "ReplicationPeer" => ("ReplicationPeer", api::API_VERSION),
        "Mirror" => ("Mirror", api::API_VERSION),
        "Secret" => ("Secret", "v1"),
        _ => return Err(Problem::new("kind", "expected one of ReplicationPeer, Mirror, Secret")),
    };
    if text("apiVersion") != version {
        return Err(Problem::new("apiVersion", format!("expected {version} for a {kind}")));
    }
    Ok(kind)
}

/// Into the resource's type. The schema has been checked, so an error is one that only the type knows of.
fn typed<T: DeserializeOwned>(value: Value, problems: &mut Vec<Problem>) -> Option<T> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| problems.push(Problem::new(error.path().to_string(), error.inner().to_string())))
        .ok()
}
