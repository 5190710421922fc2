//! Up to where the source has been told that everything is durable, on record at the destination before the source hears it.
//!
//! Slot, source and destination each remember a position of their own, and each can be changed behind the others' back: the slot read
//! by somebody else, moved or made again, the source or the destination restored from a backup. The record shows it:
//! - A slot beyond the record has given changes to somebody else, or the destination has forgotten some.
//! - A log that ends before the record has lost what the destination has. Where it has grown past the record again, the last
//!   transaction on record, which the slot then sends once more, is another one ([`Witness`]).
//! - A record that is lower than what was written, or missing, is that of a restored destination.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Destination, Error, Policy,
    backoff::Backoff,
    checkpoint::{Checkpoint, Commit, Mark},
    fatal::Fatal,
    policy,
    state::StateStore,
};
use crate::{model::Lsn, postgres::slot::SlotInfo};

/// Shortest time between two records while transactions arrive.
const BUSY_EVERY: Duration = Duration::from_secs(2);

/// Shortest time between two records while nothing of ours is in the log that passes.
const IDLE_EVERY: Duration = Duration::from_secs(10);

/// How often the record is read while nothing is written.
const LOOK_EVERY: Duration = Duration::from_secs(6);

/// How often it is seen whether a record is due.
const TICK: Duration = Duration::from_millis(100);

/// How long the last record of a stream may take.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// How often a record that is lower than what was written is read again: the answer may be that of a replica that is behind.
const LOOKS: u32 = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How far the source has been told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PositionRecord {
    /// Everything committed up to here is durable; zero while the slot is being made.
    pub lsn: Lsn,
    /// The last transaction up to there that the source sent.
    #[serde(default)]
    pub commit: Option<Commit>,
    /// The source's system identifier.
    pub system_identifier: String,
    /// The source's timeline.
    pub timeline: u32,
    /// The slot.
    pub slot: String,
    /// The publications that were read: others send other transactions.
    pub publications: Vec<String>,
}

impl PositionRecord {
    /// Compares slot and source with the record.
    ///
    /// # Errors
    /// [`Error::SlotAdvanced`] and [`Error::SourceWentBack`].
    pub(super) fn check(&self, slot: &SlotInfo, timeline: u32, standby: bool) -> Result<(), Error> {
        let confirmed = slot.confirmed_flush_lsn.unwrap_or_default();
        self.check_slot(&slot.name, confirmed)?;
        // What a standby has replayed may be less after its restart; it comes to all of it again.
        if !standby && timeline == self.timeline && slot.current_lsn < self.lsn {
            return Err(Error::SourceWentBack {
                recorded: self.lsn,
                found: format!("its log ends at {}", slot.current_lsn),
            });
        }
        Ok(())
    }

    fn check_slot(&self, slot: &str, confirmed: Lsn) -> Result<(), Error> {
        check_confirmed(slot, self.lsn, confirmed)
    }

    /// The transaction that a stream from `start` has to bring again.
    pub(super) fn witness(&self, start: Lsn, timeline: u32, publications: &[String]) -> Witness {
        let comes_again = |commit: &Commit| {
            commit.lsn >= start && self.timeline == timeline && self.publications == publications
        };
        Witness { awaited: self.commit.filter(comes_again) }
    }
}

fn check_confirmed(slot: &str, recorded: Lsn, confirmed: Lsn) -> Result<(), Error> {
    if confirmed > recorded {
        return Err(Error::SlotAdvanced { slot: slot.to_owned(), recorded, confirmed });
    }
    Ok(())
}

/// The last transaction on record, as long as the stream has to come past it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Witness {
    awaited: Option<Commit>,
}

impl Witness {
    /// Compares a transaction that begins in the stream.
    ///
    /// # Errors
    /// [`Error::SourceWentBack`] when there is another transaction at that place, or none.
    #[inline]
    pub(super) fn meet(&mut self, commit: Commit) -> Result<(), Error> {
        match self.awaited {
            Some(awaited) if commit == awaited => {
                self.awaited = None;
                Ok(())
            }
            Some(awaited) if commit.lsn >= awaited.lsn => Err(missed(awaited)),
            _ => Ok(()),
        }
    }

