//! The command line: one file a command.

mod advice;
pub mod check;
pub mod crds;
mod files;
pub mod load;
mod mirrors;
pub mod operator;
mod output;
pub mod progress;
pub mod replicate;
pub mod run;
pub mod teardown;
pub mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::{self, LogFormat};

/// Replicates PostgreSQL tables to ClickHouse by logical replication.
#[derive(Debug, Parser)]
#[command(
    name = "walferry",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed or different, 2 wrong usage or wrong files.\n\n\
                  Example:\n  walferry check -f mirror.yaml && walferry run -f mirror.yaml"
)]
pub struct Cli {
    /// Log format, json or text [default: text on a terminal, else json]
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Logging"
    )]
    log_format: Option<LogFormat>,
    /// Log level, such as debug or info,walferry=debug [default: $RUST_LOG, else info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = telemetry::parse_filter, help_heading = "Logging")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Verify(verify::Args),
    Teardown(teardown::Args),
    Crds(crds::Args),
    Replicate(replicate::Args),
    Operator(operator::Args),
}

impl Cli {
    /// Starts logging and runs the command. Exit code 0 when it succeeded, 1 when it failed or found a
    /// difference, 2 when the files are wrong; wrong usage ends in the parser, with 2 too.
    pub async fn execute(self) -> ExitCode {
        if let Err(error) = telemetry::init(self.log_format, self.log_level.as_deref()) {
            eprintln!("cannot start logging: {error}");
            return ExitCode::FAILURE;
        }
        match self.command {
            Command::Run(args) => run::execute(args).await,
            Command::Check(args) => check::execute(args).await,
            Command::Verify(args) => verify::execute(args).await,
            Command::Teardown(args) => teardown::execute(args).await,
            Command::Crds(args) => crds::execute(args).await,
            Command::Replicate(args) => replicate::execute(args).await,
            Command::Operator(args) => operator::execute(args).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_each_command_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let help = command.render_help().to_string();
            assert!(help.contains("Example"), "{help}");
            assert!(command.get_about().is_some(), "{help}");
        }
    }
}
