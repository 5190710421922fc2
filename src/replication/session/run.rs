//! One session: the stream, the copy, and what runs beside them until the stream ends.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    start::{SessionTables, Started, StreamPosition},
    supervisor::{Copying, StreamStart, Supervisor},
};
use crate::{
    model::{SnapshotMode, TableId, lock},
    postgres::{catalog, session::Session},
    replication::{
        Destination, Error, Refused,
        monitor::{source::SourceMonitor, target::TargetMonitor},
        retry::RetryObserver,
        snapshot::{self, SnapshotContext},
        stream::{
            Applier, BatchPool, Checkpoint, Fatal, Inserter, RowFetcher, StreamContext, StreamSession,
            insert_semaphore,
        },
        table::{Sweeper, record::TableRecord, store::MirrorState},
    },
};

/// How often the end of a run that waits for the source's present position is checked.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(10);

/// What runs beside a stream.
struct Companions {
    monitor: JoinHandle<()>,
    target_monitor: JoinHandle<()>,
    sweeper: JoinHandle<()>,
    admitter: JoinHandle<()>,
    finisher: Option<JoinHandle<()>>,
    /// The monitor outlives the stream's `end`: the last inserts may take long, and the source may have to
    /// shut down meanwhile.
    over: CancellationToken,
}

impl Companions {
    async fn end(self) {
        self.over.cancel();
        self.admitter.abort();
        self.target_monitor.abort();
        self.sweeper.abort();
        // What they were writing must not be written after what comes next.
        drop(self.monitor.await);
        drop(self.target_monitor.await);
        if let Some(finisher) = self.finisher {
            finisher.abort();
        }
    }
}

impl<D: Destination> Supervisor<D> {
    /// One connection's life, from provisioning to its end.
    pub(super) async fn run_session(&self, ends: bool) -> Result<(), Error> {
        // Making a slot can wait for hours, for transactions that run at the source.
        let outside = self.progress.liveness().outside();
        let started = tokio::select! {
            started = self.start() => started?,
            () = self.stop.cancelled() => return Err(Error::Stopped),
        };
        let Some(started) = started else { return Ok(()) };
        drop(outside);
        let Started { session, state, slot_predates_publication, refused, tables, monitor, .. } = started;
        let Started { stream, reader, writer, binary, .. } = started;
        let fatal = Fatal::default();
        *lock(&self.stream_start) = Some(StreamStart::now(self.progress.durable_lsn()));
        let (observer, check_requested) = (monitor.observer.clone(), Arc::clone(&monitor.check_requested));
        observer.report();
        let mut copying = self.copying.lock().await;
        // A copy outlives connections; one that has ended may have ended by a fault.
        if copying.as_ref().is_none_or(|copying| copying.task.is_finished()) {
            *copying = Some(self.copy(&tables, &state, slot_predates_publication, &observer));
        }
        let copied = report_copy(&mut copying, observer.clone(), fatal.clone());
        let (end, abort) = (self.stop.child_token(), self.abort.child_token());
        let companions = self.companions((monitor, session), &tables, refused, (&fatal, &end), ends);
        let StreamPosition { start, recorder, witness } = stream;
        let inserter = self.inserter(fatal.clone(), observer, abort.clone());
        let checkpoint = Checkpoint::new(start);
        let applier = Applier::new(tables, Arc::new(inserter), checkpoint, witness, self.config.batch);
        let context = Arc::new(StreamContext {
            source: self.config.source.clone(),
            application_name: self.config.mirror.application_name(),
            progress: Arc::clone(&self.progress),
            binary,
            catalog: tokio::sync::Mutex::default(),
            look: check_requested,
            confirmable: Arc::clone(&recorder.confirmable),
            stop: end.clone(),
            abort,
            fatal,
        });
        let stream = StreamSession { context, applier };
        let outcome = tokio::select! {
            outcome = stream.run(reader, writer, recorder) => outcome,
            never = copied => match never {},
        };
        end.cancel();
        companions.end().await;
        outcome.map_err(|error| Error::of_stream(error, self.tables_with_filter()))?;
        self.finish_after_stream(state).await
    }

    /// What follows a stream that has ended in order.
    async fn finish_after_stream(&self, state: MirrorState) -> Result<(), Error> {
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

    /// Starts what runs beside the stream, until `end`.
    fn companions(
        &self,
        (monitor, session): (SourceMonitor<D>, Session),
        tables: &SessionTables<D>,
        refused: Refused,
        (fatal, end): (&Fatal, &CancellationToken),
        ends: bool,
    ) -> Companions {
        let observer = monitor.observer.clone();
        let shared = || tables.iter().map(|(table, _)| Arc::clone(table)).collect();
        let over = CancellationToken::new();
        let target_monitor = TargetMonitor {
            destination: self.destination.clone(),
            uid: self.config.mirror.uid.clone(),
            tables: shared(),
            observer: observer.clone(),
        };
        let sweeper = Sweeper {
            destination: self.destination.clone(),
            tables: shared(),
            fence: self.config.mirror.fence(),
            observer,
            stop: end.clone(),
        };
        let admitted = Arc::clone(&self.admission).until_admitted(
            refused,
            Arc::clone(&self.progress),
            fatal.clone(),
            end.clone(),
        );
        Companions {
            monitor: tokio::spawn(monitor.run(session, fatal.clone(), end.clone(), over.clone())),
            target_monitor: tokio::spawn(target_monitor.run(fatal.clone(), end.clone())),
            sweeper: tokio::spawn(sweeper.run()),
            admitter: tokio::spawn(admitted),
            finisher: ends.then(|| tokio::spawn(self.until_caught_up(tables, fatal.clone(), end.clone()))),
            over,
        }
    }

    /// The tables with a row filter, the Mirror's or one that the publication was given.
    fn tables_with_filter(&self) -> Vec<TableId> {
        let tables = lock(&self.tables);
        let has_filter = |record: TableRecord| {
            record.spec.row_filter.is_some()
                || record.published.is_some_and(|found| found.row_filter.is_some())
        };
        tables.iter().filter(|(_, table)| has_filter(table.record())).map(|(id, _)| id.clone()).collect()
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
        tables: &SessionTables<D>,
        state: &MirrorState,
        slot_predates_publication: bool,
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
        let task =
            tokio::spawn(
                async move { snapshot::run(context, tables, &state, slot_predates_publication).await },
            );
        Copying { task, stop: stopped }
    }

    /// Ends the stream once nothing is left to copy and everything then at the source is durable.
    fn until_caught_up(
        &self,
        tables: &SessionTables<D>,
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

    /// Records that a copy, which was all that was asked for, is done, and drops the slot.
    async fn finish(&self, state: MirrorState) -> Result<(), Error> {
        let application_name = self.config.mirror.application_name();
        let session = Session::connect(&self.config.source, &application_name).await?;
        if let Some(mut source) = state.source {
            source.finished = true;
            self.store.save_source(&source, None).await?;
        }
        self.release(&session).await
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
