//! Up to where the source may hear that everything is durable, on record at the destination before it does.
//!
//! Slot, source and destination each remember a position of their own, and each can be changed behind the
//! others' back: the slot read by somebody else, moved or made again, the source or the destination restored
//! from a backup. The record shows it:
//! - A slot beyond the record has given changes to somebody else, or the destination has forgotten some.
//! - A log that ends before the record has lost what the destination has. Where it has grown past the record
//!   again, the last transaction on record, which the slot then sends once more, is another one
//!   ([`Witness`]).
//! - A record that is lower than what was written, or missing, is that of a restored destination.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    model::Lsn,
    postgres::slot::SlotInfo,
    replication::{
        Error,
        stream::{Commit, Mark},
    },
};

/// How far the source may have heard that rows are durable.
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
    /// Where the newest transaction was committed of which the destination had rows, though nothing of it was
    /// confirmed, when the source was started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Lsn>,
}

impl PositionRecord {
    /// Compares slot and source with the record.
    ///
    /// # Errors
    /// [`Error::SlotAdvanced`] and [`Error::SourceWentBack`].
    pub(in crate::replication) fn check(
        &self,
        slot: &SlotInfo,
        timeline: u32,
        standby: bool,
    ) -> Result<(), Error> {
        let confirmed = slot.confirmed_flush_lsn.unwrap_or_default();
        self.check_slot(&slot.name, confirmed)?;
        // What a standby has replayed may be less after its restart; it comes to all of it again.
        let reached = self.unconfirmed.map_or(self.lsn, |at| at.max(self.lsn));
        if !standby && timeline == self.timeline && slot.current_lsn < reached {
            return Err(Error::SourceWentBack {
                recorded: reached,
                found: format!("its log ends at {}", slot.current_lsn),
            });
        }
        Ok(())
    }

    fn check_slot(&self, slot: &str, confirmed: Lsn) -> Result<(), Error> {
        check_confirmed(slot, self.lsn, confirmed)
    }

    /// The transactions that a stream from `start` has to bring again.
    pub(in crate::replication) fn witness(
        &self,
        start: Lsn,
        timeline: u32,
        publications: &[String],
    ) -> Witness {
        let comes_again =
            |at: Lsn| at >= start && self.timeline == timeline && self.publications == publications;
        Witness {
            awaited: self.commit.filter(|commit| comes_again(commit.lsn)),
            unconfirmed: self.unconfirmed.filter(|at| comes_again(*at)),
        }
    }

    /// The record that follows this one when everything up to `next` is durable, as far as that is further.
    pub(super) fn advanced(&self, next: Mark) -> PositionRecord {
        let Mark { lsn, commit } = next;
        match lsn > self.lsn {
            true => PositionRecord {
                lsn,
                commit,
                unconfirmed: self.unconfirmed.filter(|at| *at >= lsn),
                ..self.clone()
            },
            false => self.clone(),
        }
    }
}

fn check_confirmed(slot: &str, recorded: Lsn, confirmed: Lsn) -> Result<(), Error> {
    if confirmed > recorded {
        return Err(Error::SlotAdvanced { slot: slot.to_owned(), recorded, confirmed });
    }
    Ok(())
}

/// The last transaction on record, and the last of which rows are at the destination, as long as the stream
/// has to come past them.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::replication) struct Witness {
    awaited: Option<Commit>,
    unconfirmed: Option<Lsn>,
}

