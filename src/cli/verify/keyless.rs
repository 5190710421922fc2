//! Tables without a key: compares the multiplicity of each row.
//!
//! Rows are hashed into buckets, so that memory doesn't grow with the table and no order is needed. Only rows
//! of buckets that differ are compared. The source is read in one snapshot, and the destination up to the LSN
//! of that snapshot, so the application may keep writing. A commit is in the log before it is visible to
//! snapshots, which makes a difference for a moment: hence several attempts.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::{
    error::VerifyError,
    plan::TablePlan,
    readers::TableReaders,
    report::TableReport,
    rows::{Chunks, Row},
};
use crate::{
    clickhouse::native::Rows,
    model::Lsn,
    postgres::{session::Session, slot, wire::Connection},
};

const BUCKETS: usize = 1 << 16;
const ATTEMPTS: u32 = 4;
/// A commit that is visible may be this young in the log.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
/// How long a running mirror gets to apply what was committed before.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// The rows of one side, without the rows.
#[derive(Clone, PartialEq, Eq)]
struct Tally {
    /// Rows, and the sum of their hashes.
    buckets: Vec<(i64, u128)>,
}

impl Tally {
    fn new() -> Tally {
        Tally { buckets: vec![(0, 0); BUCKETS] }
    }

    fn add(&mut self, hash: u128, times: i64) {
        if let Some((rows, sum)) = self.buckets.get_mut(bucket(hash)) {
            *rows += times;
            *sum = sum.wrapping_add(hash.wrapping_mul(i128::from(times).cast_unsigned()));
        }
    }

    fn rows(&self) -> i64 {
        self.buckets.iter().map(|(rows, _)| rows).sum()
    }

    fn differing(&self, other: &Tally) -> Vec<usize> {
        (0..BUCKETS).filter(|bucket| self.buckets.get(*bucket) != other.buckets.get(*bucket)).collect()
    }
}

fn bucket(hash: u128) -> usize {
    hash as usize % BUCKETS
}

/// How often rows are there on each side.
type Counts = HashMap<Row, (i64, i64)>;

/// A row that was read, and how often it is to be counted.
struct Counted<'r> {
    rows: &'r Rows,
    row: usize,
    times: i64,
}

/// Compares a table, and reports at most `most` rows whose multiplicity differs between the sides.
pub(super) async fn compare(
    readers: &TableReaders<'_>,
    session: &Session,
    slot_name: &str,
    most: u32,
    bar: &ProgressBar,
) -> Result<TableReport, VerifyError> {
    let comparison = Comparison { readers, hashers: Default::default() };
    for attempt in 1.. {
        let (mut connection, end) = comparison.begin().await?;
        if attempt > 1 {
            sleep(QUIET_PERIOD).await;
        }
        until_arrived(session, slot_name).await?;
        bar.set_position(0);
        let (mut source, mut target) = (Tally::new(), Tally::new());
        comparison
            .read_source(&mut connection, |counted| {
                bar.inc(1);
                source.add(comparison.hash(&counted), counted.times);
            })
            .await?;
        comparison.read_target(end, |counted| target.add(comparison.hash(&counted), counted.times)).await?;
        let mut report = TableReport {
            extent: format!("{} rows", source.rows()),
            incomparable: readers.plan.incomparable().into_iter().map(str::to_owned).collect(),
            ..TableReport::default()
        };
        let mut differing = source.differing(&target);
        if !differing.is_empty() && attempt < ATTEMPTS {
            continue;
        }
        if !differing.is_empty() {
            report.extent =
                format!("{} rows at the source and {} at the destination", source.rows(), target.rows());
            report.stopped = differing.len() > most as usize;
            differing.truncate(most as usize);
            let counts = comparison.count(&mut connection, end, &differing).await?;
            report.differences = lines(readers.plan, counts);
        }
        return Ok(report);
    }
    Ok(TableReport::default())
}

