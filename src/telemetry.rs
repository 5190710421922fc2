//! Logs, on standard error, and the terminal that they share with progress lines.

use std::{
    io::{self, IsTerminal, Write},
    sync::{LazyLock, OnceLock},
};

use indicatif::MultiProgress;
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

/// What is logged unless `--log-level` or `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "info";

/// The least important lines of libraries that are logged, whatever the filter says: below that they write
/// whole answers of the API server, Secrets among them, and statements with their parameters.
const LEAST_OF_LIBRARIES: [(&str, Level); 3] =
    [("kube_client", Level::ERROR), ("kube_runtime", Level::WARN), ("tokio_postgres", Level::WARN)];

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How this process logs.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// How log lines of this process look, for what is said beside them.
pub fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or(LogFormat::Text)
}

/// The progress lines of this process. They are drawn on standard error, and not at all when that isn't a
/// terminal.
pub fn terminal() -> &'static MultiProgress {
    static TERMINAL: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
    &TERMINAL
}

/// Reads a filter such as `debug` or `info,walferry=debug`.
///
/// # Errors
/// What is wrong with it, for the command line's error message.
pub fn parse_filter(text: &str) -> Result<String, String> {
    // To the filter any word is the name of a module, so that a slip in a level would silence all of the
    // program.
    let slip = text.split(',').map(str::trim).find(|part| {
        !part.contains(['=', '[']) && part.parse::<tracing_subscriber::filter::LevelFilter>().is_err()
    });
    if let Some(part) = slip {
        return Err(format!(
            "{part} is not a level; levels are error, warn, info, debug, trace and off, alone or behind a module's name as in walferry=debug"
        ));
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Starts logging to standard error. `format`: text on a terminal, else JSON, when `None`. `filter` (see
/// [`parse_filter`]): `RUST_LOG`, else `info`, when `None`.
///
/// # Errors
/// When the process logs already.
pub fn init(
    format: Option<LogFormat>,
    filter: Option<&str>,
) -> Result<(), tracing_subscriber::util::TryInitError> {
    let on_terminal = io::stderr().is_terminal();
    let filter = match filter {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER)),
    };
    // The driver logs answers whole, and an exception may quote a row.
    let filter = match "clickhouse=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| AboveProgress)
        .with_ansi(on_terminal);
    let format = format.unwrap_or(if on_terminal { LogFormat::Text } else { LogFormat::Json });
    FORMAT.set(format).ok();
    match format {
        LogFormat::Json => {
            subscriber.json().flatten_event(true).finish().with(filter_fn(holds_no_answer)).try_init()
        }
        LogFormat::Text => subscriber.with_target(false).finish().with(filter_fn(holds_no_answer)).try_init(),
    }
}

/// Whether a line or span is not one in which a library shows what a server has answered or was sent.
pub(crate) fn holds_no_answer(line: &Metadata<'_>) -> bool {
    let of = |library: &str| {
        line.target().strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    LEAST_OF_LIBRARIES.iter().all(|(library, least)| !of(library) || line.level() <= least)
}

/// Writes to standard error while the progress lines step aside. The formatter hands over one whole line at a
/// time.
struct AboveProgress;

impl Write for AboveProgress {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        terminal().suspend(|| io::stderr().write_all(line)).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        assert_eq!(parse_filter("info,walferry=debug").unwrap(), "info,walferry=debug");
        for level in ["off", "TRACE", "warn,hyper=off"] {
            assert!(parse_filter(level).is_ok(), "{level}");
        }
        assert!(parse_filter("walferry=loud").is_err());
        for slip in ["loud", "info,wlaferry"] {
            assert!(parse_filter(slip).unwrap_err().contains("is not a level"), "{slip}");
        }
    }
}
