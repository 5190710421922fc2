//! `walferry verify`: reads both sides in key order and compares every value.
//!
//! Rows that differ are read again by key until they agree or prove different, so that a mirror that is a
//! little behind is equal, and so that nothing has to stop while it runs. Memory doesn't grow with the
//! tables.

mod error;
mod keyless;
mod merge;
mod pending;
mod plan;
mod readers;
mod recheck;
mod report;
mod rows;
mod sample;

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};

use self::{
    error::VerifyError,
    merge::Merge,
    pending::{Change, Pending},
    plan::TablePlan,
    readers::TableReaders,
    recheck::Rechecker,
    report::{Outcome, TableReport},
};
use crate::{
    clickhouse::Database,
    model::{ReplicatorConfig, TableSpec},
    postgres::{
        catalog::{describe_known, storage},
        session::Session,
    },
    replication::{TableRecord, keep_target_names},
    telemetry,
};

/// Compares every row of the tables at the source with what is at the destination
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 equal, 1 different, 2 inconclusive.\n\n\
                  Example:\n  walferry verify -f peers.yaml -f mirror.yaml\n  \
                  walferry verify -f all.yaml --table public.users --sample 5")]
pub struct Args {
    #[command(flatten)]
    files: super::files::Files,
    /// Compare this table alone; may be given several times [default: all tables of the Mirrors]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub table: Vec<String>,
    /// Compare the number of rows, and this percentage of the rows, picked at random on both sides; a table
    /// without a key is compared as a whole
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub sample: Option<f64>,
    /// Stop comparing a table after this many differences
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_differences: u32,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("a number above 0, at most 100".to_owned()),
    }
}

/// Compares both sides of the Mirrors of the files.
///
/// Exit code 0 when all tables are equal, 1 when one differs, 2 when one could not be compared or the files
/// are wrong.
pub async fn execute(args: Args) -> ExitCode {
    let configs = match args.files.load() {
        Ok(configs) => configs,
        Err(error) => return super::files::exit_invalid(&error),
    };
    if let Err(unknown) = check_names(&configs, &args.table) {
        super::output::eprint(&unknown);
        return ExitCode::from(2);
    }
    let mut worst = Outcome::Equal;
    for config in &configs {
        super::output::print(&format!("mirror {}/{}", config.mirror.namespace, config.mirror.name));
        let wanted = |spec: &&TableSpec| args.table.is_empty() || args.table.contains(&spec.id.to_string());
        for spec in config.tables.iter().filter(wanted) {
            let report = match verify_table(config, spec, &args).await {
                Ok(report) => report,
                Err(error) => TableReport::inconclusive(error.to_string()),
            };
            worst = worst.max(report.outcome());
            super::output::print(&report.lines(&spec.id.to_string()).join("\n"));
        }
    }
    match worst {
        Outcome::Equal => ExitCode::SUCCESS,
        Outcome::Different => ExitCode::FAILURE,
        Outcome::Inconclusive => ExitCode::from(2),
    }
}

/// Refuses a `--table` that no Mirror has.
fn check_names(configs: &[ReplicatorConfig], names: &[String]) -> Result<(), String> {
    let there: Vec<String> =
        configs.iter().flat_map(|config| config.tables.iter().map(|spec| spec.id.to_string())).collect();
    match names.iter().find(|name| !there.contains(name)) {
        Some(name) => Err(format!("--table {name}: no Mirror has it; there are {}", there.join(", "))),
        None => Ok(()),
    }
}

/// Compares a table. When a schema change that the mirror has not applied yet explains a difference, it is
/// waited for, and the table compared again.
async fn verify_table(
    config: &ReplicatorConfig,
    spec: &TableSpec,
    args: &Args,
) -> Result<TableReport, VerifyError> {
    let session = Session::connect(&config.source, &config.mirror.application_name()).await?;
    let database = Database::new(&config.destination, config.out_of_range)?;
    let mut pending = Pending::new(config, spec, &session, &database);
    loop {
        let record = pending.record().await?;
        let report = compare_table((config, spec, args), &session, &database, record.as_ref()).await?;
        if report.outcome() != Outcome::Different {
            return Ok(report);
        }
        match pending.since(record.as_ref()).await? {
            Change::None => return Ok(report),
            Change::Applied => {}
            Change::Waits(why) => return Ok(TableReport::inconclusive(why)),
        }
    }
}

async fn compare_table(
    (config, spec, args): (&ReplicatorConfig, &TableSpec, &Args),
    session: &Session,
    database: &Database,
    record: Option<&TableRecord>,
) -> Result<TableReport, VerifyError> {
    let application = config.mirror.application_name();
    let named = record.filter(|record| spec.continues(&record.spec)).and_then(|record| record.named.as_ref());
    let named = named.map(|named| named.columns.as_slice()).unwrap_or_default();
    let mut schema = describe_known(session, spec, named).await?.schema;
    if let Some(record) = record {
        keep_target_names(record, spec, &mut schema);
        schema.keep_kind(&record.schema);
    }
    let mut plan = TablePlan::new(schema, database, config.out_of_range).await?;
    plan.keeps_removed_rows = spec.operations.keep_removed_rows();
    let bar = progress_bar(session, &plan).await?;
    let readers = TableReaders { plan: &plan, source: &config.source, application: &application, database };
    if !plan.schema.kind.is_keyed() {
        let slot = config.mirror.slot_name();
        let report = keyless::compare(&readers, session, &slot, args.max_differences, &bar).await;
        bar.finish_and_clear();
        return report;
    }
    let rechecker =
        Rechecker::new(&readers, session, &config.mirror.slot_name(), args.max_differences).await?;
    let report = match args.sample {
        Some(percent) => sample::compare(&readers, session, rechecker, percent, &bar).await,
        None => compare_all(&readers, rechecker, &bar).await,
    };
    bar.finish_and_clear();
    report
}

/// Reads both sides to their ends, side by side.
async fn compare_all(
    readers: &TableReaders<'_>,
    mut rechecker: Rechecker<'_>,
    bar: &ProgressBar,
) -> Result<TableReport, VerifyError> {
    let mut connection = readers.connect().await?;
    let source = readers.source_in_order(&mut connection).await?;
    let target = readers.target_in_order().await?;
    let mut merge = Merge::new(readers.plan, source, target);
    while let Some(key) = merge.next_difference(bar).await? {
        rechecker.enqueue(key).await?;
        if rechecker.is_full() {
            break;
        }
    }
    let (source_rows, target_rows) = merge.rows();
    // The statement of the source ends with its connection.
    drop(merge);
    drop(connection);
    rechecker.finish().await?;
    Ok(rechecker.into_report(source_rows, target_rows, None))
}

async fn progress_bar(session: &Session, plan: &TablePlan) -> Result<ProgressBar, VerifyError> {
    let parts = storage(session, &plan.schema).await?;
    let rows = parts.iter().map(|part| part.estimated_rows).sum::<f64>().max(0.0) as u64;
    let style =
        ProgressStyle::with_template("{msg:32!} {bar:24} {human_pos} of about {human_len} rows, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = telemetry::terminal().add(ProgressBar::new(rows).with_style(style));
    Ok(bar.with_message(plan.schema.id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_part() {
        assert_eq!(percent("5"), Ok(5.0));
        assert_eq!(percent("0.01"), Ok(0.01));
        assert_eq!(percent("100"), Ok(100.0));
        for wrong in ["0", "-1", "101", "NaN", "inf", "x", ""] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
