//! Keeps a Mirror's sessions running: one after another, with pauses after faults.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{admission::Admission, suspended};
use crate::{
    model::{Lsn, MirrorPhase, Progress, ReplicatorConfig, SlotReport, SnapshotMode, TableId, lock},
    postgres::wire::SystemIdentity,
    replication::{
        Destination, Error, Policy, failure, policy,
        retry::{Answers, Backoff, SessionErrors},
        table::{Table, record::TableRecord, store::StateStore},
    },
};

/// How long a stalled Mirror waits before it checks again whether the cause is gone.
const STALLED_PAUSE: Duration = Duration::from_secs(30);

/// A stream that has lived so long was no failed try, even when nothing was sent.
const LIVED: Duration = Duration::from_secs(30);

/// How long inserts in flight may take after the order to stop.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// Keeps a source whose catalog changes all the time from being asked all the time.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Until when a Mirror runs.
pub struct RunUntil {
    /// Ends the run in order.
    pub stop: CancellationToken,
    /// Whether it also ends once everything that was at the source when the copy ended is durable at the
    /// destination.
    pub caught_up: bool,
}

/// Runs a Mirror. Transient errors are retried. What needs manual action shows in `progress` and is checked
/// again now and then.
///
/// # Errors
/// In a run that ends when it has caught up, what needs manual action. Any other ends only by `stop`.
pub async fn run<D: Destination>(
    config: Arc<ReplicatorConfig>,
    destination: D,
    admission: Admission,
    progress: Arc<Progress>,
    until: RunUntil,
) -> Result<(), Error> {
    let RunUntil { stop, caught_up } = until;
    if config.suspend {
        suspended::run(&config, &progress, &stop, caught_up).await;
        return Ok(());
    }
    let supervisor = Supervisor::new(config, destination, Arc::new(admission), Arc::clone(&progress), stop);
    let outcome = supervisor.keep_running(caught_up).await;
    progress.liveness().rest();
    outcome
}

/// Where a stream began, to know later whether it made progress: what always ends in the same fault must not
/// be tried again without a pause each time.
#[derive(Clone, Copy)]
pub(super) struct StreamStart {
    at: Instant,
    durable: Lsn,
}

impl StreamStart {
    /// A stream that begins now, with everything up to `durable` confirmed.
    pub(super) fn now(durable: Lsn) -> Self {
        StreamStart { at: Instant::now(), durable }
    }

    fn made_progress(self, now: Instant, durable: Lsn) -> bool {
        durable > self.durable || now.duration_since(self.at) >= LIVED
    }
}

/// The copy, which outlives connections.
pub(super) struct Copying {
    pub(super) task: JoinHandle<Result<(), Error>>,
    pub(super) stop: CancellationToken,
}

/// What outlives the sessions of one Mirror.
pub(super) struct Supervisor<D: Destination> {
    pub(super) config: Arc<ReplicatorConfig>,
    pub(super) destination: D,
    pub(super) admission: Arc<Admission>,
    pub(super) progress: Arc<Progress>,
    pub(super) store: StateStore<D>,
    pub(super) stop: CancellationToken,
    /// Cancelled when inserts in flight have had their time after `stop`.
    pub(super) abort: CancellationToken,
    /// Tables, once provisioned; they outlive connections.
    pub(super) tables: Mutex<BTreeMap<TableId, Arc<Table<D>>>>,
    pub(super) copying: tokio::sync::Mutex<Option<Copying>>,
    /// When the publication was last checked and did the source no harm.
    pub(super) last_checked: Arc<Mutex<Option<Instant>>>,
    /// The stream that has run since the last fault.
    pub(super) stream_start: Mutex<Option<StreamStart>>,
    /// The server that was connected to last.
    pub(super) server: Mutex<Option<SystemIdentity>>,
    /// What the destination has refused and accepted.
    pub(super) answers: Arc<Answers>,
}

