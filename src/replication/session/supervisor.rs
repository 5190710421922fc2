//! One Mirror's life: provision, copy, stream, and again after a fault.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    admission::{Admission, Refused},
    failover::Origin,
    position::{Activity, Confirmable, PositionRecord, Recorder, Witness},
    provision::{self, Provisioned, Provisioner},
    resync,
};
use crate::{
    model::{
        Lsn, MirrorPhase, Progress, ReplicatorConfig, SlotReport, SnapshotMode, TableId, TableSpec,
        TableState,
    },
    postgres::{
        catalog,
        session::Session,
        slot::{self, Release},
        wire::{Connection, Purpose, ReplicationReader, ReplicationWriter, SystemIdentity},
    },
    replication::{
        Destination, Error, Policy, failure,
        monitor::{source::Watch, target::TargetWatch},
        policy,
        retry::{Answers, Backoff, RetryObserver, SessionErrors},
        snapshot::{self, SnapshotContext},
        stream::{
            Applier, BatchPool, Checkpoint, Fatal, Inserter, Mark, RowFetcher, StreamContext, StreamSession,
            insert_semaphore,
        },
        table::{
            Sweeper, Table,
            store::{MirrorState, StateStore, TableRecord},
        },
    },
};

/// How long a stalled Mirror waits before it looks again whether a human has acted.
const STALLED_PAUSE: Duration = Duration::from_secs(30);

/// A stream that has lived so long was no failed try, even when nothing was sent.
const SETTLED: Duration = Duration::from_secs(30);

/// How long inserts in flight may take after the order to stop.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// Keeps a source whose catalog changes all the time from being asked all the time.
const START_OVER_PAUSE: Duration = Duration::from_millis(100);

/// How often the slot of a suspended Mirror is looked at.
const SUSPENDED_LOOK: Duration = Duration::from_secs(30);

/// How often it is asked again whether tables can join that could not.
const ADMISSION_PAUSE: Duration = Duration::from_secs(10);

/// How often the end of a run that waits for the source's present position is looked at.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(10);

/// Runs a Mirror until `stop`; with `until_caught_up`, until everything that was at the source when the copy ended is
/// durable at the destination. What passes is retried; what needs a human shows in `progress` and is looked at again.
///
/// # Errors
/// With `until_caught_up`, what needs a human; a run without it ends only by `stop`.
pub async fn run<D: Destination>(
    config: Arc<ReplicatorConfig>,
    destination: D,
    admission: Admission,
    progress: Arc<Progress>,
    stop: CancellationToken,
    until_caught_up: bool,
) -> Result<(), Error> {
    if config.suspend {
        suspended(&config, &progress, &stop, until_caught_up).await;
        return Ok(());
    }
    let worker = Worker::new(config, destination, Arc::new(admission), Arc::clone(&progress), stop);
    let outcome = keep_running(&worker, until_caught_up).await;
    progress.liveness().rest();
    outcome
}

