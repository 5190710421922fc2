//! One table while it runs: what the stream, the insert task and the snapshot share.

pub(super) mod describe;
pub(super) mod epoch;
#[cfg(test)]
mod fixtures;
mod handoff;
mod late_rows;
mod matching;
pub(super) mod named_columns;
pub(super) mod projection;
pub(super) mod record;
pub(super) mod schema;
pub(super) mod store;
pub(super) mod target;
pub(super) mod target_names;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(super) use self::{
    handoff::{Decision, SnapshotBoundary, SnapshotFilter},
    late_rows::Sweeper,
};
use super::{
    Destination, Error, Policy,
    failure::failure_of_table,
    policy,
    retry::{RetriedTable, RetryObserver, retry},
};
use crate::{
    fault::Reason,
    model::{Lsn, TableId, TableKind, TableProgress, TableSchema, TableState, lock},
    replication::table::{
        named_columns::NamedColumns,
        record::{Floor, TablePhase, TableRecord},
        store::StateStore,
    },
};

/// A table's shared state. One exists for each table of the Mirror, over reconnections of the stream.
pub(super) struct Table<D: Destination> {
    /// The table's name at the source.
    pub(super) id: TableId,
    /// Its counters.
    pub(super) progress: Arc<TableProgress>,
    /// Holds one permit: at most one streamed insert is in flight, and they run in stream order.
    pub(super) insert_permit: Arc<Semaphore>,
    /// Read-held by each chunk from its first row read to its insert's end; a TRUNCATE takes it for writing.
    pub(super) chunk_gate: tokio::sync::RwLock<()>,
    /// What is applied of the stream, where there is no key.
    pub(super) snapshot_filter: SnapshotFilter,
    record: Mutex<TableRecord>,
    failed: AtomicBool,
    snapshot_over: AtomicBool,
    insert_micros: AtomicU64,
    /// Whether rows from before the floor may still arrive that no confirmed insert had.
    sweep_due: AtomicBool,
    /// Orders changes of the record, which are written to the destination's state.
    writing: tokio::sync::Mutex<()>,
    store: StateStore<D>,
}

impl<D: Destination> RetriedTable for Table<D> {
    fn id(&self) -> &TableId {
        &self.id
    }

    fn progress(&self) -> &Arc<TableProgress> {
        &self.progress
    }
}

impl<D: Destination> Table<D> {
    /// A table in the state that its record has.
    pub(super) fn new(record: TableRecord, progress: Arc<TableProgress>, store: StateStore<D>) -> Self {
        progress.set_target(&record.schema.target);
        progress.set_copied_while_streaming(record.added_while_streaming);
        let state = match record.phase {
            TablePhase::Snapshotting => TableState::Pending,
            TablePhase::Streaming => TableState::Streaming,
            TablePhase::Failed => TableState::Failed,
        };
        match record.failure() {
            Some(failure) => progress.set_failed(failure),
            None => progress.set_state(state, record.reason, record.message.clone()),
        }
        if state == TableState::Pending && record.reason == Some(Reason::TableResync) {
            progress.count_resync(&record.message);
        }
        let snapshot_filter = match (record.schema.kind, record.phase) {
            (TableKind::ChangeLog | TableKind::AppendOnly, TablePhase::Snapshotting) => {
                SnapshotFilter::before_snapshot()
            }
            _ => SnapshotFilter::after_snapshot(record.boundary.clone()),
        };
        Table {
            id: record.schema.id.clone(),
            progress,
            insert_permit: Arc::new(Semaphore::new(1)),
            chunk_gate: tokio::sync::RwLock::default(),
            snapshot_filter,
            failed: AtomicBool::new(record.phase == TablePhase::Failed),
            snapshot_over: AtomicBool::new(record.phase != TablePhase::Snapshotting),
            insert_micros: AtomicU64::new(0),
            sweep_due: AtomicBool::new(record.floor_is_recent()),
            record: Mutex::new(record),
            writing: tokio::sync::Mutex::default(),
            store,
        }
    }

    /// A copy of the record.
    pub(super) fn record(&self) -> TableRecord {
        lock(&self.record).clone()
    }

    /// The schema as last applied to the target.
    pub(super) fn schema(&self) -> TableSchema {
        self.record().schema
    }

    /// What the names of the table's entry mean.
    pub(super) fn named(&self) -> NamedColumns {
        lock(&self.record).named.clone().unwrap_or_default()
    }

