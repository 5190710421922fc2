//! `walferry run`: mirrors until told to stop.

use std::{
    net::{AddrParseError, SocketAddr},
    process::ExitCode,
};

use tokio_util::sync::CancellationToken;

use super::mirrors::{self, Until};
use crate::check;

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
    if let Err(message) = mirrors::stop_on_signal(&stop) {
        super::complain(&message);
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
    let listener = match mirrors::listen(args.http).await {
        Ok(listener) => listener,
        Err(message) => {
            super::complain(&message);
            return ExitCode::FAILURE;
        }
    };
    let until = if args.until_caught_up { Until::CaughtUp } else { Until::Done };
    match mirrors::run(configs, listener, stop, until).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            super::complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
