//! Rows of one table on their way: built by the stream, completed and inserted by a task of their own.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    Destination, Error, Op, Policy, TableBatch,
    backoff::{Notice, retry, retry_for_table},
    checkpoint::Hold,
    fatal::Fatal,
    policy,
    reread::Rereader,
    table::Table,
    targets,
};
use crate::model::{Cell, Lsn, Position, TableSchema, Tuple, Version};

/// Streamed rows by kind, counted when they are durable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
}

/// A row that waits in its wire form because an earlier one of its table waits for a re-read.
struct WaitingRow {
    data: Range<usize>,
    cells: Range<usize>,
    at: Position,
    op: Op,
    incomplete: bool,
}

/// The fence of a table's streamed inserts, `prefix` being the Mirror's.
pub(super) fn stream_fence(prefix: &str, table: &TableSchema) -> String {
    format!("{prefix}-{}", table.target)
}

/// Most inserts of a Mirror at the same time: thousands of tables may have rows at once.
const INSERTS: usize = 16;

/// Most batches whose memory is kept for the next rows of their tables: each may hold a quarter of `batch.maxBytes`.
const SPARES: usize = 4;

/// Most rows completed by one query to the source.
const GROUP_ROWS: usize = 256;

/// Encoded bytes after which completed rows are inserted before more are read, at the end of a step; and within it, because they
/// may be many times as long as what was sent of them.
const GROUP_BYTES: usize = 8 << 20;
const MOST_BYTES_OF_A_STEP: usize = 4 * GROUP_BYTES;

/// Rows behind one with an unchanged TOAST value, in stream order.
///
/// Order must be kept among rows of one version, so everything after the first such row waits with it.
#[derive(Default)]
pub(super) struct Waiting {
    data: Vec<u8>,
    cells: Vec<Cell>,
    rows: Vec<WaitingRow>,
    /// The transactions that wrote them.
    transactions: Vec<u32>,
}

impl Waiting {
    /// Notes which transaction the last row is of.
    pub(super) fn written_by(&mut self, transaction: u32) {
        if self.transactions.last() != Some(&transaction) {
            self.transactions.push(transaction);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn bytes(&self) -> usize {
        self.data.len() + self.cells.len() * size_of::<Cell>()
    }

    fn push(&mut self, tuple: Tuple<'_>, at: Position, op: Op) {
        let (data_start, cells_start) = (self.data.len(), self.cells.len());
        for (index, cell) in tuple.cells.iter().enumerate() {
            let bytes = tuple.bytes(index);
            let start = u32::try_from(self.data.len() - data_start).unwrap_or(u32::MAX);
            self.cells.push(Cell { kind: cell.kind, start, len: cell.len });
            self.data.extend_from_slice(bytes);
        }
        self.rows.push(WaitingRow {
            data: data_start..self.data.len(),
            cells: cells_start..self.cells.len(),
            at,
            op,
            incomplete: op == Op::Upsert && tuple.has_unchanged(),
        });
    }

    fn tuple(&self, row: &WaitingRow) -> Tuple<'_> {
        Tuple {
            data: self.data.get(row.data.clone()).unwrap_or_default(),
            cells: self.cells.get(row.cells.clone()).unwrap_or_default(),
        }
    }
}

/// Rows being collected for one insert.
pub(super) struct Building<D: Destination> {
    pub(super) batch: D::Batch,
    pub(super) waiting: Waiting,
    pub(super) schema: Arc<TableSchema>,
    pub(super) counts: Counts,
    pub(super) hold: Hold,
    pub(super) since: Instant,
    /// The version of the last row.
    pub(super) last: Option<Version>,
    counted_bytes: usize,
}

impl<D: Destination> Building<D> {
    pub(super) fn new(batch: D::Batch, schema: Arc<TableSchema>, hold: Hold) -> Self {
        Building {
            batch,
            waiting: Waiting::default(),
            schema,
            counts: Counts::default(),
            hold,
            since: Instant::now(),
            last: None,
            counted_bytes: 0,
        }
    }

    /// Appends a row, or lets it wait behind one that needs a re-read.
    #[inline]
    pub(super) fn push(&mut self, tuple: Tuple<'_>, at: Position, op: Op) -> Result<(), super::ValueError> {
        self.last = Some(at.version);
        if self.waiting.is_empty() && !(op == Op::Upsert && tuple.has_unchanged()) {
            return self.batch.push(tuple, at, op);
        }
        self.waiting.push(tuple, at, op);
        Ok(())
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.batch.bytes() + self.waiting.bytes()
    }

    /// Brings the Mirror's total up to date with what this batch holds now.
    pub(super) fn account(&mut self, total: &AtomicUsize) {
        let now = self.bytes();
        total.fetch_add(now, Ordering::Relaxed);
        total.fetch_sub(self.counted_bytes, Ordering::Relaxed);
        self.counted_bytes = now;
    }