    /// Whether the table has stopped alone.
    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether nothing is left to copy.
    pub(super) fn snapshot_over(&self) -> bool {
        self.snapshot_over.load(Ordering::Acquire)
    }

    /// Changes the record, durably first.
    pub(super) async fn update(&self, change: impl FnOnce(&mut TableRecord)) -> Result<(), Error> {
        let _one_at_a_time = self.writing.lock().await;
        let mut record = self.record();
        change(&mut record);
        self.store.save_table(&record).await?;
        self.replace(record);
        Ok(())
    }

    /// Fails this table alone where an error is its own, repeated until that is on record. Any other error is
    /// given back, and so is what ends the repetition.
    ///
    /// # Errors
    /// An error that is not of one table, [`Error::Stopped`] after `end`, and what does not pass of saving
    /// the record.
    pub(super) async fn fail_or_return(
        &self,
        error: Error,
        end: &CancellationToken,
        observer: &RetryObserver,
    ) -> Result<(), Error> {
        match policy(&error).0 {
            Policy::FailTable => retry(end, observer, || self.fail(&error)).await,
            _ => Err(error),
        }
    }

    /// Stops this table alone. The record is durable before the stream may pass the table's rows.
    pub(super) async fn fail(&self, error: &Error) -> Result<(), Error> {
        let _one_at_a_time = self.writing.lock().await;
        if self.failed() {
            return Ok(());
        }
        self.record_failure(error).await
    }

    /// The same, also where it has failed already: for what the application should hear of.
    pub(super) async fn fail_again(&self, error: &Error) -> Result<(), Error> {
        let _one_at_a_time = self.writing.lock().await;
        self.record_failure(error).await
    }

    async fn record_failure(&self, error: &Error) -> Result<(), Error> {
        let failure = failure_of_table(&self.id, error);
        let mut record = self.record();
        record.fail(failure.clone());
        self.store.save_table(&record).await?;
        self.replace(record);
        // Only now may the stream skip the table's rows: from here on their loss is on record.
        self.failed.store(true, Ordering::Release);
        self.snapshot_filter.reset();
        let why = self.progress.sentence(&failure);
        tracing::error!(table = %self.id, reason = %failure.reason, error = %why, "table stopped; the others continue");
        self.progress.set_failed(failure);
        Ok(())
    }

    fn replace(&self, record: TableRecord) {
        *lock(&self.record) = record;
    }

    /// A copy begins, and none from before is at work: what was begun without a key can't be continued.
    pub(super) fn begin_copy(&self) {
        if !self.schema().kind.is_keyed() && !self.snapshot_over() {
            self.snapshot_filter.reset();
        }
    }

    /// Lets no further chunk begin and waits for those in flight.
    pub(super) async fn stop_copying(&self) {
        self.snapshot_over.store(true, Ordering::Release);
        drop(self.chunk_gate.write().await);
    }

    /// Records that nothing is left to copy, by what the source's log had up to `read_lsn`, and what `floor`
    /// says.
    pub(super) async fn finish_snapshot(&self, read_lsn: Lsn, floor: Floor) -> Result<(), Error> {
        let _one_at_a_time = self.writing.lock().await;
        if self.failed() {
            return Ok(());
        }
        let mut record = self.record();
        record.raise_floor(floor);
        record.phase = TablePhase::Streaming;
        record.set_reason(None, "");
        record.copy_version = Lsn::ZERO;
        record.added_while_streaming = false;
        record.read_until(read_lsn);
        let chunks = std::mem::take(&mut record.chunks).len();
        self.store.finish_snapshot(&record, chunks).await?;
        self.replace(record);
        if floor != Floor::Unchanged {
            self.sweep_due.store(true, Ordering::Release);
        }
        self.snapshot_over.store(true, Ordering::Release);
        self.progress.set_copied_while_streaming(false);
        self.progress.set_state(TableState::Streaming, None, "");
        Ok(())
    }

    /// Whether late rows have to be checked for from now on; once each time that there is reason to.
    pub(super) fn take_sweep(&self) -> bool {
        self.sweep_due.swap(false, Ordering::AcqRel)
    }

    /// Remembers how long an insert took.
    pub(super) fn record_insert_time(&self, took: Duration) {
        self.insert_micros.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long the last insert took.
    pub(super) fn insert_time(&self) -> Duration {
        Duration::from_micros(self.insert_micros.load(Ordering::Relaxed))
    }
}
