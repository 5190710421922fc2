//! Progress on a terminal: a line for each table that is being copied, a line of lag for each Mirror.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use indicatif::{
    HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState,
    ProgressStyle,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    model::{MirrorPhase, MirrorReport, Progress, TableReport, TableState},
    telemetry,
};

/// Tables that have a line of their own; a terminal has few lines.
const TABLE_LINES: usize = 20;

/// How often the lines are redrawn.
const REFRESH: Duration = Duration::from_millis(250);

const KNOWN_LENGTH: &str =
    "{msg:32!} {bar:24} {percent:>3} %  {human_pos} of about {human_len} rows  {rate}  {left}";
const UNKNOWN_LENGTH: &str = "{msg:32!} {spinner} {human_pos} rows  {rate}";

/// Draws the progress of Mirrors on the terminal.
pub struct ProgressDisplay {
    lines: &'static MultiProgress,
    tables: BTreeMap<Key, ProgressBar>,
    mirrors: Vec<MirrorLine>,
}

/// Mirror's index, schema and table.
type Key = (usize, String, String);

struct MirrorLine {
    bar: ProgressBar,
    measured: Instant,
    rows: u64,
    rows_per_second: f64,
}

impl ProgressDisplay {
    /// Draws until `stop`, then clears what it drew. Does nothing when standard error isn't a terminal.
    pub fn spawn(mirrors: Vec<Arc<Progress>>, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(async move {
            if telemetry::terminal().is_hidden() {
                return;
            }
            let mut display = ProgressDisplay::new(mirrors.len());
            let mut ticks = tokio::time::interval(REFRESH);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                display.draw(&mirrors.iter().map(|mirror| mirror.report()).collect::<Vec<_>>());
            }
            display.clear();
        })
    }

    fn new(mirrors: usize) -> Self {
        let lines = telemetry::terminal();
        let line = || {
            let bar =
                ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_style(style("{msg}"));
            MirrorLine { bar: lines.add(bar), measured: Instant::now(), rows: 0, rows_per_second: 0.0 }
        };
        ProgressDisplay { lines, tables: BTreeMap::new(), mirrors: (0..mirrors).map(|_| line()).collect() }
    }

    fn draw(&mut self, reports: &[MirrorReport]) {
        let copying = copying(reports);
        self.tables.retain(|key, bar| {
            let stays = copying.contains_key(key);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for (key, table) in &copying {
            if !self.tables.contains_key(key) {
                if self.tables.len() == TABLE_LINES {
                    continue;
                }
                // Above the lines of the Mirrors, of which there is at least the one that the table belongs
                // to.
                let bar = match self.mirrors.first() {
                    Some(first) => self.lines.insert_before(&first.bar, table_line(table)),
                    None => self.lines.add(table_line(table)),
                };
                self.tables.insert(key.clone(), bar);
            }
            if let Some(bar) = self.tables.get(key) {
                if table.rows_estimated > 0 {
                    // Statistics may be old: there are at least as many rows as were read.
                    bar.set_length(table.rows_estimated.max(table.rows_copied));
                }
                bar.set_position(table.rows_copied);
                bar.tick();
            }
        }
        for (index, (line, report)) in self.mirrors.iter_mut().zip(reports).enumerate() {
            let hidden =
                copying.keys().filter(|key| key.0 == index && !self.tables.contains_key(key)).count();
            line.draw(report, hidden);
        }
    }

    fn clear(self) {
        for bar in self.tables.values().chain(self.mirrors.iter().map(|line| &line.bar)) {
            bar.finish_and_clear();
            self.lines.remove(bar);
        }
    }
}

/// The tables that are being copied, of all Mirrors.
fn copying(reports: &[MirrorReport]) -> BTreeMap<Key, &TableReport> {
    let tables = reports.iter().enumerate().flat_map(|(index, report)| {
        report.tables.iter().map(move |table| ((index, table.schema.clone(), table.name.clone()), table))
    });
    tables.filter(|(_, table)| table.state == TableState::Snapshotting).collect()
}

fn table_line(table: &TableReport) -> ProgressBar {
    let known = table.rows_estimated > 0;
    // Hidden until it has joined the others, which would otherwise be drawn over.
    let bar =
        ProgressBar::with_draw_target(known.then_some(table.rows_estimated), ProgressDrawTarget::hidden())
            .with_style(style(if known { KNOWN_LENGTH } else { UNKNOWN_LENGTH }))
            .with_message(format!("{}.{}", table.schema, table.name));
    // What an earlier run copied says nothing of the speed of this one.
    bar.set_position(table.rows_copied);
    bar.reset_eta();
    bar
}

fn style(template: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, line: &mut dyn fmt::Write| {
        // A number that can't be written leaves its place empty: there is no error to report to.
        let _ = write!(line, "{} rows/s", HumanCount(state.per_sec() as u64));
    };
    let left = |state: &ProgressState, line: &mut dyn fmt::Write| {
        // Unknown before the first rows have come.
        if state.per_sec() >= 1.0 {
            let _ = write!(line, "{} left", HumanDuration(state.eta()));
        }
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", rate)
        .with_key("left", left)
}

impl MirrorLine {
    fn draw(&mut self, report: &MirrorReport, hidden: usize) {
        let elapsed = self.measured.elapsed();
        if elapsed >= Duration::from_secs(1) {
            let rows = report.tables.iter().map(|table| table.inserted + table.updated + table.deleted).sum();
            self.rows_per_second = rows_since(self.rows, rows) / elapsed.as_secs_f64();
            (self.rows, self.measured) = (rows, Instant::now());
        }
        let hidden = if hidden == 0 { String::new() } else { format!(", {hidden} more tables being copied") };
        self.bar.set_message(mirror_line(report, self.rows_per_second) + &hidden);
    }
}

fn rows_since(earlier: u64, now: u64) -> f64 {
    now.saturating_sub(earlier) as f64
}

/// One line on a Mirror.
fn mirror_line(report: &MirrorReport, rows_per_second: f64) -> String {
    let name = format!("{}/{}", report.namespace, report.name);
    let failed = report.tables.iter().filter(|table| table.state == TableState::Failed).count();
    let failed = if failed == 0 { String::new() } else { format!(", {failed} tables FAILED") };
    match report.phase {
        MirrorPhase::Snapshotting | MirrorPhase::Streaming => {
            let sum = |rows: fn(&TableReport) -> u64| HumanCount(report.tables.iter().map(rows).sum());
            let lag: Vec<String> = [
                report.lag.bytes.map(|bytes| HumanBytes(bytes).to_string()),
                report.lag.seconds.map(|seconds| format!("{seconds:.1} s")),
            ]
            .into_iter()
            .flatten()
            .collect();
            let lag = if lag.is_empty() { "not known".to_owned() } else { lag.join(" ") };
            format!(
                "{name}: lag {lag}, {rows_per_second:.0} rows/s, {} inserted, {} updated, {} deleted{failed}",
                sum(|table| table.inserted),
                sum(|table| table.updated),
                sum(|table| table.deleted),
            )
        }
        phase => {
            let failure = report.failure.as_ref().map(|failure| format!(": {}", failure.message));
            format!("{name}: {phase:?}{}{failed}", failure.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::model::{Lsn, MirrorFailure, MirrorIdentity, TableId};

    fn progress() -> Progress {
        Progress::new(&MirrorIdentity { namespace: "default".into(), name: "demo".into(), uid: "0".into() })
    }

    #[test]
    fn lines_of_a_mirror() {
        let progress = progress();
        assert_eq!(mirror_line(&progress.report(), 0.0), "default/demo: Provisioning");
        progress.set_phase(MirrorPhase::Streaming, None);
        progress.set_source_lsn(Lsn(2048));
        progress.set_lag_seconds(0.25);
        let table = progress.table(&TableId::new("public", "users"));
        table.inserted.store(1234, Relaxed);
        assert_eq!(
            mirror_line(&progress.report(), 56.4),
            "default/demo: lag 2.00 KiB 0.2 s, 56 rows/s, 1,234 inserted, 0 updated, 0 deleted"
        );
        table.set_state(TableState::Failed, crate::fault::Reason::DecodeFailed, "y");
        assert!(mirror_line(&progress.report(), 0.0).ends_with(", 1 tables FAILED"));
        let failure = MirrorFailure::new(crate::fault::Reason::SourceUnreachable, "refused");
        progress.set_phase(MirrorPhase::Retrying, Some(failure));
        assert!(mirror_line(&progress.report(), 0.0).starts_with("default/demo: Retrying: refused"));
    }

    #[test]
    fn at_most_twenty_tables_have_a_line_and_lines_go_when_copied() {
        let progress = progress();
        let tables: Vec<_> =
            (0..25).map(|index| progress.table(&TableId::new("public", format!("t{index:02}")))).collect();
        for table in &tables {
            table.set_state(TableState::Snapshotting, None, "");
        }
        let mut display = ProgressDisplay::new(1);
        display.draw(&[progress.report()]);
        assert_eq!(display.tables.len(), 20);
        assert!(display.mirrors[0].bar.message().ends_with(", 5 more tables being copied"));
        for table in &tables[..10] {
            table.set_state(TableState::Streaming, None, "");
        }
        display.draw(&[progress.report()]);
        assert_eq!(display.tables.len(), 15);
        assert!(!display.mirrors[0].bar.message().contains("more"));
        display.clear();
    }

    #[test]
    fn templates_are_valid() {
        for template in [KNOWN_LENGTH, UNKNOWN_LENGTH] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