/// Waits until the present end of the log has been applied, while a replicator is running.
async fn until_arrived(session: &Session, slot_name: &str) -> Result<(), VerifyError> {
    let started = Instant::now();
    let mut goal: Option<Lsn> = None;
    while let Some(slot) = slot::read(session, slot_name).await?.filter(|slot| slot.active_pid.is_some()) {
        let goal = *goal.get_or_insert(slot.current_lsn);
        if slot.confirmed_flush_lsn.is_some_and(|confirmed| confirmed >= goal)
            || started.elapsed() >= RECHECK_TIMEOUT
        {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

struct Comparison<'a> {
    readers: &'a TableReaders<'a>,
    hashers: (RandomState, RandomState),
}

impl Comparison<'_> {
    /// Takes a snapshot of the source, and gives the end of its log: everything visible in the snapshot was
    /// committed before.
    async fn begin(&self) -> Result<(Connection, Lsn), VerifyError> {
        let mut connection = self.readers.connect().await?;
        connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let end = connection.read_lsn().await?;
        Ok((connection, end))
    }

    async fn read_source(
        &self,
        connection: &mut Connection,
        mut each: impl FnMut(Counted<'_>),
    ) -> Result<(), VerifyError> {
        let mut chunks = self.readers.source_rows(connection, &self.readers.plan.source_rows()).await?;
        while let Some(rows) = chunks.next().await? {
            (0..rows.len()).for_each(|row| each(Counted { rows: &rows, row, times: 1 }));
        }
        Ok(())
    }

    async fn read_target(&self, end: Lsn, mut each: impl FnMut(Counted<'_>)) -> Result<(), VerifyError> {
        let plan = self.readers.plan;
        let mut chunks = self.readers.target_changes(&plan.target_changes(end)).await?;
        while let Some(rows) = chunks.next().await? {
            for row in 0..rows.len() {
                // The sign comes after the columns.
                let sign = rows.cell(row, plan.types.len()).first().copied().unwrap_or_default();
                each(Counted { rows: &rows, row, times: i64::from(sign.cast_signed()) });
            }
        }
        Ok(())
    }

    fn cells<'r>(&'r self, counted: &Counted<'r>) -> impl Iterator<Item = &'r [u8]> {
        let (rows, row) = (counted.rows, counted.row);
        let comparable = self.readers.plan.types.iter().enumerate().filter(|(_, kind)| kind.is_comparable());
        comparable.map(move |(column, _)| rows.cell(row, column))
    }

    fn hash(&self, counted: &Counted<'_>) -> u128 {
        let cells: Vec<&[u8]> = self.cells(counted).collect();
        u128::from(self.hashers.0.hash_one(&cells)) << 64 | u128::from(self.hashers.1.hash_one(&cells))
    }

    /// Counts the rows of these buckets.
    async fn count(
        &self,
        connection: &mut Connection,
        end: Lsn,
        buckets: &[usize],
    ) -> Result<Counts, VerifyError> {
        let mut counts = Counts::new();
        let wanted = |counted: &Counted<'_>| {
            buckets.contains(&bucket(self.hash(counted))).then(|| {
                (0..self.readers.plan.types.len())
                    .map(|c| counted.rows.cell(counted.row, c).to_vec())
                    .collect()
            })
        };
        self.read_source(connection, |counted| {
            if let Some(row) = wanted(&counted) {
                counts.entry(row).or_default().0 += counted.times;
            }
        })
        .await?;
        self.read_target(end, |counted| {
            if let Some(row) = wanted(&counted) {
                counts.entry(row).or_default().1 += counted.times;
            }
        })
        .await?;
        Ok(counts)
    }
}

fn lines(plan: &TablePlan, counts: Counts) -> Vec<String> {
    let mut lines: Vec<String> = counts
        .into_iter()
        .filter(|(_, (source, target))| source != target)
        .map(|(row, (source, target))| {
            let columns = plan.schema.columns.iter().zip(&row).enumerate();
            let values: Vec<String> = columns
                .map(|(index, (column, cell))| format!("{} = {}", column.name, plan.show(index, cell)))
                .collect();
            format!(
                "{}: {source} times at the source and {target} times at the destination",
                values.join(", ")
            )
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_are_equal_when_each_row_is_there_as_often() {
        let hashes = [7_u128 << 100 | 1, 9 << 90 | 1, 5 << 80 | 2];
        let (mut source, mut target) = (Tally::new(), Tally::new());
        for times in [2, 1] {
            hashes.iter().for_each(|hash| source.add(*hash, times));
        }
        for (hash, times) in hashes.iter().zip([4, 3, 3]) {
            target.add(*hash, times);
        }
        assert_eq!(source.differing(&target), [1]);
        target.add(hashes[0], -1);
        assert_eq!((source.differing(&target), target.rows()), (vec![], 9));
        // As many rows, but others.
        source.add(hashes[0], 1);
        target.add(hashes[1], 1);
        assert_eq!((source.differing(&target), source.rows() - target.rows()), (vec![1], 0));
    }
}
