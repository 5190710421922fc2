//! `walferry run`: mirrors until a signal.

use std::{
    net::{AddrParseError, SocketAddr},
    process::ExitCode,
};

use tokio_util::sync::CancellationToken;

use super::{
    advice,
    mirrors::{self, Until},
};
use crate::{
    check::{self, Check, CheckReport},
    fault::remedy,
    model::{MirrorIdentity, ReplicatorConfig},
    telemetry::{self, LogFormat},
};

/// Copies the tables of each Mirror, then streams every change until stopped
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  walferry run -f peers.yaml -f mirror.yaml\n  walferry run -f all.yaml --until-caught-up && walferry verify -f all.yaml"
)]
pub struct Args {
    #[command(flatten)]
    files: super::files::Files,
    /// Exit 0 once every table is copied and everything committed at the source by then has arrived
    #[arg(long)]
    pub until_caught_up: bool,
    /// Where to serve /healthz, /readyz, /metrics and /status; :PORT is on 127.0.0.1, port 0 a free one,
    /// which is logged
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464", value_parser = address)]
    pub http: SocketAddr,
}

fn address(text: &str) -> Result<SocketAddr, AddrParseError> {
    if text.starts_with(':') { format!("127.0.0.1{text}").parse() } else { text.parse() }
}

/// Runs until SIGTERM or SIGINT, or until caught up when asked to.
///
/// A table that can't be mirrored blocks no other table, and a Mirror that can't start no other Mirror: both
/// are reported as failed, and retried. Exit code 0 when it ended in order, 1 when nothing of the files could
/// start, or something failed that had to catch up, 2 when the files are wrong.
pub async fn execute(args: Args) -> ExitCode {
    let configs = match args.files.load() {
        Ok(configs) => configs,
        Err(error) => return super::files::exit_invalid(&error),
    };
    let stop = CancellationToken::new();
    if let Err(message) = mirrors::stop_on_signal(&stop) {
        super::output::eprint(&message);
        return ExitCode::FAILURE;
    }
    let Some(checked) = stop.run_until_cancelled(preflights(configs)).await else {
        return ExitCode::SUCCESS;
    };
    if checked
        .iter()
        .all(|(config, report)| report.as_ref().is_some_and(|report| report.starts_nothing(config)))
    {
        for (config, report) in checked {
            report_failures(&config, report.unwrap_or_default());
        }
        return ExitCode::FAILURE;
    }
    let configs = checked
        .into_iter()
        .map(|(config, report)| {
            let verdict = report.map(|report| report.verdict(&config));
            (config, verdict)
        })
        .collect();
    let listener = match mirrors::listen(args.http).await {
        Ok(listener) => listener,
        Err(message) => {
            super::output::eprint(&message);
            return ExitCode::FAILURE;
        }
    };
    let until = if args.until_caught_up { Until::CaughtUp } else { Until::Done };
    match mirrors::run(configs, listener, stop, until).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            super::output::eprint(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The checks of all Mirrors that are not suspended, concurrently: a server that does not answer delays no
/// other.
async fn preflights(configs: Vec<ReplicatorConfig>) -> Vec<(ReplicatorConfig, Option<CheckReport>)> {
    let checks = configs.into_iter().map(|config| async move {
        let report = if config.suspend { None } else { Some(check::preflight(&config).await) };
        (config, report)
    });
    futures::future::join_all(checks).await
}

/// Reports why a Mirror can't start, in the log's format.
fn report_failures(config: &ReplicatorConfig, report: CheckReport) {
    let MirrorIdentity { namespace, name, .. } = &config.mirror;
    let failures = report.failures();
    let renderer = advice::of(config);
    if telemetry::format() == LogFormat::Text {
        let failures = failures.render(None, renderer.as_ref());
        super::output::eprint(&format!(
            "mirror {namespace}/{name} can't start. What `walferry check` finds wrong:\n\n{failures}"
        ));
        return;
    }
    for Check { subject, name: check, reason, detail, remedies, .. } in &failures.checks {
        tracing::error!(
            mirror = name,
            namespace,
            subject,
            check,
            reason = reason.map(tracing::field::display),
            error = detail,
            fix = %remedy::steps(remedies, renderer.as_ref()).join("; then "),
            "mirror can't start"
        );
    }
}
