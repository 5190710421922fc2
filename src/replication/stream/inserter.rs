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
    batch::{BatchPool, Counts, DeferredRow, DeferredRows, PendingBatch, stream_fence},
    checkpoint::CheckpointGuard,
    fatal::Fatal,
    refetch::RowFetcher,
};
use crate::{
    model::{Lsn, TableSchema, Tuple},
    replication::{
        Destination, Error, Policy, TableBatch, policy,
        retry::{RetryObserver, retry_for_table},
        table::{Table, target},
    },
};

/// Most inserts of a Mirror at the same time: thousands of tables may have rows at once.
const INSERTS: usize = 16;

/// Most rows completed by one query to the source.
const GROUP_ROWS: usize = 256;

/// Encoded bytes after which completed rows are inserted before more are fetched, at the end of a step; and
/// within it, because they may be many times as long as what was sent of them.
const GROUP_BYTES: usize = 8 << 20;
const MOST_BYTES_OF_A_STEP: usize = 4 * GROUP_BYTES;

/// Bounds the inserts of a Mirror.
pub(in crate::replication) fn insert_semaphore() -> Semaphore {
    Semaphore::new(INSERTS)
}

/// What insert tasks share.
pub(in crate::replication) struct Inserter<D: Destination> {
    pub(in crate::replication) destination: D,
    pub(in crate::replication) fetcher: Arc<RowFetcher>,
    pub(in crate::replication) abort: CancellationToken,
    /// Bytes held by all batches of the Mirror.
    pub(in crate::replication) total_bytes: Arc<AtomicUsize>,
    /// Wakes the stream when an insert has ended.
    pub(in crate::replication) ended: Arc<Notify>,
    /// Takes errors that stop the whole Mirror.
    pub(in crate::replication) fatal: Fatal,
    /// Prefix of the fence, unique to the Mirror.
    pub(in crate::replication) fence: String,
    /// Observes what is retried, for the status.
    pub(in crate::replication) observer: RetryObserver,
    /// An insert acquires it for each try, so that tables which are refused keep no others waiting.
    pub(in crate::replication) insert_semaphore: Semaphore,
    pub(in crate::replication) pool: BatchPool<D>,
}

impl<D: Destination> Inserter<D> {
    /// An empty batch for rows of this schema, by the memory of an earlier one if there is one.
    #[inline]
    pub(super) fn new_batch(&self, schema: &Arc<TableSchema>) -> Result<D::Batch, Error> {
        match self.pool.take(schema) {
            Some(batch) => Ok(batch),
            None => Ok(self.destination.batch(schema)?),
        }
    }

    /// Inserts a batch in a task. The permit is released when the rows are durable or set aside.
    pub(super) fn spawn(
        self: &Arc<Self>,
        table: Arc<Table<D>>,
        batch: PendingBatch<D>,
        permit: OwnedSemaphorePermit,
    ) {
        let inserter = Arc::clone(self);
        tokio::spawn(async move {
            inserter.run(&table, batch).await;
            drop(permit);
            inserter.ended.notify_one();
        });
    }

    /// Inserts a batch. Gives whether its rows are durable or set aside; if not, the stream ends.
    pub(super) async fn run(&self, table: &Table<D>, mut batch: PendingBatch<D>) -> bool {
        // Ends with the stream whatever it waits for: the source and its locks, the destination, or other
        // inserts.
        let outcome = tokio::select! {
            outcome = self.complete_and_insert(table, &mut batch) => outcome,
            () = self.abort.cancelled() => Err(Error::Stopped),
        };
        batch.release(&self.total_bytes);
        match outcome {
            Ok(fetched_until) => {
                count(table, &mut batch);
                batch.values.clear();
                self.pool.keep(batch.schema, batch.values);
                if let Some(until) = fetched_until {
                    batch.guard.release_fetched(until);
                }
                true
            }
            Err(error) => self.fail(table, error, batch.guard).await,
        }
    }

    /// Fails a table whose own error it is. Any other ends the stream, and the guard outlasts that: what it
    /// keeps from being confirmed is neither durable nor set aside. Gives whether the stream continues.
    pub(super) async fn fail(&self, table: &Table<D>, error: Error, guard: CheckpointGuard) -> bool {
        let Err(error) = table.fail_or_return(error, &self.abort, &self.observer).await else { return true };
        std::mem::forget(guard);
        if policy(&error).0 != Policy::Stop {
            self.fatal.report(error);
        }
        false
    }

