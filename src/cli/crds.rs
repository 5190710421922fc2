//! `walferry crds`: the CustomResourceDefinitions as YAML.

use std::{io::Write, process::ExitCode};

use crate::api;

/// Prints the CustomResourceDefinitions of ReplicationPeer and Mirror.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walferry crds | kubectl apply --server-side -f -")]
pub struct Args {}

/// Prints the definitions to standard output. Answers 0, or 1 when standard output can't be written.
pub async fn execute(_: Args) -> ExitCode {
    let written =
        yaml().map_err(std::io::Error::other).and_then(|text| std::io::stdout().write_all(text.as_bytes()));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot print the custom resource definitions");
            ExitCode::FAILURE
        }
    }
}

/// The definitions as one YAML stream: what the repository keeps in `crds/walferry.dev.yaml`.
///
/// # Errors
/// When a definition can't be written as YAML, which would be a defect of the generated schema.
pub fn yaml() -> Result<String, serde_yaml::Error> {
    let mut text = String::from("# Made by `walferry crds`; change src/api instead.\n");
    for definition in api::custom_resource_definitions() {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&definition)?);
    }
    Ok(text)
}
