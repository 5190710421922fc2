//! One connection's life: reads the replication stream, applies it, and tells the source what is durable.

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
    backlog::Pace,
    feedback::{FEEDBACK_AT_LEAST, Feedback},
    relation::{announce, identity_differs},
};
pub(super) use self::{
    apply::{Applier, require_room},
    batch::{Spares, stream_fence},
    checkpoint::{Checkpoint, Hold, Mark},
    fatal::Fatal,
    inserter::{Inserter, turns},
    refetch::Rereader,
};
use super::{
    Destination, Error, Policy,
    backoff::retry,
    policy,
    position::{Confirmable, Recorder},
};
use crate::{
    model::{PostgresEndpoint, Progress},
    postgres::{
        session::Session,
        wire::{ReplicationMessage, ReplicationReader, ReplicationWriter},
    },
};

/// How long what was received may take to become durable before the tables are taken up again from the catalog.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// What a stream needs besides its applier.
pub(super) struct Surroundings {
    pub(super) source: PostgresEndpoint,
    pub(super) application_name: String,
    pub(super) progress: Arc<Progress>,
    /// Whether values come in binary form.
    pub(super) binary: bool,
    /// A session for questions to the catalog that the stream waits for; made at first use and again after a fault.
    pub(super) catalog: tokio::sync::Mutex<Option<Session>>,
    /// Has the catalog looked at.
    pub(super) look: Arc<Notify>,
    /// Ends the stream in order.
    pub(super) stop: CancellationToken,
    /// How far the source may be told.
    pub(super) confirmable: Arc<Confirmable>,
    /// Ends waits on a destination that does not answer, and tries of this stream's inserts once it has failed.
    pub(super) abort: CancellationToken,
    /// Where the stream's tasks report what ends it.
    pub(super) fatal: Fatal,
}

