//! One connection's life: reads the replication stream, applies it, and tells the source what is durable.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Destination, Error, Policy,
    applier::{Applier, Step},
    backoff::{retry, retry_in_stream},
    checkpoint::{Checkpoint, PgMicros},
    drift::FILLED_BEFORE,
    fatal::Fatal,
    guard,
    named_columns::{EXCLUDED_RENAMED, NamedColumns, Renewal},
    policy,
    position::{Confirmable, Recorder},
    row::KnownRelation,
    schema_change::{self, CHANGED_COLUMNS, Fit, Matched, OTHER_NAMES, Projection},
    state::TableRecord,
    truncate,
};
use crate::{
    model::{Lsn, PostgresEndpoint, Progress, TableId},
    postgres::{
        catalog,
        pgoutput::Relation,
        session::Session,
        visibility,
        wire::{ReplicationMessage, ReplicationReader, ReplicationWriter},
    },
};

/// This much within [`BUSY_WITHIN`] says that the source has more than we have taken.
const BACKLOG_BYTES: usize = 8 << 10;

/// How long the socket is left to fill while a backlog is there: the walsender wakes a hungry reader once a row.
const NAP: Duration = Duration::from_millis(2);

/// A backlog is what keeps coming: a lone transaction, however large, is not napped over.
const BUSY_WITHIN: Duration = Duration::from_millis(8);

/// How long what was received may take to become durable before the tables are taken up again from the catalog.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// How often the source hears what is durable while that moves.
const FEEDBACK_EVERY: Duration = Duration::from_millis(100);

/// How often it hears anything at all, well within `wal_sender_timeout`.
const FEEDBACK_AT_LEAST: Duration = Duration::from_secs(1);

/// How often the source is asked for a sign of life: it sends none by itself while it has nothing to send.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// How long a commit that is in the stream may take until the catalog shows it. While it waits for a synchronous standby it takes longer.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

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