    /// Gives the position of the log up to which rows were fetched for it, if any were.
    async fn complete_and_insert(
        &self,
        table: &Table<D>,
        batch: &mut PendingBatch<D>,
    ) -> Result<Option<Lsn>, Error> {
        let deferred = std::mem::take(&mut batch.deferred);
        // The source may take long to show a commit, and a table may be locked there.
        let fetching = (!deferred.is_empty()).then(|| self.observer.outside());
        if !deferred.is_empty() {
            self.fetcher.wait_until_visible(&table.id, &deferred.transactions).await?;
        }
        let (mut left, mut group) = (deferred.rows.as_slice(), GROUP_ROWS);
        while !left.is_empty() {
            let done = self.complete(table, batch, &deferred, &left[..group.min(left.len())]).await?;
            // Large rows are asked for a few at a time.
            group = if done < group.min(left.len()) { done } else { (group * 2).min(GROUP_ROWS) };
            let last = left.get(done.wrapping_sub(1)).map(|row| row.position.version);
            left = &left[done..];
            let ends_a_step = left.first().is_none_or(|next| Some(next.position.version) != last);
            let most = if ends_a_step { GROUP_BYTES } else { MOST_BYTES_OF_A_STEP };
            if batch.values.bytes() >= most {
                self.insert(table, batch).await?;
                count_out_of_range(table, batch);
                batch.values.clear();
            }
        }
        let fetched_until = if deferred.is_empty() { None } else { Some(self.fetcher.read_lsn().await?) };
        drop(fetching);
        self.insert(table, batch).await?;
        Ok(fetched_until)
    }

    async fn insert(&self, table: &Table<D>, batch: &PendingBatch<D>) -> Result<(), Error> {
        if batch.values.rows() == 0 || table.failed() {
            return Ok(());
        }
        let fence = stream_fence(&self.fence, &batch.schema);
        let started = Instant::now();
        let inserted = retry_for_table(&self.abort, &self.observer, table, || async {
            let _permit =
                self.insert_semaphore.acquire().await.map_err(|closed| Error::Task(closed.to_string()))?;
            Ok(self.destination.insert(&batch.schema, &batch.values, &fence).await?)
        });
        if let Err(refusal) = inserted.await {
            return Err(target::explain(&self.destination, &batch.schema, refusal).await);
        }
        table.record_insert_time(started.elapsed());
        Ok(())
    }

    /// Fetches unchanged TOAST values of a group of deferred rows and appends the group's rows in their
    /// order; gives how many, at least one.
    async fn complete(
        &self,
        table: &Table<D>,
        batch: &mut PendingBatch<D>,
        deferred: &DeferredRows,
        group: &[DeferredRow],
    ) -> Result<usize, Error> {
        let wanted: Vec<Tuple<'_>> =
            group.iter().filter(|row| row.incomplete).map(|row| deferred.tuple(row)).collect();
        // Not retried here: a source that shuts down waits for what we hold, so its stream must end and begin
        // again.
        let found = self.fetcher.fetch(&table.record(), &batch.schema, &wanted).await;
        let found = found.map_err(|error| Error::of_fetch(&table.id, error))?;
        table.progress.refetched.fetch_add(found.len() as u64, Ordering::Relaxed);
        let mut found = found.into_iter();
        let (mut data, mut cells) = (Vec::new(), Vec::new());
        for (done, row) in group.iter().enumerate() {
            let tuple = deferred.tuple(row);
            let pushed = if row.incomplete {
                match found.next() {
                    Some(Some(fresh)) => {
                        fresh.fill(tuple, &mut data, &mut cells);
                        batch.values.push(Tuple { data: &data, cells: &cells }, row.position, row.op)
                    }
                    // The row is gone or has another key by now; the change that did it follows in the
                    // stream.
                    Some(None) => Ok(()),
                    None => return Ok(done),
                }
            } else {
                batch.values.push(tuple, row.position, row.op)
            };
            pushed.map_err(|error| Error::value(&batch.schema, &error))?;
        }
        Ok(group.len())
    }
}

fn count<D: Destination>(table: &Table<D>, batch: &mut PendingBatch<D>) {
    if table.failed() {
        return;
    }
    let Counts { inserted, updated, deleted } = batch.counts;
    table.progress.inserted.fetch_add(inserted, Ordering::Relaxed);
    table.progress.updated.fetch_add(updated, Ordering::Relaxed);
    table.progress.deleted.fetch_add(deleted, Ordering::Relaxed);
    count_out_of_range(table, batch);
}

fn count_out_of_range<D: Destination>(table: &Table<D>, batch: &mut PendingBatch<D>) {
    for (column, values) in batch.values.take_out_of_range() {
        if let Some(column) = batch.schema.columns.get(column) {
            table.progress.count_out_of_range(&column.target_name, values);
        }
    }
}
