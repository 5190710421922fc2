//! Reads ReplicationPeer, Mirror and Secret documents from files and resolves each Mirror into a
//! [`ReplicatorConfig`].
//!
//! All errors are reported together, each with its file, document, field and what is allowed, and without any
//! value, since values may be secrets. `${VAR}` is not expanded: secrets come from Secret documents, or from
//! a folder that they are mounted in.

mod documents;
mod mounted;
mod resolve;
mod schema;
mod secrets;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    api::{self, Mirror, Problem, ReplicationPeer},
    model::ReplicatorConfig,
};
use documents::{Document, Place};
use mounted::MountedSecrets;
use secrets::SecretDocument;

/// The files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("{file}: cannot read: {source}")]
    Read {
        /// The file, or standard input.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The documents are wrong; one line a problem.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// A generated schema isn't valid: a defect of walferry.
    #[error("the schemas of the resources are not valid")]
    Schema(#[source] serde_json::Error),
}

/// Reads the files (`-` is standard input) and gives one configuration for each Mirror, in their order.
///
/// # Errors
/// [`LoadError`]: a file can't be read, or its documents are wrong.
pub fn load(files: &[PathBuf]) -> Result<Vec<ReplicatorConfig>, LoadError> {
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    for file in files {
        documents.extend(documents::read(file, &mut problems)?);
    }
    from_documents(documents, problems, None)
}

/// Reads one file, whose Secrets are files below the folder `secrets`: `SECRET/KEY`.
///
/// # Errors
/// As [`load`].
pub fn load_mounted(file: &Path, secrets: &Path) -> Result<Vec<ReplicatorConfig>, LoadError> {
    let mut problems = Vec::new();
    let documents = documents::read(file, &mut problems)?;
    from_documents(documents, problems, Some(MountedSecrets::new(secrets)))
}

/// Reads a file's text, however wrong it is.
#[cfg(any(test, doc, fuzzing))]
pub fn fuzz(text: &str) -> Result<Vec<ReplicatorConfig>, LoadError> {
    static SCHEMAS: std::sync::LazyLock<schema::Schemas> =
        std::sync::LazyLock::new(|| schema::by_kind().unwrap_or_default());
    let mut problems = Vec::new();
    let documents = documents::parse(Path::new("fuzz.yaml"), text, &mut problems);
    from_checked(&SCHEMAS, documents, problems, None)
}

fn from_documents(
    documents: Vec<Document>,
    problems: Vec<String>,
    mounted: Option<MountedSecrets>,
) -> Result<Vec<ReplicatorConfig>, LoadError> {
    from_checked(&schema::by_kind().map_err(LoadError::Schema)?, documents, problems, mounted)
}

/// Checks the documents by their schemas, and resolves them.
fn from_checked(
    schemas: &schema::Schemas,
    documents: Vec<Document>,
    mut problems: Vec<String>,
    mounted: Option<MountedSecrets>,
) -> Result<Vec<ReplicatorConfig>, LoadError> {
    let mut resources = Resources { mounted, ..Resources::default() };
    for Document { place, value } in documents {
        let mut found = Vec::new();
        match identify(&value) {
            Err(problem) => found.push(problem),
            Ok(kind) => {
                if let Some(schema) = schemas.get(kind) {
                    found.extend(schema::problems(schema, &value, ""));
                }
                let key = Key::of(&value, &mut found);
                resources.add(kind, key, &place, value, &mut found);
            }
        }
        problems.extend(found.into_iter().map(|problem| format!("{place}: {problem}")));
    }
    if resources.mirrors.is_empty() && problems.is_empty() {
        problems.push("no Mirror in these files".to_owned());
    }
    let configs = resources.resolve(&mut problems);
    if problems.is_empty() { Ok(configs) } else { Err(LoadError::Invalid(problems)) }
}

/// Namespace and name of a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: String,
    name: String,
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

    fn sibling(&self, name: &str) -> Key {
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

/// A resource of the files; `None` when its document is wrong and that has been reported.
type Found<T> = BTreeMap<Key, (Place, Option<T>)>;

#[derive(Default)]
struct Resources {
    peers: Found<ReplicationPeer>,
    secrets: Found<SecretDocument>,
    mirrors: Found<Mirror>,
    /// Where Secrets are when they are not documents.
    mounted: Option<MountedSecrets>,
    /// Mirrors in the order of the files.
    order: Vec<Key>,
}

impl Resources {
    /// Takes a document in; `problems` holds what its schema says and gets what is found beyond.
    fn add(
        &mut self,
        kind: &'static str,
        key: Key,
        place: &Place,
        value: Value,
        problems: &mut Vec<Problem>,
    ) {
        let valid = problems.is_empty();
        let earlier = match kind {
            "ReplicationPeer" => {
                let peer = valid.then(|| typed::<ReplicationPeer>(value, problems)).flatten();
                problems.extend(peer.iter().flat_map(|peer| api::peer_problems(&peer.spec)));
                self.peers
                    .insert(key, (place.clone(), peer.filter(|_| problems.is_empty())))
                    .map(|(place, _)| place)
            }
            "Mirror" => {
                let mut mirror = valid.then(|| typed::<Mirror>(value, problems)).flatten();
                for name in mirror.iter_mut().flat_map(|mirror| api::normalize(&mut mirror.spec)) {
                    tracing::warn!(document = %place, field = name.path, "{name}");
                }
                problems.extend(mirror.iter().flat_map(|mirror| api::mirror_problems(&mirror.spec)));
                problems.extend(mirror.iter().filter_map(|mirror| resolve::uid(mirror).err()));
                if !self.mirrors.contains_key(&key) {
                    self.order.push(key.clone());
                }
                self.mirrors
                    .insert(key, (place.clone(), mirror.filter(|_| problems.is_empty())))
                    .map(|(place, _)| place)
            }
            _ => {
                problems.extend(self.mounted.as_ref().map(MountedSecrets::no_document));
                let secret = valid.then(|| SecretDocument::new(&value, problems));
                self.secrets
                    .insert(key, (place.clone(), secret.filter(|_| problems.is_empty())))
                    .map(|(place, _)| place)
            }
        };
        if let Some(earlier) = earlier {
            problems.push(Problem::new("metadata.name", format!("the same {kind} is already in {earlier}")));
        }
    }
}

/// Into the resource's type. The schema has been checked, so an error is one that only the type knows of.
fn typed<T: DeserializeOwned>(value: Value, problems: &mut Vec<Problem>) -> Option<T> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| problems.push(Problem::new(error.path().to_string(), error.inner().to_string())))
        .ok()
}

#[cfg(test)]
mod tests;