    /// Everything of ours up to `lsn` has come.
    ///
    /// # Errors
    /// [`Error::SourceWentBack`] when the transaction has not.
    pub(super) fn pass(&self, lsn: Lsn) -> Result<(), Error> {
        match self.awaited {
            Some(awaited) if lsn > awaited.lsn => Err(missed(awaited)),
            _ => Ok(()),
        }
    }
}

fn missed(commit: Commit) -> Error {
    let found = format!("transaction {} was committed there before and is not there any more", commit.xid);
    Error::SourceWentBack { recorded: commit.lsn, found }
}

/// What the source may hear, shared by those who record, those who report to the source and those who look at the slot.
#[derive(Debug)]
pub(super) struct Confirmable {
    recorded: AtomicU64,
    /// The source waits to hear of this position.
    awaited: AtomicU64,
    hurry: Notify,
}

impl Confirmable {
    pub(super) fn new(recorded: Lsn) -> Arc<Self> {
        Arc::new(Confirmable {
            recorded: AtomicU64::new(recorded.0),
            awaited: AtomicU64::new(0),
            hurry: Notify::new(),
        })
    }

    /// The position on record.
    pub(super) fn recorded(&self) -> Lsn {
        Lsn(self.recorded.load(Relaxed))
    }

    /// The source asks for an answer, as it does before it shuts down: it waits until all that it sent is confirmed.
    pub(super) fn await_up_to(&self, sent: Lsn) {
        self.awaited.fetch_max(sent.0, Relaxed);
        self.hurry.notify_one();
    }

    /// Refuses a slot that has got beyond the record.
    ///
    /// # Errors
    /// [`Error::SlotAdvanced`]
    pub(super) fn check(&self, slot: &SlotInfo) -> Result<(), Error> {
        check_confirmed(&slot.name, self.recorded(), slot.confirmed_flush_lsn.unwrap_or_default())
    }
}

/// Records positions while a stream runs.
pub(super) struct Recorder<D: Destination> {
    pub(super) store: StateStore<D>,
    pub(super) confirmable: Arc<Confirmable>,
    /// What is on record.
    pub(super) record: PositionRecord,
}