impl Surroundings {
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

/// Streams until `stop`, then makes everything received durable and says so to the source.
///
/// # Errors
/// What ended the stream before; the caller reconnects or stops, by [`policy`].
pub(super) async fn run<D: Destination>(
    surroundings: &Surroundings,
    mut applier: Applier<D>,
    mut reader: ReplicationReader,
    writer: ReplicationWriter,
    recorder: Recorder<D>,
) -> Result<(), Error> {
    let asked = Arc::new(Notify::new());
    let feedback = Feedback {
        checkpoint: Arc::clone(&applier.checkpoint),
        confirmable: Arc::clone(&surroundings.confirmable),
        progress: Arc::clone(&surroundings.progress),
        asked: Arc::clone(&asked),
        done: CancellationToken::new(),
    };
    let done = feedback.done.clone();
    let teller: JoinHandle<ReplicationWriter> = tokio::spawn(feedback.clone().run(writer));
    let (checkpoint, ended) = (Arc::clone(&applier.checkpoint), CancellationToken::new());
    let recording =
        tokio::spawn(recorder.run(Arc::clone(&checkpoint), surroundings.fatal.clone(), ended.clone()));
    let outcome = pump(surroundings, &mut applier, &mut reader, &asked).await;
    let outcome = match outcome {
        Ok(()) => surroundings.while_open(applier.drain()).await,
        // Where the source's tables change all the time, nothing would ever be durable if what was received were given up each time.
        Err(error @ Error::CatalogChanged { copy: false, .. }) => {
            let drained = tokio::time::timeout(DRAIN_WITHIN, surroundings.while_open(applier.drain())).await;
            tracing::debug!(complete = matches!(drained, Ok(Ok(()))), "the stream begins again");
            Err(error)
        }
        failed => failed,
    };
    // What is not durable comes again, so nothing is tried again. Tasks must end before a new stream begins: none waits
    // for anything after this.
    surroundings.abort.cancel();
    let settled = applier.settle().await;
    ended.cancel();
    match recording.await {
        Ok(mut recorder) if settled.is_ok() && !lost(&outcome) => {
            recorder.finish(checkpoint.confirmed()).await;
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the task that records positions failed"),
    }
    done.cancel();
    match teller.await {
        Ok(writer) => reader.end(writer, feedback.confirmed()).await,
        Err(error) => tracing::warn!(%error, "feedback task failed"),
    }
    outcome.and(settled)
}

/// Whether nothing may be said to either side any more about how far a stream has come.
fn lost(outcome: &Result<(), Error>) -> bool {
    !matches!(outcome, Ok(()) | Err(Error::CatalogChanged { copy: false, .. }))
}

async fn pump<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    reader: &mut ReplicationReader,
    asked: &Notify,
) -> Result<(), Error> {
    let ended = Arc::clone(&applier.inserter.ended);
    let mut pace = Pace::new();
    loop {
        while let Some(message) = reader.try_next()? {
            match message {
                ReplicationMessage::XLogData { wal_start, data, .. } => {
                    let mut step = applier.apply(wal_start, data)?;
                    loop {
                        step = match step {
                            Step::Late(relation) => {
                                let announced = announce(surroundings, applier, *relation);
                                surroundings.while_open(announced).await?;
                                applier.apply(wal_start, data)?
                            }
                            Step::Wait(table) => {
                                let resumed = async {
                                    table.sieve.resumed().await;
                                    Ok(())
                                };
                                surroundings.while_open(resumed).await?;
                                applier.apply(wal_start, data)?
                            }
                            _ => break,
                        };
                    }
                    if !matches!(step, Step::Done) {
                        surroundings.while_open(handle(surroundings, applier, step)).await?;
                    } else if applier.wants_balance() {
                        surroundings.while_open(applier.balance()).await?;
                    }
                }
                ReplicationMessage::TooLong { data, bytes } => {
                    let step = applier.too_long(data, bytes);
                    surroundings.while_open(handle(surroundings, applier, step)).await?;
                }
                ReplicationMessage::Keepalive { wal_end, reply_requested } => {
                    surroundings.progress.set_source_lsn(wal_end);
                    if !applier.in_transaction() {
                        applier.witness.pass(wal_end)?;
                        applier.checkpoint.received(wal_end, None);
                    }
                    if reply_requested {
                        asked.notify_one();
                        surroundings.confirmable.await_up_to(wal_end);
                    }
                }
            }
        }
        let backlog = pace.backlog();
        let next = applier.flush_due(backlog);
        surroundings.progress.liveness().moved();
        if backlog {
            reader.nap_until(pace.next_read()).await;
        }
        tokio::select! {
            biased;
            () = surroundings.stop.cancelled() => return Ok(()),
            error = surroundings.fatal.reported() => return Err(error),
            read = reader.fill() => pace.read(read?),
            () = ended.notified() => {}
            () = until(next) => {}
            // A quiet stream is alive.
            () = tokio::time::sleep(FEEDBACK_AT_LEAST) => {}
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn handle<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    step: Step<D>,
) -> Result<(), Error> {
    match step {
        Step::Done | Step::Wait(_) => Ok(()),
        Step::Late(_) => Err(Error::Protocol("a relation that can't be judged")),
        Step::Relation(relation) => announce(surroundings, applier, relation).await,
        Step::Truncate(slots) => {
            // It announces a root without a partition.
            applier.announced = None;
            for (slot, version) in slots {
                match truncate::begin(applier, slot, version).await {
                    Err(error) if policy(&error).0 == Policy::FailTable => {
                        fail(surroundings, applier, slot, &error).await?;
                    }
                    begun => begun?,
                }
            }
            Ok(())
        }
        Step::IdentityDiffers(slot) => {
            let error = identity_differs(surroundings, applier, slot).await?;
            fail(surroundings, applier, slot, &error).await
        }
        Step::Fail(slot, error) if policy(&error).0 == Policy::FailTable => {
            fail(surroundings, applier, slot, &error).await
        }
        Step::Fail(_, error) => Err(error),
    }
}

/// Sets a table's rows aside, durably, before the stream goes on.
async fn fail<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    slot: usize,
    error: &Error,
) -> Result<(), Error> {
    // Holds the slot's position until the failure is recorded.
    let building = applier.take_building(slot);
    if let Some(slot) = applier.slots.get(slot) {
        retry(&surroundings.abort, &applier.inserter.notice, || slot.table.fail(error)).await?;
    }
    if let Some(building) = building {
        building.release(&applier.inserter.total_bytes);
    }
    Ok(())
}