async fn keep_running<D: Destination>(worker: &Worker<D>, until_caught_up: bool) -> Result<(), Error> {
    let ends = until_caught_up || worker.config.snapshot.mode == SnapshotMode::InitialOnly;
    let (mut backoff, mut ends_before) = (Backoff::default(), SessionErrors::default());
    loop {
        worker.progress.liveness().moved();
        let error = match worker.session(ends).await {
            Ok(()) => {
                worker.progress.set_phase(MirrorPhase::Finished, None);
                return Ok(());
            }
            Err(Error::Stopped) => return Ok(()),
            Err(error) => error,
        };
        if worker
            .began()
            .take()
            .is_some_and(|began| began.got_on(Instant::now(), worker.progress.durable_lsn()))
        {
            (backoff, ends_before) = (Backoff::default(), SessionErrors::default());
        }
        let error = ends_before.judge(error);
        if let Error::SlotInvalidated { wal_status, .. } = &error {
            let slot = worker.progress.slot();
            worker.progress.set_slot(SlotReport { wal_status: Some(wal_status.clone()), ..slot });
        }
        let (what, reason) = policy(&error);
        if matches!(error, Error::SourceShuttingDown) {
            // The copy's sessions would keep a server that waits for them.
            worker.let_go().await;
        }
        if what == Policy::StartOver {
            tracing::info!(mirror = worker.config.mirror.name, %error, "taking the tables up anew");
            worker.start_over(error).await;
            continue;
        }
        let passes = matches!(what, Policy::Retry | Policy::SlowDown);
        let phase = if passes { MirrorPhase::Retrying } else { MirrorPhase::Stalled };
        let failure = failure(&error);
        let why = worker.progress.sentence(&failure);
        worker.progress.set_phase(phase, Some(failure));
        let pause = if passes { backoff.next(what) } else { STALLED_PAUSE };
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        if passes {
            tracing::warn!(mirror = worker.config.mirror.name, %reason, error = %why, pause_ms, "will try again");
        } else {
            tracing::error!(mirror = worker.config.mirror.name, %reason, error = %why, "stalled until someone acts");
            if until_caught_up {
                return Err(error);
            }
        }
        tokio::select! {
            () = worker.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Shows what the slot of a suspended Mirror holds back, until `stop`, or once.
async fn suspended(config: &ReplicatorConfig, progress: &Progress, stop: &CancellationToken, once: bool) {
    progress.set_phase(MirrorPhase::Suspended, None);
    loop {
        let look = look_at_slot(config, progress);
        match stop.run_until_cancelled(look).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::warn!(mirror = config.mirror.name, %error, "cannot look at the slot of a suspended mirror");
            }
        }
        if once || stop.run_until_cancelled(tokio::time::sleep(SUSPENDED_LOOK)).await.is_none() {
            return;
        }
    }
}

async fn look_at_slot(config: &ReplicatorConfig, progress: &Progress) -> Result<(), Error> {
    let session = Session::connect(&config.source, &config.mirror.application_name()).await?;
    let Some(slot) = slot::read(&session, &config.mirror.slot_name()).await? else {
        progress.set_slot(SlotReport::default());
        return Ok(());
    };
    progress.set_slot(slot.report());
    progress.set_durable_lsn(slot.confirmed_flush_lsn.unwrap_or_default());
    progress.set_source_lsn(slot.current_lsn);
    match provision::check_slot(config, None, Some(slot)) {
        Err(error) if policy(&error).0 == Policy::Stall => {
            progress.set_phase(MirrorPhase::Stalled, Some(failure(&error)));
            Ok(())
        }
        other => {
            progress.set_phase(MirrorPhase::Suspended, None);
            other.map(drop)
        }
    }
}

/// A stream's beginning, by which to tell later whether it got anywhere: what always ends in the same fault must not be tried
/// again at once each time.
#[derive(Clone, Copy)]
struct Began {
    at: Instant,
    durable: Lsn,
}

impl Began {
    fn got_on(self, now: Instant, durable: Lsn) -> bool {
        durable > self.durable || now.duration_since(self.at) >= SETTLED
    }
}

/// A connection that has begun to stream.
struct Started<D: Destination> {
    session: Session,
    state: MirrorState,
    /// Whether tables without a plan must wait for their writers.
    joining: bool,
    /// Tables that can't join yet.
    refused: Refused,
    tables: Vec<(Arc<Table<D>>, TableSpec)>,
    watch: Watch<D>,
    reader: ReplicationReader,
    writer: ReplicationWriter,
    /// Where the slot stands, and the last transaction on record.
    start: Mark,
    /// Records how far the source may be told.
    recorder: Recorder<D>,
    /// What the stream has to bring again.
    witness: Witness,
    /// Whether values come in binary form.
    binary: bool,
}

/// The copy, which outlives connections.
struct Copying {
    task: JoinHandle<Result<(), Error>>,
    stop: CancellationToken,
}

struct Worker<D: Destination> {
    config: Arc<ReplicatorConfig>,
    destination: D,
    admission: Arc<Admission>,
    progress: Arc<Progress>,
    store: StateStore<D>,
    stop: CancellationToken,
    /// Cancelled when inserts in flight have had their time after `stop`.
    abort: CancellationToken,
    /// Tables, once provisioned; they outlive connections.
    tables: Mutex<BTreeMap<TableId, Arc<Table<D>>>>,
    copying: tokio::sync::Mutex<Option<Copying>>,
    /// When the publication was last seen to do the source no harm.
    looked: Arc<Mutex<Option<Instant>>>,
    /// The stream that has run since the last fault.
    began: Mutex<Option<Began>>,
    /// The server that was connected to last.
    server: Mutex<Option<SystemIdentity>>,
    /// What the destination has refused and accepted.
    answers: Arc<Answers>,
}

impl<D: Destination> Worker<D> {
    fn new(
        config: Arc<ReplicatorConfig>,
        destination: D,
        admission: Arc<Admission>,
        progress: Arc<Progress>,
        stop: CancellationToken,
    ) -> Self {
        for spec in &config.tables {
            progress.table(&spec.id);
        }
        let abort = CancellationToken::new();
        tokio::spawn({
            let (stop, abort) = (stop.clone(), abort.clone());
            async move {
                stop.cancelled().await;
                tokio::time::sleep(STOP_WITHIN).await;
                abort.cancel();
            }
        });
        Worker {
            store: StateStore::new(destination.clone(), &config.mirror.uid),
            config,
            destination,
            admission,
            progress,
            stop,
            abort,
            tables: Mutex::default(),
            copying: tokio::sync::Mutex::default(),
            looked: Arc::default(),
            began: Mutex::default(),
            server: Mutex::default(),
            answers: Arc::default(),
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<SystemIdentity>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn began(&self) -> MutexGuard<'_, Option<Began>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection's life, from provisioning to its end.
    async fn session(&self, ends: bool) -> Result<(), Error> {
        // Making a slot can wait for hours, for transactions that run at the source.
        let outside = self.progress.liveness().outside();
        let started = tokio::select! {
            started = self.start() => started?,
            () = self.stop.cancelled() => return Err(Error::Stopped),
        };
        let Some(started) = started else { return Ok(()) };
        let Started { session, state, joining, refused, tables, watch, reader, writer, .. } = started;
        let Started { start, recorder, witness, binary, .. } = started;
        drop(outside);
        let fatal = Fatal::default();
        *self.began() = Some(Began { at: Instant::now(), durable: self.progress.durable_lsn() });
        let (observer, look) = (watch.observer.clone(), Arc::clone(&watch.look));
        observer.report();
        let mut copying = self.copying.lock().await;
        // A copy outlives connections; one that has ended may have ended by a fault.
        if copying.as_ref().is_none_or(|copying| copying.task.is_finished()) {
            *copying = Some(self.copy(&tables, &state, joining, &observer));
        }
        let copied = report_copy(&mut copying, observer.clone(), fatal.clone());
        let (end, abort) = (self.stop.child_token(), self.abort.child_token());
        let over = CancellationToken::new();
        // It outlives `end`: the last inserts may take long, and the source may have to shut down meanwhile.
        let watcher = tokio::spawn(watch.run(session, fatal.clone(), end.clone(), over.clone()));
        let target_watch = TargetWatch {
            destination: self.destination.clone(),
            uid: self.config.mirror.uid.clone(),
            tables: tables.iter().map(|(table, _)| Arc::clone(table)).collect(),
            observer: observer.clone(),
        };
        let target_watcher = tokio::spawn(target_watch.run(fatal.clone(), end.clone()));
        let sweeper = Sweeper {
            destination: self.destination.clone(),
            tables: tables.iter().map(|(table, _)| Arc::clone(table)).collect(),
            fence: self.config.mirror.fence(),
            observer: observer.clone(),
            stop: end.clone(),
        };
        let sweeper = tokio::spawn(sweeper.run());
        let finisher = ends.then(|| tokio::spawn(self.until_caught_up(&tables, fatal.clone(), end.clone())));
        let admitter = tokio::spawn(self.until_admitted(refused, fatal.clone(), end.clone()));
        let inserter = self.inserter(fatal.clone(), observer, abort.clone());
        let checkpoint = Checkpoint::new(start);
        let applier = Applier::new(tables, Arc::new(inserter), checkpoint, witness, self.config.batch);
        let context = Arc::new(StreamContext {
            source: self.config.source.clone(),
            application_name: self.config.mirror.application_name(),
            progress: Arc::clone(&self.progress),
            binary,
            catalog: tokio::sync::Mutex::default(),
            look,
            confirmable: Arc::clone(&recorder.confirmable),
            stop: end.clone(),
            abort,
            fatal,
        });
        let session = StreamSession { context, applier };
        let outcome = tokio::select! {
            outcome = session.run(reader, writer, recorder) => outcome,
            never = copied => match never {},
        };
        end.cancel();
        over.cancel();
        admitter.abort();
        target_watcher.abort();
        sweeper.abort();
        // What they were writing must not be written after what comes next.
        drop(watcher.await);
        drop(target_watcher.await);
        if let Some(finisher) = finisher {
            finisher.abort();
        }
        outcome.map_err(|error| Error::of_stream(error, self.filtered()))?;
        if self.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        if self.config.snapshot.mode == SnapshotMode::InitialOnly {
            tokio::select! {
                finished = self.finish(state) => finished?,
                () = self.stop.cancelled() => return Err(Error::Stopped),
            }
        }
        Ok(())
    }

    /// Provisions and begins to stream; `None` when the copy was all that was asked for and is done.
    async fn start(&self) -> Result<Option<Started<D>>, Error> {
        let application_name = self.config.mirror.application_name();
        let source = &self.config.source;
        let ((mut wire, identity), session) = tokio::try_join!(
            async {
                let mut wire = Connection::connect(source, &application_name, Purpose::Replication).await?;
                let identity = wire.identify_system().await?;
                Ok((wire, identity))
            },
            Session::connect(source, &application_name)
        )?;
        if catalog::server_started(&session).await? != identity.started {
            return Err(Error::TwoServers);
        }
        let before = self.server().replace(identity.clone());
        if before
            .is_some_and(|before| before.timeline != identity.timeline && before.started != identity.started)
        {
            // What is under way may come from the former primary.
            self.let_go().await;
        }
        let origin = Origin::of(&mut wire, identity, source).await?;
        let timeline = origin.timeline();
        self.progress.set_source_standby(catalog::is_standby(&session).await?);
        let slot_name = self.config.mirror.slot_name();
        // Nothing is written beside a process that is at work.
        match slot::release_own_walsender(&session, &slot_name, &application_name).await? {
            Release::Held(by) => return Err(Error::SlotInUse { slot: slot_name, by }),
            Release::TakenOver => self.progress.add_takeover(),
            Release::Free => {}
        }
        let copying = self.copying.lock().await.as_ref().is_some_and(|copying| !copying.task.is_finished());
        let provisioner = Provisioner {
            config: &self.config,
            session: &session,
            origin: &origin,
            destination: &self.destination,
            store: &self.store,
            progress: &self.progress,
            copying,
            refused: self.admission.refused().await?,
            stop: &self.stop,
            observer: &self.observer_of_start(),
        };
        let provisioned = provisioner.provision().await;
        if let Err(Error::NoTableAdmitted { refused }) = &provisioned {
            self.admission.forget();
            report_refused(&self.progress, refused);
        }
        let Provisioned { state, joining, failed_over, refused } = provisioned?;
        report_refused(&self.progress, &refused);
        self.progress.set_slot_place(origin.place().clone());
        if failed_over.is_some() {
            self.progress.add_failover();
        }
        if state.source.as_ref().is_some_and(|source| source.finished) {
            self.release(&session).await?;
            return Ok(None);
        }
        let tables = self.take_up(&state);
        let Some(record) = state.position.clone() else {
            return Err(Error::PositionUnknown { slot: slot_name });
        };
        let confirmable = Confirmable::new(record.lsn);
        let watch = self.watch(&state, &tables, origin.server_started(), &confirmable);
        let found = watch.look(&session, &self.stop).await?;
        let confirmed = found.and_then(|slot| slot.confirmed_flush_lsn).unwrap_or_default();
        let binary = tables.iter().all(|(table, _)| table.schema().has_binary_decoder());
        let publications = provision::publications(&self.config);
        let streaming = wire.start_replication(&slot_name, confirmed, &publications, binary).await;
        let (reader, writer) = match streaming {
            // object_in_use: somebody else was faster.
            Err(error) if error.sqlstate() == Some("55006") => {
                let by = slot::reader(&session, &slot_name).await?;
                let by = by.unwrap_or_else(|| "a process that is just ending".to_owned());
                return Err(Error::SlotInUse { slot: slot_name, by });
            }
            streaming => streaming?,
        };
        let witness = record.witness(confirmed, timeline, &publications);
        let start = Mark { lsn: confirmed, commit: record.commit };
        let record = PositionRecord { publications, ..record };
        let recorder =
            Recorder { store: self.store.clone(), confirmable, record, noted: Activity::default() };
        tracing::info!(slot = slot_name, start = %confirmed, binary, "streaming");
        self.progress.set_durable_lsn(confirmed);
        self.progress.set_slot(SlotReport { inactive_since: None, ..self.progress.slot() });
        Ok(Some(Started {
            session,
            state,
            joining,
            refused,
            tables,
            watch,
            reader,
            writer,
            start,
            recorder,
            witness,
            binary,
        }))
    }

    fn watch(
        &self,
        state: &MirrorState,
        tables: &[(Arc<Table<D>>, TableSpec)],
        started: &str,
        confirmable: &Arc<Confirmable>,
    ) -> Watch<D> {
        Watch {
            config: Arc::clone(&self.config),
            source: state.source.clone(),
            server_started: started.to_owned(),
            confirmable: Arc::clone(confirmable),
            progress: Arc::clone(&self.progress),
            tables: tables.iter().map(|(table, _)| Arc::clone(table)).collect(),
            observer: self.observer(tables),
            look: Arc::new(Notify::new()),
            looked: Arc::clone(&self.looked),
            marks: Mutex::default(),
            coming: Mutex::default(),
        }
    }

    /// Tables by their records; those known from an earlier connection stay.
    fn take_up(&self, state: &MirrorState) -> Vec<(Arc<Table<D>>, TableSpec)> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        self.config
            .tables
            .iter()
            .filter_map(|spec| {
                let record = state.tables.get(&spec.id)?;
                let table = tables.entry(spec.id.clone()).or_insert_with(|| {
                    Arc::new(Table::new(record.clone(), self.progress.table(&spec.id), self.store.clone()))
                });
                Some((Arc::clone(table), spec.clone()))
            })
            .collect()
    }

    /// The tables with a row filter, the Mirror's or one that the publication was given.
    fn filtered(&self) -> Vec<TableId> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let has_filter = |record: TableRecord| {
            record.spec.row_filter.is_some()
                || record.published.is_some_and(|found| found.row_filter.is_some())
        };
        tables.iter().filter(|(_, table)| has_filter(table.record())).map(|(id, _)| id.clone()).collect()
    }

    /// What tasks call when a fault that passes begins and ends.
    fn observer(&self, tables: &[(Arc<Table<D>>, TableSpec)]) -> RetryObserver {
        let progress = Arc::clone(&self.progress);
        let tables: Vec<_> = tables.iter().map(|(table, _)| Arc::clone(table)).collect();
        RetryObserver::new(Arc::clone(self.progress.liveness()), Arc::clone(&self.answers), move |failure| {
            match failure {
                Some(failure) => progress.set_phase(MirrorPhase::Retrying, Some(failure.clone())),
                None => {
                    let copying = tables.iter().any(|table| !table.failed() && !table.snapshot_over());
                    let phase = if copying { MirrorPhase::Snapshotting } else { MirrorPhase::Streaming };
                    progress.set_phase(phase, None);
                }
            }
        })
    }

    /// The same before anything streams.
    fn observer_of_start(&self) -> RetryObserver {
        let progress = Arc::clone(&self.progress);
        RetryObserver::new(Arc::clone(self.progress.liveness()), Arc::clone(&self.answers), move |failure| {
            let phase = failure.map_or(MirrorPhase::Provisioning, |_| MirrorPhase::Retrying);
            progress.set_phase(phase, failure.cloned());
        })
    }

    fn inserter(&self, fatal: Fatal, observer: RetryObserver, abort: CancellationToken) -> Inserter<D> {
        Inserter {
            destination: self.destination.clone(),
            fetcher: Arc::new(RowFetcher::new(
                self.config.source.clone(),
                self.config.mirror.application_name(),
            )),
            abort,
            total_bytes: Arc::new(AtomicUsize::new(0)),
            ended: Arc::new(Notify::new()),
            fatal,
            fence: self.config.mirror.fence(),
            observer,
            insert_semaphore: insert_semaphore(),
            pool: BatchPool::default(),
        }
    }

    /// Starts the copy of what is left to copy.
    fn copy(
        &self,
        tables: &[(Arc<Table<D>>, TableSpec)],
        state: &MirrorState,
        joining: bool,
        observer: &RetryObserver,
    ) -> Copying {
        let stop = self.stop.child_token();
        let stopped = stop.clone();
        let context = SnapshotContext {
            source: self.config.source.clone(),
            application_name: self.config.mirror.application_name(),
            destination: self.destination.clone(),
            store: self.store.clone(),
            parallelism: self.config.snapshot.parallelism,
            fence: self.config.mirror.fence(),
            stop,
            progress: Arc::clone(&self.progress),
            observer: observer.clone(),
        };
        let tables: Vec<_> = tables.iter().map(|(table, _)| Arc::clone(table)).collect();
        tables.iter().for_each(|table| table.begin_copy());
        let state = state.clone();
        let task = tokio::spawn(async move { snapshot::run(context, tables, &state, joining).await });
        Copying { task, stop: stopped }
    }

    /// Lets go of everything but the durable state, so that it is taken up from there. Gives the tables as they were.
    async fn let_go(&self) -> BTreeMap<TableId, Arc<Table<D>>> {
        if let Some(Copying { task, stop }) = self.copying.lock().await.take() {
            stop.cancel();
            if let Ok(Err(error)) = task.await {
                tracing::debug!(%error, "the copy was ended");
            }
        }
        std::mem::take(&mut *self.tables.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes everything up anew with the next session.
    async fn start_over(&self, error: Error) {
        let tables = self.let_go().await;
        if let Error::CatalogChanged { table, copy: true, .. } | Error::NullCame { table, .. } = &error
            && let Some(table) = tables.get(table)
        {
            let noted = tokio::select! {
                noted = table.update(|record| note(record, &error)) => noted,
                () = self.stop.cancelled() => return,
            };
            if let Err(error) = noted {
                // The stream meets the same change again.
                tracing::warn!(%error, "a table's change could not be noted; it will be met again");
            }
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(START_OVER_PAUSE) => {}
        }
    }

    /// Ends the stream once nothing is left to copy and everything then at the source is durable.
    fn until_caught_up(
        &self,
        tables: &[(Arc<Table<D>>, TableSpec)],
        fatal: Fatal,
        end: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<D> {
        let tables: Vec<_> = tables.iter().map(|(table, _)| Arc::clone(table)).collect();
        let (config, progress) = (Arc::clone(&self.config), Arc::clone(&self.progress));
        async move {
            while tables.iter().any(|table| !table.failed() && !table.snapshot_over()) {
                tokio::time::sleep(CAUGHT_UP_POLL).await;
            }
            let target = async {
                let session = Session::connect(&config.source, &config.mirror.application_name()).await?;
                catalog::current_wal_lsn(&session).await
            };
            match target.await {
                Ok(target) => {
                    while progress.durable_lsn() < target {
                        tokio::time::sleep(CAUGHT_UP_POLL).await;
                    }
                    end.cancel();
                }
                Err(error) => fatal.report(error.into()),
            }
        }
    }

    /// Asks now and then whether tables can join that could not; where one can, the session begins again with it.
    fn until_admitted(
        &self,
        mut refused: Refused,
        fatal: Fatal,
        end: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<D> {
        let (admission, progress) = (Arc::clone(&self.admission), Arc::clone(&self.progress));
        async move {
            while !refused.is_empty() {
                tokio::select! {
                    () = end.cancelled() => return,
                    () = tokio::time::sleep(ADMISSION_PAUSE) => {}
                }
                let verdict = admission.ask_again(refused.keys().cloned().collect()).await;
                if verdict.mirror.is_some() {
                    // The stream meets what keeps the whole Mirror from going on.
                    admission.set(refused.clone());
                    continue;
                }
                let (still, tables): (Refused, Refused) =
                    refused.into_iter().partition(|(id, _)| verdict.tables.contains_key(id));
                if !tables.is_empty() {
                    let tables = tables.into_keys().collect();
                    fatal.report(Error::TablesAdmitted { tables });
                    return;
                }
                refused = still
                    .into_keys()
                    .filter_map(|id| Some((id.clone(), verdict.tables.get(&id)?.clone())))
                    .collect();
                report_refused(&progress, &refused);
            }
        }
    }

    /// Records that a copy, which was all that was asked for, is done, and lets go of the slot.
    async fn finish(&self, state: MirrorState) -> Result<(), Error> {
        let application_name = self.config.mirror.application_name();
        let session = Session::connect(&self.config.source, &application_name).await?;
        if let Some(mut source) = state.source {
            source.finished = true;
            self.store.save_source(&source, None).await?;
        }
        self.release(&session).await
    }

    /// Lets go of slot and publication.
    async fn release(&self, session: &Session) -> Result<(), Error> {
        if resync::release(&self.config, session).await? {
            tracing::info!(mirror = self.config.mirror.name, "copy finished; slot and publication dropped");
        }
        Ok(())
    }
}

/// Shows why tables can't join.
fn report_refused(progress: &Progress, refused: &Refused) {
    for (table, failure) in refused {
        let shown = progress.table(table);
        if shown.state() != TableState::Failed {
            let why = shown.sentence(failure);
            tracing::error!(%table, reason = %failure.reason, error = %why, "table can't join; the others go on");
        }
        shown.set_failed(failure.clone());
    }
}

/// Notes what a table has to be taken up with.
fn note(record: &mut TableRecord, error: &Error) {
    match error {
        Error::CatalogChanged { why, copy: true, .. } => record.copy_anew = Some(why.clone()),
        Error::NullCame { attnum, .. } => {
            let columns = record.schema.columns.iter_mut();
            columns.filter(|column| column.attnum == *attnum).for_each(|column| column.nullable = true);
        }
        _ => {}
    }
}

/// Hands the end of the copy to the present stream, for as long as that is polled.
async fn report_copy(copying: &mut Option<Copying>, observer: RetryObserver, fatal: Fatal) -> Infallible {
    if let Some(Copying { task, .. }) = copying {
        let ended = task.await.unwrap_or_else(|error| Err(Error::Task(error.to_string())));
        *copying = None;
        match ended {
            Ok(()) => observer.report(),
            Err(Error::Stopped) => {}
            Err(error) => fatal.report(error),
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_got_on_when_it_moved_or_lived() {
        let at = Instant::now();
        let began = Began { at, durable: Lsn(5) };
        assert!(!began.got_on(at + Duration::from_secs(29), Lsn(5)));
        assert!(began.got_on(at, Lsn(6)));
        assert!(began.got_on(at + SETTLED, Lsn(5)));
    }
}
