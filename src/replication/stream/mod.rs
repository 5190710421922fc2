//! One connection's life: reads the replication stream, applies it, and reports to the source what is
//! durable.

mod apply;
mod backlog;
mod batch;
mod checkpoint;
#[cfg(test)]
mod commute;
mod fatal;
mod feedback;
mod inserter;
mod refetch;
mod relation;
mod row;
mod stream_table;
mod truncate;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub use self::checkpoint::Commit;
use self::{
    apply::Step,
    backlog::BacklogDetector,
    feedback::{FEEDBACK_AT_LEAST, Feedback},
    stream_table::TableIndex,
};
pub(super) use self::{
    apply::{Applier, require_room},
    batch::{BatchPool, stream_fence},
    checkpoint::{Checkpoint, CheckpointGuard, Mark},
    fatal::Fatal,
    inserter::{Inserter, insert_semaphore},
    refetch::RowFetcher,
};
use super::{
    Destination, Error,
    session::{position::Confirmable, recorder::Recorder},
};
use crate::{
    model::{Lsn, PostgresEndpoint, Progress, Version},
    postgres::{
        session::Session,
        wire::{ReplicationMessage, ReplicationReader, ReplicationWriter},
    },
};

/// How long what was received may take to become durable before the session restarts with the catalog as it
/// is.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// What a stream needs besides its applier.
pub(super) struct StreamContext {
    pub(super) source: PostgresEndpoint,
    pub(super) application_name: String,
    pub(super) progress: Arc<Progress>,
    /// Whether values come in binary form.
    pub(super) binary: bool,
    /// A session for the catalog queries that the stream waits for; made at first use and again after a
    /// fault.
    pub(super) catalog: tokio::sync::Mutex<Option<Session>>,
    /// Has the catalog checked.
    pub(super) look: Arc<Notify>,
    /// Ends the stream in order.
    pub(super) stop: CancellationToken,
    /// How far the source may hear that rows are durable.
    pub(super) confirmable: Arc<Confirmable>,
    /// Ends waits on a destination that does not answer, and tries of this stream's inserts once it has
    /// failed.
    pub(super) abort: CancellationToken,
    /// Where the stream's tasks report what ends it.
    pub(super) fatal: Fatal,
}

impl StreamContext {
    /// Awaits `work`, unless something ends the stream first: so whatever the stream waits for, it can end.
    ///
    /// # Errors
    /// What a task has reported, [`Error::Stopped`] when the time is over, or those of `work`.
    async fn while_open<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            error = self.fatal.reported() => Err(error),
            () = self.abort.cancelled() => Err(Error::Stopped),
            done = work => done,
        }
    }
}

/// One stream, from its first message to its last standby status update.
pub(super) struct StreamSession<D: Destination> {
    pub(super) context: Arc<StreamContext>,
    pub(super) applier: Applier<D>,
}

/// Whether neither side may hear any more how far a stream has come.
fn lost(outcome: &Result<(), Error>) -> bool {
    !matches!(outcome, Ok(()) | Err(Error::CatalogChanged { copy: false, .. }))
}

