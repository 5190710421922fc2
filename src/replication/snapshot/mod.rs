//! Copies existing rows, in chunks of blocks, several at a time, while the stream runs.
//!
//! Copied rows have a version below that of any streamed change (0, or in a resync the position before the
//! slot's start), so a chunk may be read at any time after the slot was made, and again after a crash. Tables
//! without a key take more ([`keyless`]).

mod chunk;
mod keyless;
mod plan;
mod queue;
mod range;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(super) use self::plan::{next_number, parts};
use self::{
    chunk::{ChunkRead, Copied, Copier},
    queue::Queue,
};
use super::{
    Destination, Error, Rows,
    retry::{RetryObserver, retry, retry_for_table},
    table::{
        Table,
        record::Floor,
        store::{MirrorState, StateStore},
        target,
    },
};
use crate::{
    model::{Lsn, PostgresEndpoint, Progress, TableId, TableState, Version, lock},
    postgres::{self, catalog, session::Session, shared_snapshot::SharedSnapshot},
};

/// What the copy of a Mirror needs.
pub(super) struct SnapshotContext<D: Destination> {
    pub(super) source: PostgresEndpoint,
    pub(super) application_name: String,
    pub(super) destination: D,
    pub(super) store: StateStore<D>,
    /// Chunks copied at the same time.
    pub(super) parallelism: usize,
    /// Prefix of the fence, unique to the Mirror.
    pub(super) fence: String,
    pub(super) progress: Arc<Progress>,
    pub(super) stop: CancellationToken,
    pub(super) observer: RetryObserver,
}

/// How often the stream's position is compared with the copy's version.
const DURABLE_POLL: Duration = Duration::from_millis(50);

/// Tables planned at the same time: there may be thousands, and each plan is a record that the destination
/// writes to its disk.
const PLANNED_AT_ONCE: usize = 4;

/// Most chunks copied at the same time, by the rules of `snapshot.parallelism`.
const MOST_WORKERS: usize = 32;

/// The fence of a worker's inserts, into whatever table, `prefix` being the Mirror's. The dot distinguishes
/// it from a table's.
fn copy_fence(prefix: &str, worker: usize) -> String {
    format!("{prefix}.copy{worker}")
}

/// Ends what an earlier process's copy has left: an insert of its that came after a TRUNCATE would bring rows
/// back.
pub(super) async fn end_earlier_inserts<D: Destination>(destination: &D, fence: &str) -> Result<(), Error> {
    let workers: Vec<String> = (0..MOST_WORKERS).map(|worker| copy_fence(fence, worker)).collect();
    try_join_all(workers.iter().map(|fence| destination.await_fence(fence))).await?;
    Ok(())
}

type Tables<D> = Vec<Arc<Table<D>>>;

struct Job<D: Destination> {
    table: Arc<Table<D>>,
    plan: u64,
    index: usize,
    /// What the plan is copied in, where there is no key: it lives as long as a job needs it.
    snapshot: Option<Arc<SharedSnapshot>>,
}

impl<D: Destination> Job<D> {
    /// The error of a job whose plan is the present one and has no such chunk.
    fn lost(&self) -> Error {
        let (plan, index) = (self.plan, self.index);
        Error::Task(format!("plan {plan} of table {} has no chunk {index}", self.table.id))
    }
}

#[derive(Clone, Copy)]
struct PlanInProgress {
    number: u64,
    left: usize,
    /// Up to which position of the log this process has read it.
    read_lsn: Lsn,
}

struct Snapshot<D: Destination> {
    context: SnapshotContext<D>,
    queue: Queue<Job<D>>,
    plans: Mutex<HashMap<TableId, PlanInProgress>>,
    /// Sessions for plans that have no work just now.
    idle: Mutex<Vec<Session>>,
    /// What tables without a key are copied in.
    shared: Mutex<Vec<Weak<SharedSnapshot>>>,
}

