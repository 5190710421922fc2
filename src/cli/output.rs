//! What commands print, above the progress lines.

use crate::telemetry;

/// Prints an error on standard error, above the progress lines.
pub(super) fn eprint(text: &str) {
    telemetry::terminal().suspend(|| print_to(std::io::stderr(), text));
}

/// Prints a result on standard output, above the progress lines.
pub(super) fn print(text: &str) {
    telemetry::terminal().suspend(|| print_to(std::io::stdout(), text));
}

/// Writes a line. A reader that closes the pipe early, such as `head`, is no error; the exit code still
/// reports the outcome.
fn print_to(mut stream: impl std::io::Write, text: &str) {
    if let Err(error) = writeln!(stream, "{text}").and_then(|()| stream.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        tracing::error!(%error, "writing the command's output failed");
    }
}
