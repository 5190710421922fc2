//! Running Mirrors, with their HTTP endpoint and their lines on the terminal: what `run` and `replicate`
//! share.

use std::{net::SocketAddr, sync::Arc};

use indicatif::HumanCount;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::progress::ProgressDisplay;
use crate::{
    check,
    clickhouse::Database,
    http,
    model::{MirrorPhase, MirrorReport, Progress, ReplicatorConfig, TableReport},
    replication::{self, Admission, DestinationError, RunUntil, Verdict},
};

/// What ends the run, besides a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Everything that was committed at the source when the copy ended has arrived.
    CaughtUp,
    /// No Mirror has anything left to do. A suspended one always has.
    Done,
    /// Nothing: a Mirror that has ended keeps serving its status.
    Stopped,
}

/// Opens the address that status and metrics are served on.
///
/// # Errors
/// A sentence that says what to do.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    let listener = http::listen(address).await;
    listener
        .map_err(|error| format!("can't listen on {address}: {error}. Choose another address with --http"))
}

/// Runs every Mirror. Returns whether each ended in order and, when asked to catch up, with all tables. With
/// each Mirror comes what the checks have found, where they have run already.
///
/// # Errors
/// When the HTTP endpoint can't be used.
pub(super) async fn run(
    configs: Vec<(ReplicatorConfig, Option<Verdict>)>,
    listener: TcpListener,
    stop: CancellationToken,
    until: Until,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let suspended = configs.iter().any(|(config, _)| config.suspend);
    let until_caught_up = until == Until::CaughtUp;
    let mut in_order = true;
    let mut mirrors = Vec::new();
    let mut workers = JoinSet::new();
    for (config, verdict) in configs {
        let progress = Arc::new(Progress::new(&config.mirror).with_renderer(config.renderer.clone()));
        mirrors.push(Arc::clone(&progress));
        let config = Arc::new(config);
        let destination = match Database::new(&config.destination, config.out_of_range) {
            Ok(destination) => destination,
            Err(error) => {
                let failure = replication::failure(&DestinationError::from(error).into());
                tracing::error!(
                    mirror = config.mirror.name,
                    reason = %failure.reason,
                    error = %progress.sentence(&failure),
                    "mirror can't start"
                );
                progress.set_phase(MirrorPhase::Stalled, Some(failure));
                in_order = false;
                continue;
            }
        };
        let admission = Admission::new(check::asks(Arc::clone(&config)), verdict);
        let until = RunUntil { stop: stop.clone(), caught_up: until_caught_up };
        let run = replication::run(config, destination, admission, progress, until);
        workers.spawn(run);
    }
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving http");
    let server = tokio::spawn(http::serve(listener, mirrors.clone(), stop.clone()));
    let display = ProgressDisplay::spawn(mirrors.clone(), stop.clone());

    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended? {
            tracing::error!(%error, "mirror ended");
            in_order = false;
        }
    }
    // A suspended Mirror has not finished: its status is served until a signal.
    if until == Until::Stopped || until == Until::Done && suspended {
        stop.cancelled().await;
    }
    stop.cancel();
    display.await?;
    server.await??;
    if until_caught_up {
        in_order &= report_failed_tables(&mirrors);
        if in_order {
            mirrors.iter().for_each(|progress| super::output::print(&caught_up(&progress.report())));
        }
    }
    Ok(in_order)
}

fn caught_up(report: &MirrorReport) -> String {
    let name = format!("mirror {}/{}", report.namespace, report.name);
    if report.phase != MirrorPhase::Finished {
        return format!("{name}: {:?}", report.phase);
    }
    let sum = |rows: fn(&TableReport) -> u64| HumanCount(report.tables.iter().map(rows).sum());
    format!(
        "{name}: caught up; {} table{}, {} rows copied, {} inserted, {} updated, {} deleted",
        report.tables.len(),
        if report.tables.len() == 1 { "" } else { "s" },
        sum(|table| table.rows_copied),
        sum(|table| table.inserted),
        sum(|table| table.updated),
        sum(|table| table.deleted),
    )
}

fn report_failed_tables(mirrors: &[Arc<Progress>]) -> bool {
    let mut none = true;
    for progress in mirrors {
        for table in progress.report().tables {
            let Some(failure) = table.failure() else { continue };
            let why = progress.sentence(&failure);
            super::output::eprint(&format!("table {}.{} failed: {why}", table.schema, table.name));
            none = false;
        }
    }
    none
}

/// From when it returns, SIGTERM and SIGINT cancel `stop` instead of ending the process.
///
/// # Errors
/// A sentence that says why signals can't be handled.
pub(super) fn stop_on_signal(stop: &CancellationToken) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let handled = |kind| signal(kind).map_err(|error| format!("signals can't be handled: {error}"));
    let (mut terminate, mut interrupt) =
        (handled(SignalKind::terminate())?, handled(SignalKind::interrupt())?);
    let stop = stop.clone();
    tokio::spawn(async move {
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = stop.cancelled() => return,
        };
        tracing::info!(signal, "stopping");
        stop.cancel();
    });
    Ok(())
}