/// Copies every table that is not yet copied. Ends when nothing is left, or at `stop`.
///
/// A table without a plan gets one; where the slot is older than the table's publication (`joining`), only
/// after the transactions that were writing to it have ended.
///
/// # Errors
/// What neither passes automatically nor concerns one table alone.
pub(super) async fn run<D: Destination>(
    context: SnapshotContext<D>,
    tables: Vec<Arc<Table<D>>>,
    state: &MirrorState,
    joining: bool,
) -> Result<(), Error> {
    let snapshot = Arc::new(Snapshot {
        context,
        queue: Queue::new(1),
        plans: Mutex::default(),
        idle: Mutex::default(),
        shared: Mutex::default(),
    });
    let (keyed, keyless): (Tables<D>, Tables<D>) =
        tables.into_iter().partition(|table| table.schema().kind.is_keyed());
    if keyless.iter().any(|table| !table.failed() && !table.snapshot_over()) {
        // A row that comes late is one too many, and there is no key by which it would be replaced.
        let SnapshotContext { destination, fence, stop, observer, .. } = &snapshot.context;
        retry(stop, observer, || end_earlier_inserts(destination, fence)).await?;
    }
    let mut tasks = JoinSet::new();
    for worker in 0..snapshot.context.parallelism.clamp(1, MOST_WORKERS) {
        let snapshot = Arc::clone(&snapshot);
        tasks.spawn(async move { snapshot.work(worker).await });
    }
    let copied = tokio::select! {
        copied = copy_all(&snapshot, &mut tasks, (keyed, keyless), state, joining) => copied,
        error = snapshot.watch_locks() => Err(error),
    };
    // After an error: what waits for the destination is begun again by the next copy.
    tasks.shutdown().await;
    copied
}

/// Makes the plans, and waits until the workers have done them.
async fn copy_all<D: Destination>(
    snapshot: &Snapshot<D>,
    tasks: &mut JoinSet<Result<(), Error>>,
    (keyed, keyless): (Tables<D>, Tables<D>),
    state: &MirrorState,
    joining: bool,
) -> Result<(), Error> {
    let (keyed, keyless) =
        tokio::join!(snapshot.prepare(keyed, state, joining), snapshot.prepare_keyless(keyless, joining));
    let prepared = keyed.and(keyless);
    snapshot.idle().clear();
    snapshot.queue.producer_done();
    if prepared.is_err() {
        snapshot.queue.close();
    }
    let mut outcome = prepared;
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|panic| Err(Error::Task(panic.to_string())));
        if ended.is_err() {
            snapshot.queue.close();
        }
        outcome = outcome.and(ended);
    }
    outcome
}

