//! The files that commands take.

use std::process::ExitCode;

use super::{load, output};
use crate::model::ReplicatorConfig;

/// The files that a command takes.
#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// YAML files with ReplicationPeer, Mirror and Secret documents; `-` for standard input
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE", num_args = 1..)]
    paths: Vec<std::path::PathBuf>,
}

impl Files {
    /// Reads the files and resolves the Mirrors in them.
    pub(super) fn load(&self) -> Result<Vec<ReplicatorConfig>, load::LoadError> {
        load::load(&self.paths)
    }
}

/// Prints what is wrong with the files and exits with 2.
pub(super) fn exit_invalid(error: &load::LoadError) -> ExitCode {
    output::eprint(&error.to_string());
    ExitCode::from(2)
}
