//! Writes the position record while a stream runs.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::position::{Confirmable, PositionRecord};
use crate::replication::{
    Destination, Error, Policy, policy,
    retry::Backoff,
    stream::{Checkpoint, Commit, Fatal, Mark},
    table::store::StateStore,
};

/// Shortest time between two records while transactions arrive.
const BUSY_EVERY: Duration = Duration::from_secs(2);

/// Shortest time between two records while nothing of ours is in the log that passes.
const IDLE_EVERY: Duration = Duration::from_secs(10);

/// How often the record is read while nothing is written.
const CHECK_EVERY: Duration = Duration::from_secs(6);

/// How often it is checked whether a record is due.
const TICK: Duration = Duration::from_millis(100);

/// How long the last record of a stream may take.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// How often a record that is lower than what was written is read again: the answer may be that of a replica
/// that is behind.
const READS: u32 = 4;

const READ_AGAIN: Duration = Duration::from_millis(500);

/// Records positions while a stream runs.
pub(in crate::replication) struct Recorder<D: Destination> {
    pub(in crate::replication) store: StateStore<D>,
    pub(in crate::replication) confirmable: Arc<Confirmable>,
    /// What is on record.
    pub(in crate::replication) record: PositionRecord,
    /// What had happened when that was written.
    pub(in crate::replication) noted: Activity,
}

/// What grows while this process writes anything to the destination. The position is recorded again when it
/// has: a destination that forgets what was written then forgets a record too, however little of it is
/// confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::replication) struct Activity {
    received: Option<Commit>,
    records_begun: u64,
}

impl<D: Destination> Recorder<D> {
    /// Records what `checkpoint` confirms, until `end`. What stops the Mirror goes to `fatal`.
    pub(in crate::replication) async fn run(
        mut self,
        checkpoint: Arc<Checkpoint>,
        fatal: Fatal,
        end: CancellationToken,
    ) -> Self {
        let confirmable = Arc::clone(&self.confirmable);
        let mut backoff = Backoff::default();
        let mut pause = TICK;
        // The first transaction is recorded without a pause.
        let (mut written, mut checked) = (None::<Instant>, Instant::now());
        self.noted = self.activity(&checkpoint);
        let mut unnoted = None::<Instant>;
        loop {
            tokio::select! {
                () = end.cancelled() => return self,
                () = confirmable.hurry.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let mark = checkpoint.confirmed();
            let activity = self.activity(&checkpoint);
            unnoted = (activity != self.noted).then(|| unnoted.unwrap_or_else(Instant::now));
            let elapsed = |moment: Option<Instant>| moment.map(|moment| moment.elapsed());
            let due = self.is_due(mark, elapsed(written), elapsed(unnoted));
            let done = tokio::select! {
                () = end.cancelled() => return self,
                done = self.step(due.then_some((mark, activity)), checked.elapsed()) => done,
            };
            match done {
                Ok(false) => continue,
                Ok(true) => {
                    (backoff, pause) = (Backoff::default(), TICK);
                    checked = Instant::now();
                    if due {
                        (written, unnoted) = (Some(checked), None);
                    }
                }
                Err(error) => match policy(&error).0 {
                    // Until it has passed the source hears nothing new.
                    what @ (Policy::Retry | Policy::SlowDown) => {
                        tracing::debug!(%error, "the position could not be recorded");
                        pause = backoff.next(what);
                    }
                    _ => {
                        fatal.report(error);
                        return self;
                    }
                },
            }
        }
    }

    /// Records where a stream has ended.
    pub(in crate::replication) async fn finish(&mut self, mark: Mark) {
        if mark.lsn <= self.record.lsn {
            return;
        }
        let next = Some((mark, self.noted));
        match tokio::time::timeout(FINISH_WITHIN, self.step(next, Duration::ZERO)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last position could not be recorded; it is sent again")
            }
            Err(_) => tracing::warn!("the destination did not answer in time to record the last position"),
        }
    }

    fn activity(&self, checkpoint: &Checkpoint) -> Activity {
        Activity { received: checkpoint.last_commit(), records_begun: self.store.records_begun() }
    }

    /// Whether to record, `since` the last record was written, and with activity `unnoted` in it for that
    /// long.
    fn is_due(&self, mark: Mark, since: Option<Duration>, unnoted: Option<Duration>) -> bool {
        let awaited = self.confirmable.awaited.load(Relaxed) > self.record.lsn.0;
        let pace = match mark.commit == self.record.commit {
            _ if awaited => Duration::ZERO,
            false => BUSY_EVERY,
            true => IDLE_EVERY,
        };
        let moved = mark.lsn > self.record.lsn && since.is_none_or(|since| since >= pace);
        moved || unnoted.is_some_and(|unnoted| unnoted >= BUSY_EVERY)
    }

    /// Compares the record with what was written last, when that is due, and replaces it. Says whether there
    /// was anything to do.
    async fn step(&mut self, next: Option<(Mark, Activity)>, unchecked: Duration) -> Result<bool, Error> {
        if next.is_none() && unchecked < CHECK_EVERY {
            return Ok(false);
        }
        self.check().await?;
        if let Some((mark, activity)) = next {
            let record = self.record.advanced(mark);
            self.store.save_position(&record).await?;
            self.confirmable.recorded.fetch_max(record.lsn.0, Relaxed);
            self.record = record;
            // The position is a record itself.
            self.noted = Activity { records_begun: activity.records_begun + 1, ..activity };
        }
        Ok(true)
    }

    /// # Errors
    /// [`Error::Replaced`], [`Error::DestinationRestored`], [`Error::RecordsForgotten`].
    async fn check(&self) -> Result<(), Error> {
        let mut reads = 0;
        loop {
            let found = self.store.load_position().await?.map(|(found, newest)| (found.lsn, newest));
            // Of two tries to write a record the first may have reached the destination too.
            let reached = found.is_some_and(|(found, _)| found >= self.record.lsn);
            if reached && found.is_some_and(|(_, newest)| newest) {
                return Ok(());
            }
            reads += 1;
            if reads == READS && reached {
                return Err(Error::RecordsForgotten);
            }
            if reads == READS {
                let found = found.map(|(found, _)| found);
                return Err(Error::DestinationRestored { recorded: self.record.lsn, found });
            }
            tokio::time::sleep(READ_AGAIN).await;
        }
    }
}