impl<D: Destination> Snapshot<D> {
    fn plans(&self) -> MutexGuard<'_, HashMap<TableId, PlanInProgress>> {
        lock(&self.plans)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        lock(&self.idle)
    }

    /// A session for a plan, to be given back to [`Snapshot::idle`] when all went well.
    async fn session(&self) -> Result<Session, Error> {
        let idle = self.idle().pop();
        if let Some(session) = idle {
            return Ok(session);
        }
        Ok(Session::connect(&self.context.source, &self.context.application_name).await?)
    }

    /// Plans every table that has a key and queues its chunks. One that waits for its writers keeps few
    /// others waiting.
    async fn prepare(
        &self,
        tables: Vec<Arc<Table<D>>>,
        state: &MirrorState,
        joining: bool,
    ) -> Result<(), Error> {
        let unfinished = tables.into_iter().filter(|table| !table.failed() && !table.snapshot_over());
        let prepared = unfinished.map(|table| async move {
            let outcome = self.prepare_table(&table, state, joining).await;
            self.fail_or_return(&table, outcome).await
        });
        let plans: Vec<_> = prepared.collect();
        stream::iter(plans).buffer_unordered(PLANNED_AT_ONCE).try_collect().await
    }

    async fn prepare_table(
        &self,
        table: &Arc<Table<D>>,
        state: &MirrorState,
        joining: bool,
    ) -> Result<(), Error> {
        let record = table.record();
        if record.plan == 0 {
            return retry(&self.context.stop, &self.context.observer, || async {
                let session = self.session().await?;
                if joining {
                    plan::wait_for_writers(&session, table, &self.context.stop).await?;
                }
                self.plan(&session, table).await?;
                self.idle().push(session);
                Ok(())
            })
            .await;
        }
        // A change of a partition that was attached may have been committed before the version of its copy.
        if record.chunks.iter().any(|chunk| chunk.version.is_some()) {
            retry(&self.context.stop, &self.context.observer, || async {
                plan::wait_for_writers(&self.session().await?, table, &self.context.stop).await
            })
            .await?;
        }
        let left: Vec<usize> = state.chunks_left(&record).into_iter().collect();
        let copied: u64 = state.chunks_done.get(&table.id).map_or(0, |done| done.values().sum());
        table.progress.rows_copied.store(copied, Ordering::Relaxed);
        self.enqueue(table, record.plan, &left, None).await
    }

    /// Makes a plan for a table, records it and queues its chunks; unless a TRUNCATE has left nothing to
    /// copy.
    async fn plan(&self, session: &Session, table: &Arc<Table<D>>) -> Result<(), Error> {
        let _before_a_truncate = table.chunk_gate.read().await;
        if table.failed() || table.snapshot_over() {
            return Ok(());
        }
        let (chunks, estimated) = plan::chunks(session, &table.schema(), self.context.parallelism).await?;
        table.progress.rows_estimated.store(estimated, Ordering::Relaxed);
        table.progress.rows_copied.store(0, Ordering::Relaxed);
        let all: Vec<usize> = (0..chunks.len()).collect();
        let number = plan::next_number(table.record().plan);
        table
            .update(|record| {
                record.plan = number;
                record.chunks = chunks;
                record.rows_estimated = estimated;
            })
            .await?;
        self.enqueue(table, number, &all, None).await
    }

    async fn enqueue(
        &self,
        table: &Arc<Table<D>>,
        plan: u64,
        left: &[usize],
        snapshot: Option<&Arc<SharedSnapshot>>,
    ) -> Result<(), Error> {
        if left.is_empty() {
            // Its last chunk was copied by an earlier process.
            let read_lsn = retry(&self.context.stop, &self.context.observer, || async {
                Ok(catalog::read_lsn(&self.session().await?).await?)
            });
            return self.finish(table, read_lsn.await?).await;
        }
        let record = table.record();
        table.progress.set_state(TableState::Snapshotting, record.reason, record.message);
        table.progress.rows_estimated.store(record.rows_estimated, Ordering::Relaxed);
        self.plans()
            .insert(table.id.clone(), PlanInProgress { number: plan, left: left.len(), read_lsn: Lsn::ZERO });
        for index in left {
            let (table, snapshot) = (Arc::clone(table), snapshot.map(Arc::clone));
            self.queue.push(Job { table, plan, index: *index, snapshot });
        }
        Ok(())
    }

    /// One worker: copies chunks over a connection of its own until none is left.
    async fn work(&self, worker: usize) -> Result<(), Error> {
        let copier = Copier::new(worker);
        while let Some(job) = self.queue.pop().await {
            let outcome = self.copy(&copier, &job).await;
            let handled = self.fail_or_return(&job.table, outcome).await;
            self.queue.done();
            match handled {
                Err(Error::Stopped) => return Ok(()),
                other => other?,
            }
        }
        Ok(())
    }

    /// Fails a table whose own error it is; any other is the caller's.
    async fn fail_or_return(&self, table: &Table<D>, outcome: Result<(), Error>) -> Result<(), Error> {
        let of_table = |error| match error {
            Error::Source(postgres::Error::RowTooLong { bytes }) => {
                Error::too_long(&table.schema(), bytes, None)
            }
            other => Error::of_table(&table.id, other),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => {
                table.fail_or_return(of_table(error), &self.context.stop, &self.context.observer).await
            }
        }
    }

    async fn copy(&self, copier: &Copier<D>, job: &Job<D>) -> Result<(), Error> {
        let table = &job.table;
        // Held until the chunk is on record, so that a TRUNCATE forgets that too.
        let chunk_in_flight = table.chunk_gate.read().await;
        let current = self.plans().get(&table.id).is_some_and(|plan| plan.number == job.plan);
        if table.failed() || table.snapshot_over() || !current {
            return Ok(());
        }
        let record = table.record();
        let chunk = record.chunks.get(job.index).ok_or_else(|| job.lost())?;
        let read = ChunkRead { chunk, index: job.index, snapshot: job.snapshot.as_deref() };
        let (rows, read_lsn) = match self.copy_chunk(copier, table, read).await? {
            Copied::Rows { rows, read_lsn } => (rows, read_lsn),
            Copied::Renamed => return Err(Error::recopy(&table.id, "its columns change all the time")),
            // What the stream has brought since can't be distinguished from the copy: all of it begins again
            // where the slot stands.
            Copied::Rewritten if job.snapshot.is_some() => return Err(Error::SnapshotLost),
            Copied::Rewritten => {
                drop(chunk_in_flight);
                return self.replan(table, job.plan).await;
            }
        };
        // The record of a table that is copied stands for that of its last chunk, which may be the only one.
        if !self.is_last_chunk(&table.id) || record.copy_version > Lsn::ZERO {
            retry(&self.context.stop, &self.context.observer, || {
                self.context.store.save_chunk(&table.id, job.plan, job.index, rows)
            })
            .await?;
        }
        if let Some(read_lsn) = self.chunk_done(&table.id, job.plan, read_lsn) {
            self.finish(table, read_lsn).await?;
            tracing::info!(table = %table.id, rows = table.progress.rows_copied.load(Ordering::Relaxed), "table copied");
        }
        Ok(())
    }

    /// Copies a chunk, by the names that the table's columns have by then.
    async fn copy_chunk(
        &self,
        copier: &Copier<D>,
        table: &Table<D>,
        read: ChunkRead<'_>,
    ) -> Result<Copied, Error> {
        let copy = || copier.copy(&self.context, table, read);
        let mut copied = retry_for_table(&self.context.stop, &self.context.observer, table, copy).await;
        if matches!(copied, Ok(Copied::Renamed)) {
            copied = retry_for_table(&self.context.stop, &self.context.observer, table, copy).await;
        }
        match copied {
            Err(refusal) => Err(target::explain(&self.context.destination, &table.schema(), refusal).await),
            copied => copied,
        }
    }

    /// Every row of the table is copied. What was there before and was not copied over is no longer at the
    /// source; it stays where the spec leaves out the operations that remove rows.
    async fn finish(&self, table: &Table<D>, read_lsn: Lsn) -> Result<(), Error> {
        let (schema, version) = (table.schema(), table.record().copy_version);
        // What the stream still has from before the copy would come back after the deletion.
        let waits = || schema.kind.is_keyed() && !table.snapshot_over() && !table.failed();
        while self.context.progress.durable_lsn() < version && waits() {
            tokio::select! {
                () = self.context.stop.cancelled() => return Err(Error::Stopped),
                () = tokio::time::sleep(DURABLE_POLL) => {}
            }
        }
        retry_for_table(&self.context.stop, &self.context.observer, table, || async {
            let older = Version::ZERO..Version::copied(version);
            let kept = schema.kind.is_keyed() && table.record().spec.operations.keep_removed_rows();
            let floor = match schema.kind.is_keyed() {
                _ if version == Lsn::ZERO || kept => Floor::Unchanged,
                true => Floor::Rows(older.end),
                false => Floor::CopiedRows(older.end),
            };
            if matches!(floor, Floor::Rows(_)) {
                let fence = format!("{}.rest-{}", self.context.fence, schema.target);
                self.context.destination.delete(&schema, Rows::All, older.clone(), &fence).await?;
            }
            table.finish_snapshot(read_lsn, floor).await
        })
        .await
    }

    /// Whether all other chunks of a table's plan are done.
    fn is_last_chunk(&self, table: &TableId) -> bool {
        self.plans().get(table).is_some_and(|plan| plan.left == 1)
    }

    /// Notes that a chunk, which was read up to `read_lsn`, is copied. Gives that of all chunks after the
    /// plan's last one.
    fn chunk_done(&self, table: &TableId, plan: u64, read_lsn: Lsn) -> Option<Lsn> {
        let mut plans = self.plans();
        let progress = plans.get_mut(table).filter(|progress| progress.number == plan)?;
        progress.left -= 1;
        progress.read_lsn = progress.read_lsn.max(read_lsn);
        (progress.left == 0).then_some(progress.read_lsn)
    }

    /// The table was rewritten: rows may have moved into blocks that were read already, so everything is read
    /// again.
    async fn replan(&self, table: &Arc<Table<D>>, plan: u64) -> Result<(), Error> {
        if self.plans().remove(&table.id).is_none_or(|progress| progress.number != plan) {
            return Ok(());
        }
        if table.record().chunks.iter().any(|chunk| chunk.version.is_some()) {
            return Err(Error::recopy(&table.id, "a partition was rewritten or went while it was copied"));
        }
        tracing::info!(table = %table.id, "table was rewritten while it was copied; its snapshot starts again");
        retry(&self.context.stop, &self.context.observer, || async {
            let session = self.session().await?;
            self.plan(&session, table).await
        })
        .await
    }
}
