//! `walferry teardown`: removes what was provisioned at the source, and the state.

use std::process::ExitCode;

use crate::{
    cleanup::{self, MirrorRemoval},
    model::DeletionPolicy,
};

/// Drops slot, publication and state of each Mirror; never a target table
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walferry teardown -f peers.yaml -f mirror.yaml")]
pub struct Args {
    #[command(flatten)]
    files: super::files::Files,
}

/// Drops slot, publication and state of each Mirror; never a target table. Doing it again changes nothing.
///
/// Exit code 0 when nothing is left but what only its owner can drop, whose statement is printed; 1 when a
/// drop failed, 2 when the files are wrong.
pub async fn execute(args: Args) -> ExitCode {
    let configs = match args.files.load() {
        Ok(configs) => configs,
        Err(error) => return super::files::exit_invalid(&error),
    };
    let mut outcome = ExitCode::SUCCESS;
    for config in &configs {
        let name = format!("{}/{}", config.mirror.namespace, config.mirror.name);
        if config.deletion_policy == DeletionPolicy::Retain {
            super::output::print(&format!("mirror {name}: deletionPolicy is Retain, nothing dropped"));
            continue;
        }
        let removal = MirrorRemoval {
            mirror: &config.mirror,
            source: &config.source,
            destination: &config.destination,
            made_at: None,
        };
        match cleanup::remove(removal).await {
            Ok(report) => super::output::print(&format!("mirror {name}: {}", report.done.join(", "))),
            Err(error @ cleanup::CleanupError::OtherSource { .. }) => {
                let statements = cleanup::statements(&config.mirror);
                super::output::eprint(&format!("mirror {name}: {error}, or run there: {statements}"));
                outcome = ExitCode::FAILURE;
            }
            Err(error) => {
                super::output::eprint(&format!("mirror {name}: {error}"));
                outcome = ExitCode::FAILURE;
            }
        }
    }
    outcome
}