impl<D: Destination> Recorder<D> {
    /// Records what `checkpoint` confirms, until `end`. What stops the Mirror goes to `fatal`.
    pub(super) async fn run(
        mut self,
        checkpoint: Arc<Checkpoint>,
        fatal: Fatal,
        end: CancellationToken,
    ) -> Self {
        let confirmable = Arc::clone(&self.confirmable);
        let mut backoff = Backoff::default();
        let mut pause = TICK;
        // The first transaction is recorded at once.
        let (mut written, mut looked) = (None::<Instant>, Instant::now());
        loop {
            tokio::select! {
                () = end.cancelled() => return self,
                () = confirmable.hurry.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let mark = checkpoint.confirmed();
            let due = self.is_due(mark, written.map(|written| written.elapsed()));
            let done = tokio::select! {
                () = end.cancelled() => return self,
                done = self.step(due.then_some(mark), looked.elapsed()) => done,
            };
            match done {
                Ok(false) => continue,
                Ok(true) => {
                    (backoff, pause) = (Backoff::default(), TICK);
                    looked = Instant::now();
                    if due {
                        written = Some(looked);
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
    pub(super) async fn finish(&mut self, mark: Mark) {
        if mark.lsn <= self.record.lsn {
            return;
        }
        match tokio::time::timeout(FINISH_WITHIN, self.step(Some(mark), Duration::ZERO)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last position could not be recorded; it is sent again")
            }
            Err(_) => tracing::warn!("the destination did not answer in time to record the last position"),
        }
    }

    fn is_due(&self, mark: Mark, since: Option<Duration>) -> bool {
        let awaited = self.confirmable.awaited.load(Relaxed) > self.record.lsn.0;
        let pace = match mark.commit == self.record.commit {
            _ if awaited => Duration::ZERO,
            false => BUSY_EVERY,
            true => IDLE_EVERY,
        };
        mark.lsn > self.record.lsn && since.is_none_or(|since| since >= pace)
    }

    /// Compares the record with what was written last, when that is due, and replaces it. Says whether there was anything to do.
    async fn step(&mut self, next: Option<Mark>, looked: Duration) -> Result<bool, Error> {
        if next.is_none() && looked < LOOK_EVERY {
            return Ok(false);
        }
        self.look().await?;
        if let Some(Mark { lsn, commit }) = next {
            let record = PositionRecord { lsn, commit, ..self.record.clone() };
            self.store.save_position(&record).await?;
            self.record = record;
            self.confirmable.recorded.fetch_max(lsn.0, Relaxed);
        }
        Ok(true)
    }

    /// # Errors
    /// [`Error::Replaced`], [`Error::DestinationRestored`].
    async fn look(&self) -> Result<(), Error> {
        let mut looks = 0;
        loop {
            let found = self.store.load_position().await?.map(|found| found.lsn);
            // Of two tries to write a record the first may have reached the destination too.
            if found.is_some_and(|found| found >= self.record.lsn) {
                return Ok(());
            }
            looks += 1;
            if looks == LOOKS {
                return Err(Error::DestinationRestored { recorded: self.record.lsn, found });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(lsn: u64, xid: u32) -> Commit {
        Commit { lsn: Lsn(lsn), xid, at: 9 }
    }

    fn record() -> PositionRecord {
        PositionRecord {
            lsn: Lsn(0x60),
            commit: Some(commit(0x50, 7)),
            system_identifier: "7".into(),
            timeline: 1,
            slot: "s".into(),
            publications: vec!["p".into()],
        }
    }

    fn slot(confirmed: u64, current: u64) -> SlotInfo {
        SlotInfo {
            name: "s".into(),
            plugin: None,
            database: None,
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: Some(Lsn(confirmed)),
            wal_status: None,
            invalidation_reason: None,
            safe_wal_size: None,
            retained_bytes: None,
            current_lsn: Lsn(current),
            catalog_xmin_age: None,
            inactive_since: None,
        }
    }

    #[test]
    fn a_slot_may_be_behind_the_record_and_a_source_may_not() {
        let check = |confirmed, current, timeline, standby| {
            record().check(&slot(confirmed, current), timeline, standby).map_err(|error| error.to_string())
        };
        for confirmed in [0, 0x40, 0x60] {
            assert_eq!(check(confirmed, 0x60, 1, false), Ok(()));
        }
        let advanced = check(0x61, 0x80, 1, false).unwrap_err();
        assert!(
            advanced.contains("from 0/60 to 0/61") && advanced.contains("walferry.dev/resync"),
            "{advanced}"
        );
        let back = check(0x40, 0x58, 1, false).unwrap_err();
        assert!(back.contains("its log ends at 0/58") && back.contains("walferry.dev/resync"), "{back}");
        assert_eq!(check(0x40, 0x58, 2, false), Ok(()), "a promoted standby is compared otherwise");
        assert_eq!(check(0x40, 0x58, 1, true), Ok(()), "a standby that replays once more");
    }

    #[test]
    fn the_last_transaction_on_record_comes_again() {
        let publications = ["p".to_owned()];
        let witness = |start| record().witness(Lsn(start), 1, &publications);
        let mut met = witness(0x40);
        assert!(met.meet(commit(0x48, 6)).is_ok() && met.pass(Lsn(0x50)).is_ok());
        assert!(met.meet(commit(0x50, 7)).is_ok());
        assert!(met.meet(commit(0x58, 8)).is_ok() && met.pass(Lsn(0x70)).is_ok(), "it was met");
        // Another one there, none there, and none at all.
        assert!(witness(0x40).meet(commit(0x50, 9)).is_err());
        assert!(witness(0x40).meet(commit(0x58, 8)).is_err());
        assert!(witness(0x50).pass(Lsn(0x58)).is_err());
        // It does not come where the stream begins behind it, or with other publications, or on another timeline.
        assert!(witness(0x51).pass(Lsn(0x70)).is_ok());
        assert!(record().witness(Lsn(0x40), 1, &["p".into(), "q".into()]).pass(Lsn(0x70)).is_ok());
        assert!(record().witness(Lsn(0x40), 2, &publications).pass(Lsn(0x70)).is_ok());
    }
}
