//! `walferry replicate`: what a replicator's pod runs. `run` with another front: one file, Secrets mounted beside it.

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

/// Where Kubernetes reads a container's last words from.
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

/// Why it ended before it was told to.
enum Fault {
    /// The file or the Secrets can't be used.
    Files(LoadError),
    /// Something else, in words.
    Other(String),
    /// A Mirror's task ended; it has said why.
    Told,
}

/// Runs until SIGTERM or SIGINT. A Mirror that has nothing more to do goes on showing its status: a container that ends is
/// started again.
///
/// Exit code 0 when told to stop, 1 when it can't run, 2 when the file or the Secrets are wrong. What is fatal is also written
/// to the termination log, where there is one.
pub async fn execute(args: Args) -> ExitCode {
    let (message, code) = match replicate(&args).await {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Fault::Told) => return ExitCode::FAILURE,
        Err(Fault::Files(error)) => (error.to_string(), ExitCode::from(2)),
        Err(Fault::Other(message)) => (message, ExitCode::FAILURE),
    };
    super::complain(&message);
    if let Err(error) = leave_word(Path::new(TERMINATION_LOG), &message) {
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
        Ok(false) => Err(Fault::Told),
        Err(error) => Err(Fault::Other(error.to_string())),
    }
}

/// Writes the message to the log if that exists: outside of Kubernetes nobody asked for such a file.
fn leave_word(log: &Path, message: &str) -> std::io::Result<()> {
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
    fn last_words_go_only_where_they_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        leave_word(&log, "nobody listens").unwrap();
        assert!(!log.exists());
        std::fs::write(&log, "the last time's, which were longer").unwrap();
        leave_word(&log, "short").unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "short");
    }
}