    /// Takes what this batch holds out of the Mirror's total.
    pub(super) fn release(&self, total: &AtomicUsize) {
        total.fetch_sub(self.counted_bytes, Ordering::Relaxed);
    }
}

/// Empty batches of earlier inserts, kept for their memory: those of the tables that were inserted into last.
pub(super) struct Spares<D: Destination> {
    kept: Mutex<VecDeque<(Arc<TableSchema>, D::Batch)>>,
}

impl<D: Destination> Default for Spares<D> {
    fn default() -> Self {
        Spares { kept: Mutex::default() }
    }
}

impl<D: Destination> Spares<D> {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(Arc<TableSchema>, D::Batch)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was made for this very schema.
    pub(super) fn take(&self, schema: &Arc<TableSchema>) -> Option<D::Batch> {
        let mut kept = self.kept();
        let index = kept.iter().position(|(made_for, _)| Arc::ptr_eq(made_for, schema))?;
        kept.remove(index).map(|(_, batch)| batch)
    }

    fn keep(&self, schema: Arc<TableSchema>, batch: D::Batch) {
        let mut kept = self.kept();
        kept.push_back((schema, batch));
        if kept.len() > SPARES {
            kept.pop_front();
        }
    }
}

/// Turns of inserts.
pub(super) fn turns() -> Semaphore {
    Semaphore::new(INSERTS)
}

/// What insert tasks share.
pub(super) struct Inserter<D: Destination> {
    pub(super) destination: D,
    pub(super) rereader: Arc<Rereader>,
    pub(super) abort: CancellationToken,
    /// Bytes held by all batches of the Mirror.
    pub(super) total_bytes: Arc<AtomicUsize>,
    /// Wakes the stream when an insert has ended.
    pub(super) ended: Arc<Notify>,
    /// Takes errors that stop the whole Mirror.
    pub(super) fatal: Fatal,
    /// Prefix of the fence, unique to the Mirror.
    pub(super) fence: String,
    /// Hears of faults that pass, for the status.
    pub(super) notice: Notice,
    /// An insert waits for its turn anew each time it is tried again, so that tables which are refused keep no others waiting.
    pub(super) turns: Semaphore,
    pub(super) spares: Spares<D>,
}

impl<D: Destination> Inserter<D> {
    /// Inserts what was built, in a task. The permit goes back when the rows are durable or set aside.
    pub(super) fn spawn(
        self: &Arc<Self>,
        table: Arc<Table<D>>,
        building: Building<D>,
        permit: OwnedSemaphorePermit,
    ) {
        let inserter = Arc::clone(self);
        tokio::spawn(async move {
            inserter.run(&table, building).await;
            drop(permit);
            inserter.ended.notify_one();
        });
    }

    /// Inserts what was built. Says whether it is durable or set aside; if not, the stream ends.
    pub(super) async fn run(&self, table: &Table<D>, mut building: Building<D>) -> bool {
        // Ends with the stream whatever it waits for: the source and its locks, the destination, or other inserts.
        let outcome = tokio::select! {
            outcome = self.complete_and_insert(table, &mut building) => outcome,
            () = self.abort.cancelled() => Err(Error::Stopped),
        };
        building.release(&self.total_bytes);
        match outcome {
            Ok(read) => {
                count(table, &mut building);
                building.batch.clear();
                self.spares.keep(building.schema, building.batch);
                if let Some(until) = read {
                    building.hold.read(until);
                }
                true
            }
            Err(error) => self.fail(table, error, building.hold).await,
        }
    }

    /// Sets a table aside whose own fault an error is. Any other ends the stream, beyond which the hold must last: what it keeps from being
    /// confirmed is neither durable nor set aside. Says whether the stream goes on.
    pub(super) async fn fail(&self, table: &Table<D>, error: Error, hold: Hold) -> bool {
        let error = match policy(&error).0 {
            Policy::FailTable => match retry(&self.abort, &self.notice, || table.fail(&error)).await {
                Ok(()) => return true,
                Err(error) => error,
            },
            _ => error,
        };
        std::mem::forget(hold);
        if policy(&error).0 != Policy::Stop {
            self.fatal.report(error);
        }
        false
    }

