//! `walferry check`: preflight checks of source and destination.

use std::process::ExitCode;

use super::advice;
use crate::check;

/// Reports what is missing at the source and at the destination, with the statements that fix it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 nothing fails, 1 something fails, 2 the files are wrong.\n\n\
                        Example:\n  walferry check -f peers.yaml -f mirror.yaml")]
pub struct Args {
    #[command(flatten)]
    files: super::files::Files,
}

/// Checks every Mirror of the files and prints a table for each. Exit code 1 when anything fails, 2 when the
/// files are wrong.
pub async fn execute(args: Args) -> ExitCode {
    let configs = match args.files.load() {
        Ok(configs) => configs,
        Err(error) => return super::files::exit_invalid(&error),
    };
    // Without a terminal there is no width: nothing is wrapped, so that tools can read it.
    let width = console::Term::stdout().size_checked().map(|(_, columns)| columns);
    let mut failed = false;
    for config in &configs {
        let report = check::preflight(config).await;
        failed |= report.failed();
        let mirror = &config.mirror;
        let text = format!(
            "Mirror {}/{}\n\n{}",
            mirror.namespace,
            mirror.name,
            report.render(width, advice::of(config).as_ref())
        );
        super::output::print(&text);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
