//! `walferry replicate`: what a replicator's pod runs. It is `run` for one file, with its Secrets mounted
//! beside it.

use std::{
    fs::OpenOptions,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use tokio_util::sync::CancellationToken;

use super::{
    load::{self, LoadError},
    mirrors::{self, Until},
};

/// The file from which Kubernetes reads a container's termination message.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Runs the Mirror of a pod, with the Secrets in a mounted folder; started by the operator
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  walferry replicate --config /etc/walferry/mirror.yaml --secrets /etc/walferry/secrets"
)]
pub struct Args {
    /// YAML file with ReplicationPeer and Mirror documents
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Folder with a folder for each Secret, and in it a file for each key
    #[arg(long, value_name = "DIR")]
    pub secrets: PathBuf,
    /// Where to serve /healthz, /readyz, /metrics and /status
    #[arg(long, value_name = "ADDR", default_value = "[::]:9464")]
    pub http: SocketAddr,
}

/// Why the process ended without a signal.
enum Fault {
    /// The file or the Secrets can't be used.
    Files(LoadError),
    /// Something else, in words.
    Other(String),
    /// A Mirror's task ended and has logged why.
    Reported,
}

/// Runs until SIGTERM or SIGINT. A Mirror that has nothing more to do keeps serving its status: a container
/// that ends is started again.
///
/// Exit code 0 after a signal, 1 when it can't run, 2 when the file or the Secrets are wrong. A fatal error
/// is also written to the termination log, where there is one.
pub async fn execute(args: Args) -> ExitCode {
    let (message, code) = match replicate(&args).await {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Fault::Reported) => return ExitCode::FAILURE,
        Err(Fault::Files(error)) => (error.to_string(), ExitCode::from(2)),
        Err(Fault::Other(message)) => (message, ExitCode::FAILURE),
    };
    super::output::eprint(&message);
    if let Err(error) = write_termination_log(Path::new(TERMINATION_LOG), &message) {
        tracing::debug!(%error, "the termination log can't be written");
    }
    code
}

async fn replicate(args: &Args) -> Result<(), Fault> {
    let configs = load::load_mounted(&args.config, &args.secrets).map_err(Fault::Files)?;
    let stop = CancellationToken::new();
    mirrors::stop_on_signal(&stop).map_err(Fault::Other)?;
    let listener = mirrors::listen(args.http).await.map_err(Fault::Other)?;
    let configs = configs.into_iter().map(|config| (config, None)).collect();
    match mirrors::run(configs, listener, stop, Until::Stopped).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Fault::Reported),
        Err(error) => Err(Fault::Other(error.to_string())),
    }
}

/// Writes the message to the termination log if that exists, which it does in Kubernetes alone.
fn write_termination_log(log: &Path, message: &str) -> std::io::Result<()> {
    match OpenOptions::new().write(true).truncate(true).open(log) {
        Ok(mut log) => log.write_all(message.as_bytes()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_termination_log_is_written_only_where_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        write_termination_log(&log, "no such file").unwrap();
        assert!(!log.exists());
        std::fs::write(&log, "the last time's, which were longer").unwrap();
        write_termination_log(&log, "short").unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "short");
    }
}
