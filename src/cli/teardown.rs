//! `walferry teardown`: removes what was provisioned at the source, and the state.

use std::process::ExitCode;

use crate::{
    cleanup::{self, SourceObjects},
    model::{DeletionPolicy, ReplicatorConfig},
};

/// Drops slot, publication and state of each Mirror; never a target table
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walferry teardown -f peers.yaml -f mirror.yaml")]
pub struct Args {
    #[command(flatten)]
    files: super::Files,
}

/// Drops slot, publication and state of each Mirror; never a target table. Doing it again changes nothing.
///
/// Exit code 0 when nothing is left, 1 when something could not be dropped, 2 when the files are wrong.
pub async fn execute(args: Args) -> ExitCode {
    let configs = match args.files.load() {
        Ok(configs) => configs,
        Err(error) => return super::refuse(&error),
    };
    let mut outcome = ExitCode::SUCCESS;
    for config in &configs {
        let name = format!("{}/{}", config.mirror.namespace, config.mirror.name);
        if config.deletion_policy == DeletionPolicy::Retain {
            super::say(&format!("mirror {name}: deletionPolicy is Retain, nothing dropped"));
            continue;
        }
        match tear_down(config).await {
            Ok(done) => super::say(&format!("mirror {name}: {}", done.join(", "))),
            Err(error) => {
                super::complain(&format!("mirror {name}: {error}"));
                outcome = ExitCode::FAILURE;
            }
        }
    }
    outcome
}

async fn tear_down(config: &ReplicatorConfig) -> Result<Vec<String>, cleanup::Error> {
    let mirror = &config.mirror;
    let objects = SourceObjects {
        application_name: &mirror.application_name(),
        slot: &mirror.slot_name(),
        publication: &mirror.publication_name(),
    };
    let mut done = cleanup::source(&config.source, objects).await?;
    cleanup::state(&config.destination, &mirror.uid).await?;
    done.extend(["state removed".to_owned(), "target tables stay".to_owned()]);
    Ok(done)
}
