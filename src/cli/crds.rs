//! `walferry crds`: the CustomResourceDefinitions as YAML, or as a reference for people.

mod markdown;

use std::{io::Write, process::ExitCode};

use crate::api;

pub use markdown::markdown;

/// Prints the CustomResourceDefinitions of ReplicationPeer and Mirror.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walferry crds | kubectl apply --server-side -f -")]
pub struct Args {
    /// yaml for the API server, markdown for people
    #[arg(long, value_enum, default_value_t = Format::Yaml, value_name = "FORMAT", hide_possible_values = true)]
    pub format: Format,
}

/// The form in which the CRDs are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The CRDs as YAML.
    Yaml,
    /// A reference of their fields, conditions and reasons.
    Markdown,
}

/// Prints the CRDs to standard output. Answers 0, or 1 when standard output can't be written.
pub async fn execute(args: Args) -> ExitCode {
    let text = match args.format {
        Format::Yaml => yaml().map_err(std::io::Error::other),
        Format::Markdown => Ok(markdown()),
    };
    match text.and_then(|text| std::io::stdout().write_all(text.as_bytes())) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that closes the pipe early is no error.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "printing the CRDs failed");
            ExitCode::FAILURE
        }
    }
}

/// The CRDs as one YAML stream: what the repository keeps in `crds/walferry.dev.yaml`.
///
/// # Errors
/// When a CRD can't be written as YAML, which would be a defect of the generated schema.
pub fn yaml() -> Result<String, serde_yaml::Error> {
    let mut text = String::from("# Made by `walferry crds`; change src/api instead.\n");
    for crd in api::custom_resource_definitions() {
        text.push_str("---\n");
        text.push_str(&serde_yaml::to_string(&crd)?);
    }
    Ok(text)
}