impl<D: Destination> Supervisor<D> {
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
        Supervisor {
            store: StateStore::new(destination.clone(), &config.mirror.uid),
            config,
            destination,
            admission,
            progress,
            stop,
            abort,
            tables: Mutex::default(),
            copying: tokio::sync::Mutex::default(),
            last_checked: Arc::default(),
            stream_start: Mutex::default(),
            server: Mutex::default(),
            answers: Arc::default(),
        }
    }

    async fn keep_running(&self, until_caught_up: bool) -> Result<(), Error> {
        let ends = until_caught_up || self.config.snapshot.mode == SnapshotMode::InitialOnly;
        let (mut backoff, mut ends_before) = (Backoff::default(), SessionErrors::default());
        loop {
            self.progress.liveness().moved();
            let error = match self.run_session(ends).await {
                Ok(()) => {
                    self.progress.set_phase(MirrorPhase::Finished, None);
                    return Ok(());
                }
                Err(Error::Stopped) => return Ok(()),
                Err(error) => error,
            };
            if self.made_progress() {
                (backoff, ends_before) = (Backoff::default(), SessionErrors::default());
            }
            let error = ends_before.judge(error);
            if let Error::SlotInvalidated { wal_status, .. } = &error {
                let slot = self.progress.slot();
                self.progress.set_slot(SlotReport { wal_status: Some(wal_status.clone()), ..slot });
            }
            let (what, _) = policy(&error);
            if matches!(error, Error::SourceShuttingDown) {
                // The copy's sessions would keep a server that waits for them.
                self.stop_and_reset().await;
            }
            if what == Policy::Restart {
                tracing::info!(mirror = self.config.mirror.name, %error, "restarting the session from the records");
                self.restart_session(error).await;
                continue;
            }
            let transient = matches!(what, Policy::Retry | Policy::SlowDown);
            let pause = if transient { backoff.next(what) } else { STALLED_PAUSE };
            self.report(&error, transient, pause);
            if !transient && until_caught_up {
                return Err(error);
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether the last stream made progress. Each stream counts once.
    fn made_progress(&self) -> bool {
        let began = lock(&self.stream_start).take();
        began.is_some_and(|began| began.made_progress(Instant::now(), self.progress.durable_lsn()))
    }

    /// Shows what ended a session, in the status and the log.
    fn report(&self, error: &Error, transient: bool, pause: Duration) {
        let (reason, failure) = (policy(error).1, failure(error));
        let why = self.progress.sentence(&failure);
        let phase = if transient { MirrorPhase::Retrying } else { MirrorPhase::Stalled };
        self.progress.set_phase(phase, Some(failure));
        if transient {
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(mirror = self.config.mirror.name, %reason, error = %why, pause_ms, "will try again");
        } else {
            tracing::error!(mirror = self.config.mirror.name, %reason, error = %why, "stalled: manual action required");
        }
    }

    /// Stops the copy and forgets everything but the durable state, from which the next session restores it.
    /// Gives the tables as they were.
    pub(super) async fn stop_and_reset(&self) -> BTreeMap<TableId, Arc<Table<D>>> {
        if let Some(Copying { task, stop }) = self.copying.lock().await.take() {
            stop.cancel();
            if let Ok(Err(error)) = task.await {
                tracing::debug!(%error, "the copy was ended");
            }
        }
        std::mem::take(&mut *lock(&self.tables))
    }

    /// Has the next session restore everything from the durable state.
    async fn restart_session(&self, error: Error) {
        let tables = self.stop_and_reset().await;
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
            () = tokio::time::sleep(RESTART_PAUSE) => {}
        }
    }
}

/// Notes what the next session has to do about a table.
fn note(record: &mut TableRecord, error: &Error) {
    match error {
        Error::CatalogChanged { why, copy: true, .. } => record.resync_reason = Some(why.clone()),
        Error::NullCame { attnum, .. } => {
            let columns = record.schema.columns.iter_mut();
            columns.filter(|column| column.attnum == *attnum).for_each(|column| column.nullable = true);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_made_progress_when_it_confirmed_or_lived() {
        let at = Instant::now();
        let began = StreamStart { at, durable: Lsn(5) };
        assert!(!began.made_progress(at + Duration::from_secs(29), Lsn(5)));
        assert!(began.made_progress(at, Lsn(6)));
        assert!(began.made_progress(at + LIVED, Lsn(5)));
    }
}
