//! `walferry teardown`: removes what was provisioned at the source, and the state.

use std::{process::ExitCode, time::Duration};

use crate::{
    clickhouse::Database,
    model::{DeletionPolicy, ReplicatorConfig},
    postgres::{publication, session::Session, slot},
    replication::Destination,
};

/// Drops slot, publication and state of each Mirror; never a target table
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walferry teardown -f peers.yaml -f mirror.yaml")]
pub struct Args {
    #[command(flatten)]
    files: super::Files,
}

/// How long a replicator that is just ending may still hold its slot.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

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

async fn tear_down(
    config: &ReplicatorConfig,
) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let session = Session::connect(&config.source, &config.mirror.application_name()).await?;
    let (slot_name, publication_name) = (config.mirror.slot_name(), config.mirror.publication_name());
    let mut done = Vec::new();
    wait_until_released(&session, &slot_name).await?;
    done.push(dropped("slot", &slot_name, slot::drop(&session, &slot_name).await?));
    done.push(match publication::read(&session, &publication_name).await? {
        Some(found) if !found.owned_by_us => {
            format!("publication {publication_name} isn't this mirror's and stays")
        }
        _ => dropped("publication", &publication_name, publication::drop(&session, &publication_name).await?),
    });
    let destination = Database::new(&config.destination, config.out_of_range)?;
    destination.prepare().await?;
    destination.drop_state(&config.mirror.uid).await?;
    done.push("state removed".to_owned());
    done.push("target tables stay".to_owned());
    Ok(done)
}

async fn wait_until_released(
    session: &Session,
    slot_name: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let deadline = tokio::time::Instant::now() + RELEASE_WITHIN;
    while let Some(pid) = slot::read(session, slot_name).await?.and_then(|slot| slot.active_pid) {
        if tokio::time::Instant::now() >= deadline {
            return Err(format!(
                "slot {slot_name} is in use by the walsender with pid {pid}: stop the replicator first, or run SELECT pg_terminate_backend({pid}) at the source"
            )
            .into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn dropped(what: &str, name: &str, was_there: bool) -> String {
    if was_there { format!("{what} {name} dropped") } else { format!("{what} {name} was not there") }
}