impl<D: Destination> StreamSession<D> {
    /// Streams until `stop`, then makes everything received durable and reports that to the source.
    ///
    /// # Errors
    /// What ended the stream before; the caller reconnects or stops, by [`super::policy`].
    pub(super) async fn run(
        mut self,
        mut reader: ReplicationReader,
        writer: ReplicationWriter,
        recorder: Recorder<D>,
    ) -> Result<(), Error> {
        let checkpoint = Arc::clone(&self.applier.checkpoint);
        let reply_requested = Arc::new(Notify::new());
        let feedback = Feedback {
            checkpoint: Arc::clone(&checkpoint),
            confirmable: Arc::clone(&self.context.confirmable),
            progress: Arc::clone(&self.context.progress),
            reply_requested: Arc::clone(&reply_requested),
            done: CancellationToken::new(),
        };
        let feedback_task: JoinHandle<ReplicationWriter> = tokio::spawn(feedback.clone().run(writer));
        let ended = CancellationToken::new();
        let recording = recorder.run(Arc::clone(&checkpoint), self.context.fatal.clone(), ended.clone());
        let recording = tokio::spawn(recording);
        let outcome = self.run_event_loop(&mut reader, &reply_requested).await;
        let outcome = self.drain_after(outcome).await;
        // What is not durable is sent again, so nothing is retried. Tasks must end before a new stream
        // begins: none waits for anything after this.
        self.context.abort.cancel();
        let inserted = self.applier.await_inserts().await;
        ended.cancel();
        match recording.await {
            Ok(mut recorder) if inserted.is_ok() && !lost(&outcome) => {
                recorder.finish(checkpoint.confirmed()).await;
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the task that records positions failed"),
        }
        feedback.done.cancel();
        match feedback_task.await {
            Ok(writer) => reader.end(writer, feedback.confirmed()).await,
            Err(error) => tracing::warn!(%error, "feedback task failed"),
        }
        outcome.and(inserted)
    }

    /// Makes what was received durable where the stream has ended in order, or only to begin again: a source
    /// whose tables change all the time would otherwise never have anything durable.
    async fn drain_after(&mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        match outcome {
            Ok(()) => context.while_open(self.applier.drain()).await,
            Err(error @ Error::CatalogChanged { copy: false, .. }) => {
                let drained = context.while_open(self.applier.drain());
                let drained = tokio::time::timeout(DRAIN_WITHIN, drained).await;
                tracing::debug!(complete = matches!(drained, Ok(Ok(()))), "the stream begins again");
                Err(error)
            }
            failed => failed,
        }
    }

    async fn run_event_loop(
        &mut self,
        reader: &mut ReplicationReader,
        reply_requested: &Notify,
    ) -> Result<(), Error> {
        let context = Arc::clone(&self.context);
        let ended = Arc::clone(&self.applier.inserter.ended);
        let mut detector = BacklogDetector::new();
        loop {
            while let Some(message) = reader.try_next()? {
                match message {
                    ReplicationMessage::XLogData { wal_start, data, .. } => {
                        let step = self.applier.apply(wal_start, data)?;
                        if !matches!(step, Step::Done) {
                            context.while_open(self.finish_message(step, wal_start, data)).await?;
                        } else if self.applier.memory_check_due() {
                            context.while_open(self.applier.enforce_memory_limit()).await?;
                        }
                    }
                    ReplicationMessage::TooLong { data, bytes } => {
                        let step = self.applier.too_long(data, bytes);
                        context.while_open(self.handle(step)).await?;
                    }
                    ReplicationMessage::Keepalive { wal_end, reply_requested: requested } => {
                        self.on_keepalive(wal_end)?;
                        if requested {
                            reply_requested.notify_one();
                            context.confirmable.await_up_to(wal_end);
                        }
                    }
                }
            }
            let backlog = detector.backlog();
            let next = self.applier.flush_due(backlog);
            context.progress.liveness().moved();
            if backlog {
                reader.coalesce_reads_until(detector.next_read()).await;
            }
            tokio::select! {
                biased;
                () = context.stop.cancelled() => return Ok(()),
                error = context.fatal.reported() => return Err(error),
                read = reader.fill() => detector.read(read?),
                () = ended.notified() => {}
                () = until(next) => {}
                // A quiet stream is alive.
                () = tokio::time::sleep(FEEDBACK_AT_LEAST) => {}
            }
        }
    }

    fn on_keepalive(&self, wal_end: Lsn) -> Result<(), Error> {
        self.context.progress.set_source_lsn(wal_end);
        if !self.applier.in_transaction() {
            self.applier.witness.pass(wal_end)?;
            self.applier.checkpoint.received(wal_end, None);
        }
        Ok(())
    }

    /// Does what is left to do after a message, and applies the message again where that was needed first.
    async fn finish_message(&mut self, mut step: Step<D>, wal_start: Lsn, data: &[u8]) -> Result<(), Error> {
        loop {
            match step {
                Step::NeedsRelation(relation) => self.on_relation(*relation).await?,
                Step::AwaitSnapshot(table) => table.snapshot_filter.resumed().await,
                other => return self.handle(other).await,
            }
            step = self.applier.apply(wal_start, data)?;
        }
    }

    async fn handle(&mut self, step: Step<D>) -> Result<(), Error> {
        match step {
            Step::Done => Ok(()),
            Step::NeedsRelation(_) | Step::AwaitSnapshot(_) => {
                Err(Error::Protocol("a message that can't be applied again"))
            }
            Step::Relation(relation) => self.on_relation(relation).await,
            Step::Truncate(tables) => self.on_truncate(tables).await,
            Step::IdentityDiffers(index) => {
                let error = self.identity_differs(index).await?;
                self.fail_or_return(index, error).await
            }
            Step::Fail(index, error) => self.fail_or_return(index, error).await,
        }
    }

    async fn on_truncate(&mut self, tables: Vec<(TableIndex, Option<Version>)>) -> Result<(), Error> {
        // It announces a root without a partition.
        self.applier.last_announced = None;
        for (index, version) in tables {
            if let Err(error) = truncate::begin(&mut self.applier, index, version).await {
                self.fail_or_return(index, error).await?;
            }
        }
        Ok(())
    }

    /// Sets a table's rows aside, durably, where the error is the table's own; any other is given back.
    async fn fail_or_return(&mut self, index: TableIndex, error: Error) -> Result<(), Error> {
        let table = Arc::clone(&self.applier.tables[index].table);
        let inserter = Arc::clone(&self.applier.inserter);
        // Until the failure is on record, the batch's guard keeps the slot before the table's rows.
        table.fail_or_return(error, &self.context.abort, &inserter.observer).await?;
        if let Some(batch) = self.applier.take_batch(index) {
            batch.release(&inserter.total_bytes);
        }
        Ok(())
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
