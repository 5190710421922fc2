//! Reads ReplicationPeer, Mirror and Secret documents from files and resolves each Mirror into a
//! [`ReplicatorConfig`].
//!
//! All errors are reported together, each with its file, document, field and what is allowed, and without any
//! value, since values may be secrets. `${VAR}` is not expanded: secrets come from Secret documents, or from
//! a folder that they are mounted in.

mod documents;
mod error;
mod mounted;
mod resolve;
mod resources;
mod schema;
mod secrets;

use std::path::{Path, PathBuf};

use self::{documents::Document, mounted::MountedSecrets, resources::Resources};
use crate::model::ReplicatorConfig;

pub use error::LoadError;

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
    for document in documents {
        let mut found = Vec::new();
        let place = document.place.clone();
        resources.add(schemas, document, &mut found);
        problems.extend(found.into_iter().map(|problem| format!("{place}: {problem}")));
    }
    if resources.mirrors.is_empty() && problems.is_empty() {
        problems.push("no Mirror in these files".to_owned());
    }
    let configs = resources.resolve(&mut problems);
    if problems.is_empty() { Ok(configs) } else { Err(LoadError::Invalid(problems)) }
}

#[cfg(test)]
mod tests;