/// Tells a backlog from single transactions, by what has come since the last nap.
///
/// One read's size can't: a hungry reader gets a few rows at a time, however long the queue behind them is.
struct Pace {
    since: Instant,
    bytes: usize,
    last_read: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Pace { since: now, bytes: 0, last_read: now }
    }

    fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.last_read = Instant::now();
    }

    /// Whether more is there than we have taken; counts anew when it says so, or when too little came for too long.
    fn backlog(&mut self) -> bool {
        let busy = self.bytes >= BACKLOG_BYTES;
        if busy || self.since.elapsed() > BUSY_WITHIN {
            self.bytes = 0;
            self.since = Instant::now();
        }
        busy
    }

    fn next_read(&self) -> Instant {
        self.last_read + NAP
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

/// Resolves a relation to one of our tables, and applies what changed in its columns.
async fn announce<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    relation: Relation,
) -> Result<(), Error> {
    // Another table may have, or have had, the name of ours.
    let Some(index) = applier.slots.iter().position(|slot| slot.schema.oid == relation.oid) else {
        if let Some(root) = applier.announced.take() {
            note_partition(surroundings, applier, root, relation.oid).await?;
        }
        applier.know(relation.oid, None);
        return Ok(());
    };
    applier.announced = Some(index);
    let Some(slot) = applier.slots.get(index).filter(|slot| !slot.table.failed()) else {
        applier.know(relation.oid, None);
        return Ok(());
    };
    if applier.slot_of(relation.oid).is_some() {
        // Something may have happened to the table that its rows don't tell.
        surroundings.look.notify_one();
    }
    let named = slot.table.named();
    if !named.is_empty() {
        if applier.is_covered(index) {
            applier.judge_later(index, relation);
            return Ok(());
        }
        match check_names(surroundings, applier, index, &relation, named).await {
            Ok(()) => {}
            Err(error) if policy(&error).0 == Policy::FailTable => {
                fail(surroundings, applier, index, &error).await?;
                applier.know(relation.oid, None);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    let Some(slot) = applier.slots.get(index) else { return Ok(()) };
    let projection = match schema_change::fit(&slot.schema, &relation, &slot.spec.exclude) {
        Fit::Known(projection) => projection,
        Fit::Unknown(_) if applier.is_covered(index) => {
            applier.judge_later(index, relation);
            return Ok(());
        }
        Fit::Unknown(detail) => {
            tracing::info!(table = %relation.table, detail, "columns changed in the stream");
            match follow(surroundings, applier, index, &relation).await {
                Ok(projection) => projection,
                Err(error) if policy(&error).0 == Policy::FailTable => {
                    fail(surroundings, applier, index, &error).await?;
                    Projection { places: Vec::new(), identical: false }
                }
                Err(error) => return Err(error),
            }
        }
    };
    let Some(slot) = applier.slots.get(index) else { return Ok(()) };
    let known = KnownRelation::new(index, Arc::clone(&slot.schema), projection, relation.identity);
    applier.know(relation.oid, Some(known));
    Ok(())
}

/// The fault of a table with a partition whose old rows come incomplete.
///
/// # Errors
/// [`Error::CatalogChanged`] where no partition is such a one any more: what came until now has to be copied again. What the source
/// answers.
async fn identity_differs<D: Destination>(
    surroundings: &Surroundings,
    applier: &Applier<D>,
    index: usize,
) -> Result<Error, Error> {
    let Some(schema) = applier.slots.get(index).map(|slot| Arc::clone(&slot.schema)) else {
        return Err(Error::Stopped);
    };
    let session = Session::connect(&surroundings.source, &surroundings.application_name).await?;
    let relations = catalog::relations(&session, &[schema.oid]).await?;
    let members = relations.get(&schema.oid).map(Vec::as_slice).unwrap_or_default();
    match guard::identity_differs(&schema.id, members) {
        Some(error) => Ok(error),
        None => Err(Error::copy_anew(&schema.id, "a partition had another replica identity")),
    }
}

/// Sees to it that the names of a table's entry mean the columns that they meant, before a row is read by a relation's names.
///
/// # Errors
/// The table's own fault where they don't, [`Error::CatalogChanged`] where that can't be told, and what the source answers: nothing is
/// tried again, for a source that shuts down waits for what this stream holds.
async fn check_names<D: Destination>(
    surroundings: &Surroundings,
    applier: &Applier<D>,
    index: usize,
    relation: &Relation,
    mut named: NamedColumns,
) -> Result<(), Error> {
    let Some(table) = applier.slots.get(index).map(|slot| Arc::clone(&slot.table)) else { return Ok(()) };
    let mut kept = surroundings.catalog.lock().await;
    let session = match kept.take() {
        Some(session) => session,
        None => Session::connect(&surroundings.source, &surroundings.application_name).await?,
    };
    // Before another transaction could write to a table that was altered, the catalog showed that; this one may have altered it itself.
    let altering = applier.xid();
    let show = || visibility::alters(&session, altering.unwrap_or_default(), relation.oid);
    wait_until(&table.id, || async { Ok(!show().await?) }).await?;
    let live = catalog::live_columns(&session, relation.oid).await?;
    let read_lsn = catalog::read_lsn(&session).await?;
    *kept = Some(session);
    drop(kept);
    if live.is_empty() {
        return Err(Error::dropped(&table.id));
    }
    named.require(&table.id, &live)?;
    match named.renew(&live, read_lsn) {
        Renewal::Same => {}
        Renewal::Renewed(renewed) => {
            let record = |record: &mut TableRecord| record.named = Some(renewed.clone());
            retry(&surroundings.abort, &applier.inserter.notice, || table.update(record)).await?;
            named = renewed;
        }
        Renewal::Ambiguous => return Err(Error::copy_anew(&table.id, EXCLUDED_RENAMED)),
    }
    match named.tell_apart(relation, applier.commit()) {
        true => Ok(()),
        false => Err(Error::copy_anew(&table.id, EXCLUDED_RENAMED)),
    }
}

/// Puts a partition on record that the catalog did not have at the last look. PostgreSQL announces it right behind its root, before
/// its first row: should it be gone at the next look, these rows have gone with it.
async fn note_partition<D: Destination>(
    surroundings: &Surroundings,
    applier: &Applier<D>,
    root: usize,
    partition: u32,
) -> Result<(), Error> {
    let Some(slot) = applier.slots.get(root) else { return Ok(()) };
    let table = Arc::clone(&slot.table);
    let known = || {
        let record = table.record();
        record.layout.is_none_or(|layout| layout.files.contains_key(&partition))
    };
    if !slot.schema.partitioned || table.failed() || applier.is_covered(root) || known() {
        return Ok(());
    }
    retry(&surroundings.abort, &applier.inserter.notice, || {
        table.update(|record| {
            if let Some(layout) = &mut record.layout {
                layout.note_streamed(partition);
            }
        })
    })
    .await?;
    surroundings.look.notify_one();
    Ok(())
}

/// Takes a change of columns up from the catalog, and says where the columns are in the relation's rows.
async fn follow<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    index: usize,
    relation: &Relation,
) -> Result<Projection, Error> {
    change_schema(surroundings, applier, index).await?;
    let Some(slot) = applier.slots.get(index) else { return Err(Error::Stopped) };
    let Matched { projection, strangers, doubtful } = schema_change::projection(&slot.schema, relation);
    let lacks =
        projection.places.iter().zip(&slot.schema.columns).any(|(place, c)| place.is_none() && !c.dropped);
    match schema_change::unreadable(&slot.schema, relation, &projection) {
        // A column that it lacks may be one of those that nobody knows by their names.
        None if lacks && strangers.iter().any(|name| !slot.spec.exclude.contains(name)) => {
            Err(Error::copy_anew(&slot.table.id, OTHER_NAMES))
        }
        None if doubtful => Err(Error::copy_anew(&slot.table.id, OTHER_NAMES)),
        Some(detail) => Err(Error::copy_anew(&slot.table.id, detail)),
        // Binary values were asked for, and this column's can't be read so.
        None if surroundings.binary && !slot.schema.has_binary_decoder() => Err(Error::CatalogChanged {
            table: slot.table.id.clone(),
            why: "a column came whose values are read as text".to_owned(),
            copy: false,
        }),
        None => Ok(projection),
    }
}

/// Waits until the catalog shows what the transaction being received did to a table. Without the columns that it gave the table, its
/// rows would be taken for rows of a table that has lost them since.
///
/// # Errors
/// [`Error::CatalogChanged`], after which the stream begins anew, when it takes long, and what the source answers.
async fn wait_until_seen(session: &Session, table: &TableId, xid: Option<u32>) -> Result<(), Error> {
    wait_until(table, || async { Ok(visibility::sees(session, xid.as_slice()).await?) }).await
}

/// The same for what `shows` says.
async fn wait_until<F: Future<Output = Result<bool, Error>>>(
    table: &TableId,
    shows: impl Fn() -> F,
) -> Result<(), Error> {
    let began = Instant::now();
    while !shows().await? {
        if began.elapsed() >= SEEN_WITHIN {
            tracing::info!(%table, "waits for a change of columns whose commit the source does not show yet");
            return Err(Error::CatalogChanged {
                table: table.clone(),
                why: "the source does not show the commit that changed its columns yet".to_owned(),
                copy: false,
            });
        }
        tokio::time::sleep(NAP).await;
    }
    Ok(())
}

/// Asks the catalog for a table's columns and brings target and state up to them.
async fn change_schema<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    index: usize,
) -> Result<(), Error> {
    let Some(slot) = applier.slots.get(index) else { return Ok(()) };
    let (table, old) = (Arc::clone(&slot.table), Arc::clone(&slot.schema));
    let known = TableRecord { schema: (*old).clone(), ..table.record() };
    let notice = applier.inserter.notice.clone();
    let xid = applier.xid();
    // Not tried again here: a source that shuts down waits for the stream, which must end then and begin again.
    let session = Session::connect(&surroundings.source, &surroundings.application_name).await?;
    wait_until_seen(&session, &old.id, xid).await?;
    let described = schema_change::describe(&session, &known).await?;
    let seen = catalog::read_lsn(&session).await?;
    drop(session);
    let fresh = &described.schema;
    schema_change::require_old_rows(&old, fresh)?;
    let (merged, added) =
        schema_change::evolve(&old, fresh).map_err(|message| Error::copy_anew(&old.id, message))?;
    if schema_change::came_and_went(&known, &described) {
        return Err(Error::copy_anew(&old.id, schema_change::CAME_AND_WENT));
    }
    if merged == *old {
        return Ok(());
    }
    // Rows of the old schema go first, but not without the rest of their step: that comes with the new schema, when all is sent again.
    let whole = applier.is_whole(index);
    if whole {
        applier.flush(index).await?;
    }
    let destination = &applier.inserter.destination;
    let changed = retry_in_stream(&surroundings.abort, &notice, &table, || async {
        Ok(destination.add_columns(&merged, &added).await?)
    });
    let filled = changed.await.map_err(|error| schema_change::refused(&old, CHANGED_COLUMNS, error))?;
    if !filled.is_empty() {
        return Err(Error::copy_anew(&old.id, FILLED_BEFORE));
    }
    let record = merged.clone();
    retry(&surroundings.abort, &notice, || {
        table.update(|table: &mut TableRecord| {
            table.schema = record.clone();
            table.seen_until(seen);
        })
    })
    .await?;
    let names: Vec<_> =
        added.iter().filter_map(|index| merged.columns.get(*index)).map(|c| &c.name).collect();
    tracing::info!(table = %table.id, added = ?names, "applied a schema change");
    if !whole {
        let why = "its columns changed between rows of one step".to_owned();
        return Err(Error::CatalogChanged { table: old.id.clone(), why, copy: false });
    }
    if let Some(slot) = applier.slots.get_mut(index) {
        slot.schema = Arc::new(merged);
    }
    Ok(())
}

/// Tells the source, and our own status, what is durable: at its own pace, however slow the destination is.
#[derive(Clone)]
struct Feedback {
    checkpoint: Arc<Checkpoint>,
    confirmable: Arc<Confirmable>,
    progress: Arc<Progress>,
    asked: Arc<Notify>,
    done: CancellationToken,
}

impl Feedback {
    /// What is durable, as far as it is on record. A stream that begins before the record is not told to be further than it has come:
    /// by what it brings the source has to prove that it is the one of before.
    fn confirmed(&self) -> Lsn {
        self.checkpoint.confirmed().lsn.min(self.confirmable.recorded())
    }

    /// Reports until `done`, and gives the writer back for the stream's end.
    async fn run(self, mut writer: ReplicationWriter) -> ReplicationWriter {
        let mut told = self.confirmed();
        let mut told_at = Instant::now();
        let mut asked_at = Instant::now();
        loop {
            let asked = tokio::select! {
                () = self.done.cancelled() => return writer,
                () = self.asked.notified() => true,
                () = tokio::time::sleep(FEEDBACK_EVERY) => false,
            };
            let confirmed = self.confirmed();
            self.progress.set_durable_lsn(self.checkpoint.durable());
            self.progress.set_lag_seconds(self.checkpoint.oldest_commit().map_or(0.0, seconds_since));
            if asked || confirmed != told || told_at.elapsed() >= FEEDBACK_AT_LEAST {
                let asks = asked_at.elapsed() >= ASK_EVERY;
                let sent = tokio::select! {
                    sent = writer.feedback(confirmed, asks) => sent,
                    // The server may have stopped reading.
                    () = self.done.cancelled() => return writer,
                };
                if let Err(error) = sent {
                    // The reader meets the same cut and reports it.
                    tracing::debug!(%error, "feedback could not be sent");
                    return writer;
                }
                (told, told_at) = (confirmed, Instant::now());
                if asks {
                    asked_at = told_at;
                }
            }
        }
    }
}

/// Seconds since a moment given in microseconds since 2000-01-01.
fn seconds_since(moment: PgMicros) -> f64 {
    const EPOCH_2000: f64 = 946_684_800.0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "microseconds until the year 2255 fit 53 bits")]
    let then = EPOCH_2000 + moment as f64 / 1e6;
    (now - then).max(0.0)
}