impl Witness {
    /// Compares a transaction that begins in the stream.
    ///
    /// # Errors
    /// [`Error::SourceWentBack`] when there is another transaction at that place, or none.
    #[inline]
    pub(in crate::replication) fn meet(&mut self, commit: Commit) -> Result<(), Error> {
        match self.unconfirmed {
            Some(at) if commit.lsn > at => return Err(unconfirmed_missed(at)),
            Some(at) if commit.lsn == at => self.unconfirmed = None,
            _ => {}
        }
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
    pub(in crate::replication) fn pass(&self, lsn: Lsn) -> Result<(), Error> {
        if let Some(at) = self.unconfirmed.filter(|at| lsn > *at) {
            return Err(unconfirmed_missed(at));
        }
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

fn unconfirmed_missed(at: Lsn) -> Error {
    let found =
        "the destination has rows of a transaction that was committed there before and is not there any more";
    Error::SourceWentBack { recorded: at, found: found.to_owned() }
}

/// What the source may hear, shared by those who record, those who report to the source and those who check
/// the slot.
#[derive(Debug)]
pub(in crate::replication) struct Confirmable {
    pub(super) recorded: AtomicU64,
    /// The source waits to hear of this position.
    pub(super) awaited: AtomicU64,
    pub(super) hurry: Notify,
}

impl Confirmable {
    pub(in crate::replication) fn new(recorded: Lsn) -> Arc<Self> {
        Arc::new(Confirmable {
            recorded: AtomicU64::new(recorded.0),
            awaited: AtomicU64::new(0),
            hurry: Notify::new(),
        })
    }

    /// The position on record.
    pub(in crate::replication) fn recorded(&self) -> Lsn {
        Lsn(self.recorded.load(Relaxed))
    }

    /// The source asks for an answer, as it does before it shuts down: it waits until all that it sent is
    /// confirmed.
    pub(in crate::replication) fn await_up_to(&self, sent: Lsn) {
        self.awaited.fetch_max(sent.0, Relaxed);
        self.hurry.notify_one();
    }

    /// Refuses a slot that has got beyond the record.
    ///
    /// # Errors
    /// [`Error::SlotAdvanced`]
    pub(in crate::replication) fn check(&self, slot: &SlotInfo) -> Result<(), Error> {
        check_confirmed(&slot.name, self.recorded(), slot.confirmed_flush_lsn.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault::Remedy, replication::failure};

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
            unconfirmed: None,
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
            record().check(&slot(confirmed, current), timeline, standby).map_err(|error| {
                let failure = failure(&error);
                assert_eq!(failure.remedies, [Remedy::resync_all()]);
                failure.message
            })
        };
        for confirmed in [0, 0x40, 0x60] {
            assert_eq!(check(confirmed, 0x60, 1, false), Ok(()));
        }
        let advanced = check(0x61, 0x80, 1, false).unwrap_err();
        assert!(advanced.contains("from 0/60 to 0/61"), "{advanced}");
        let back = check(0x40, 0x58, 1, false).unwrap_err();
        assert!(back.contains("its log ends at 0/58"), "{back}");
        assert_eq!(check(0x40, 0x58, 2, false), Ok(()), "a promoted standby is compared otherwise");
        assert_eq!(check(0x40, 0x58, 1, true), Ok(()), "a standby that replays once more");
    }

    #[test]
    fn what_was_never_confirmed_shows_a_source_that_went_back_too() {
        let ahead = PositionRecord { unconfirmed: Some(Lsn(0x90)), ..record() };
        let check = |current, timeline, standby| ahead.check(&slot(0x40, current), timeline, standby);
        assert!(
            check(0x90, 1, false).is_ok() && check(0x88, 2, false).is_ok() && check(0x88, 1, true).is_ok()
        );
        let back = check(0x88, 1, false).unwrap_err().to_string();
        assert!(back.contains("come to 0/90") && back.contains("its log ends at 0/88"), "{back}");
        let publications = ["p".to_owned()];
        let witness = |start| ahead.witness(Lsn(start), 1, &publications);
        let mut met = witness(0x58);
        assert!(met.meet(commit(0x80, 8)).is_ok() && met.pass(Lsn(0x90)).is_ok());
        assert!(met.meet(commit(0x90, 9)).is_ok() && met.pass(Lsn(0xa0)).is_ok(), "it was met");
        assert!(witness(0x58).meet(commit(0x98, 9)).is_err() && witness(0x58).pass(Lsn(0x98)).is_err());
        assert!(witness(0x98).pass(Lsn(0xa0)).is_ok(), "the stream begins behind it");
        assert!(ahead.witness(Lsn(0x58), 2, &publications).pass(Lsn(0x98)).is_ok());
        let next = |lsn| ahead.advanced(Mark { lsn: Lsn(lsn), commit: None });
        assert_eq!(next(0x50), ahead, "a stream that begins before the record");
        assert_eq!((next(0x90).lsn, next(0x90).unconfirmed), (Lsn(0x90), Some(Lsn(0x90))));
        assert_eq!(next(0x98).unconfirmed, None);
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
        // It does not come where the stream begins behind it, or with other publications, or on another
        // timeline.
        assert!(witness(0x51).pass(Lsn(0x70)).is_ok());
        assert!(record().witness(Lsn(0x40), 1, &["p".into(), "q".into()]).pass(Lsn(0x70)).is_ok());
        assert!(record().witness(Lsn(0x40), 2, &publications).pass(Lsn(0x70)).is_ok());
    }
}
