//! `walferry run`: mirrors until told to stop.

use std::{
    net::{AddrParseError, SocketAddr},
    process::ExitCode,
    sync::Arc,
};

use indicatif::HumanCount;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::progress::ProgressDisplay;
use crate::{
    check,
    clickhouse::Database,
    http,
    model::{MirrorPhase, MirrorReport, Progress, ReplicatorConfig, TableReport, TableState},
    replication,
};

/// Copies the tables of each Mirror, then streams every change until told to stop
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  walferry run -f peers.yaml -f mirror.yaml\n  walferry run -f all.yaml --until-caught-up && walferry verify -f all.yaml"
)]
pub struct Args {
    #[command(flatten)]
    files: super::Files,
    /// Exit 0 once every table is copied and everything committed at the source by then has arrived
    #[arg(long)]
    pub until_caught_up: bool,
    /// Where to serve /healthz, /readyz, /metrics and /status; :PORT is on 127.0.0.1, port 0 a free one, which is logged
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464", value_parser = address)]
    pub http: SocketAddr,
}

fn address(text: &str) -> Result<SocketAddr, AddrParseError> {
    if text.starts_with(':') { format!("127.0.0.1{text}").parse() } else { text.parse() }
}

/// Runs until SIGTERM or SIGINT, or until caught up when asked to.
///
/// Exit code 0 when it ended in order, 1 when a check or a Mirror failed, 2 when the files are wrong.
pub async fn execute(args: Args) -> ExitCode {
    let configs = match args.files.load() {
        Ok(configs) => configs,
        Err(error) => return super::refuse(&error),
    };
    let stop = CancellationToken::new();
    if let Err(error) = stop_on_signal(&stop) {
        super::complain(&format!("signals can't be handled: {error}"));
        return ExitCode::FAILURE;
    }
    for config in &configs {
        if config.suspend {
            continue;
        }
        let report = tokio::select! {
            report = check::preflight(config) => report,
            () = stop.cancelled() => return ExitCode::SUCCESS,
        };
        if report.failed() {
            super::complain(&format!(
                "mirror {}/{} can't start. What `walferry check` finds wrong:\n\n{}",
                config.mirror.namespace,
                config.mirror.name,
                report.failures()
            ));
            return ExitCode::FAILURE;
        }
    }
    let listener = match TcpListener::bind(args.http).await {
        Ok(listener) => listener,
        Err(error) => {
            super::complain(&format!(
                "can't listen on {}: {error}. Choose another address with --http",
                args.http
            ));
            return ExitCode::FAILURE;
        }
    };
    match mirror(configs, listener, stop, args.until_caught_up).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            super::complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Runs every Mirror; says whether each ended in order and, when asked to catch up, with all tables.
async fn mirror(
    configs: Vec<ReplicatorConfig>,
    listener: TcpListener,
    stop: CancellationToken,
    until_caught_up: bool,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let suspended = configs.iter().any(|config| config.suspend);
    let mut mirrors = Vec::new();
    let mut workers = JoinSet::new();
    for config in configs {
        let progress = Arc::new(Progress::new(&config.mirror));
        mirrors.push(Arc::clone(&progress));
        let destination = Database::new(&config.destination, config.out_of_range)?;
        workers.spawn(replication::run(
            Arc::new(config),
            destination,
            progress,
            stop.clone(),
            until_caught_up,
        ));
    }
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving http");
    let server = tokio::spawn(http::serve(listener, mirrors.clone(), stop.clone()));
    let display = ProgressDisplay::spawn(mirrors.clone(), stop.clone());

    let mut in_order = true;
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended? {
            tracing::error!(%error, "mirror ended");
            in_order = false;
        }
    }
    // A suspended Mirror has not finished: its status is served until told to stop.
    if suspended && !until_caught_up {
        stop.cancelled().await;
    }
    stop.cancel();
    display.await?;
    server.await??;
    if until_caught_up {
        in_order &= report_failed_tables(&mirrors);
        if in_order {
            mirrors.iter().for_each(|progress| super::say(&caught_up(&progress.report())));
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
    for report in mirrors.iter().map(|progress| progress.report()) {
        for table in report.tables.iter().filter(|table| table.state == TableState::Failed) {
            super::complain(&format!("table {}.{} failed: {}", table.schema, table.name, table.message));
            none = false;
        }
    }
    none
}

/// From when it returns, SIGTERM and SIGINT cancel `stop` instead of ending the process.
fn stop_on_signal(stop: &CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
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
