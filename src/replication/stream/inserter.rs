//! Inserts batches, each in a task of its own, which completes its rows first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{Building, Counts, Spares, Waiting, WaitingRow, stream_fence},
    checkpoint::Hold,
    fatal::Fatal,
    refetch::Rereader,
};
use crate::{
    model::{Lsn, Tuple},
    replication::{
        Destination, Error, Policy, TableBatch,
        backoff::{Notice, retry, retry_for_table},
        policy,
        table::Table,
        targets,
    },
};

/// Most inserts of a Mirror at the same time: thousands of tables may have rows at once.
const INSERTS: usize = 16;

/// Most rows completed by one query to the source.
const GROUP_ROWS: usize = 256;

/// Encoded bytes after which completed rows are inserted before more are read, at the end of a step; and within it, because they
/// may be many times as long as what was sent of them.
const GROUP_BYTES: usize = 8 << 20;
const MOST_BYTES_OF_A_STEP: usize = 4 * GROUP_BYTES;

/// Turns of inserts.
pub(in crate::replication) fn turns() -> Semaphore {
    Semaphore::new(INSERTS)
}

/// What insert tasks share.
pub(in crate::replication) struct Inserter<D: Destination> {
    pub(in crate::replication) destination: D,
    pub(in crate::replication) rereader: Arc<Rereader>,
    pub(in crate::replication) abort: CancellationToken,
    /// Bytes held by all batches of the Mirror.
    pub(in crate::replication) total_bytes: Arc<AtomicUsize>,
    /// Wakes the stream when an insert has ended.
    pub(in crate::replication) ended: Arc<Notify>,
    /// Takes errors that stop the whole Mirror.
    pub(in crate::replication) fatal: Fatal,
    /// Prefix of the fence, unique to the Mirror.
    pub(in crate::replication) fence: String,
    /// Hears of faults that pass, for the status.
    pub(in crate::replication) notice: Notice,
    /// An insert waits for its turn anew each time it is tried again, so that tables which are refused keep no others waiting.
    pub(in crate::replication) turns: Semaphore,
    pub(in crate::replication) spares: Spares<D>,
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