    /// Gives the position up to which the source was read for it, if it was.
    async fn complete_and_insert(
        &self,
        table: &Table<D>,
        building: &mut Building<D>,
    ) -> Result<Option<Lsn>, Error> {
        let waiting = std::mem::take(&mut building.waiting);
        // The source may take long to show a commit, and a table may be locked there.
        let reading = (!waiting.is_empty()).then(|| self.notice.outside());
        if !waiting.is_empty() {
            self.rereader.wait_until_seen(&table.id, &waiting.transactions).await?;
        }
        let (mut left, mut group) = (waiting.rows.as_slice(), GROUP_ROWS);
        while !left.is_empty() {
            let done = self.complete(table, building, &waiting, &left[..group.min(left.len())]).await?;
            // Large rows are asked for a few at a time.
            group = if done < group.min(left.len()) { done } else { (group * 2).min(GROUP_ROWS) };
            let last = left.get(done.wrapping_sub(1)).map(|row| row.at.version);
            left = &left[done..];
            let ends_a_step = left.first().is_none_or(|next| Some(next.at.version) != last);
            let most = if ends_a_step { GROUP_BYTES } else { MOST_BYTES_OF_A_STEP };
            if building.batch.bytes() >= most {
                self.insert(table, building).await?;
                count_out_of_range(table, building);
                building.batch.clear();
            }
        }
        let read = if waiting.is_empty() { None } else { Some(self.rereader.seen_until().await?) };
        drop(reading);
        self.insert(table, building).await?;
        Ok(read)
    }

    async fn insert(&self, table: &Table<D>, building: &Building<D>) -> Result<(), Error> {
        if building.batch.rows() == 0 || table.failed() {
            return Ok(());
        }
        let fence = stream_fence(&self.fence, &building.schema);
        let started = Instant::now();
        let inserted = retry_for_table(&self.abort, &self.notice, table, || async {
            let _turn = self.turns.acquire().await.map_err(|closed| Error::Task(closed.to_string()))?;
            Ok(self.destination.insert(&building.schema, &building.batch, &fence).await?)
        });
        if let Err(refusal) = inserted.await {
            return Err(targets::explain(&self.destination, &building.schema, refusal).await);
        }
        table.record_insert_time(started.elapsed());
        Ok(())
    }

    /// Re-reads unchanged TOAST values of a group of waiting rows and appends the group's rows in their order; gives how many,
    /// at least one.
    async fn complete(
        &self,
        table: &Table<D>,
        building: &mut Building<D>,
        waiting: &Waiting,
        group: &[WaitingRow],
    ) -> Result<usize, Error> {
        let wanted: Vec<Tuple<'_>> =
            group.iter().filter(|row| row.incomplete).map(|row| waiting.tuple(row)).collect();
        // Not retried here: a source that shuts down waits for what we hold, so its stream must end and begin again.
        let found = self.rereader.read(&table.record(), &building.schema, &wanted).await;
        let found = found.map_err(|error| Error::of_reread(&table.id, error))?;
        table.progress.reread.fetch_add(found.len() as u64, Ordering::Relaxed);
        let mut found = found.into_iter();
        let (mut data, mut cells) = (Vec::new(), Vec::new());
        for (done, row) in group.iter().enumerate() {
            let tuple = waiting.tuple(row);
            let pushed = if row.incomplete {
                match found.next() {
                    Some(Some(fresh)) => {
                        fresh.fill(tuple, &mut data, &mut cells);
                        building.batch.push(Tuple { data: &data, cells: &cells }, row.at, row.op)
                    }
                    // The row is gone or has another key by now; the change that did it follows in the stream.
                    Some(None) => Ok(()),
                    None => return Ok(done),
                }
            } else {
                building.batch.push(tuple, row.at, row.op)
            };
            pushed.map_err(|error| Error::value(&building.schema, &error))?;
        }
        Ok(group.len())
    }
}

fn count<D: Destination>(table: &Table<D>, building: &mut Building<D>) {
    if table.failed() {
        return;
    }
    let Counts { inserted, updated, deleted } = building.counts;
    table.progress.inserted.fetch_add(inserted, Ordering::Relaxed);
    table.progress.updated.fetch_add(updated, Ordering::Relaxed);
    table.progress.deleted.fetch_add(deleted, Ordering::Relaxed);
    count_out_of_range(table, building);
}

fn count_out_of_range<D: Destination>(table: &Table<D>, building: &mut Building<D>) {
    for (column, values) in building.batch.take_out_of_range() {
        if let Some(column) = building.schema.columns.get(column) {
            table.progress.count_out_of_range(&column.target_name, values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CellKind;

    fn cell(kind: CellKind, start: u32, len: u32) -> Cell {
        Cell { kind, start, len }
    }

    #[test]
    fn waiting_rows_keep_their_values() {
        let mut waiting = Waiting::default();
        let cells = [cell(CellKind::Text, 2, 3), cell(CellKind::Unchanged, 0, 0), cell(CellKind::Null, 0, 0)];
        waiting.push(Tuple { data: b"..abc", cells: &cells }, Version::ZERO.into(), Op::Upsert);
        waiting.push(
            Tuple { data: b"xyz", cells: &[cell(CellKind::Binary, 0, 3)] },
            Version::ZERO.into(),
            Op::Delete,
        );
        let tuples: Vec<_> = waiting.rows.iter().map(|row| waiting.tuple(row)).collect();
        assert_eq!(tuples[0].bytes(0), b"abc");
        assert!(tuples[0].has_unchanged());
        assert_eq!(tuples[1].bytes(0), b"xyz");
    }
}
