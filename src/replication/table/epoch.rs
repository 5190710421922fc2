//! Which process of a Mirror writes its records.
//!
//! A process claims an epoch before it writes anything, above that of every record there is, and its records
//! have versions of that epoch (see [`StateVersion`]). So what a process that was replaced writes late, or
//! what a queue on the way still holds of it, never replaces a record of its successor.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    model::lock,
    replication::{Error, StateRows, StateVersion},
};

/// The record that claims an epoch; it is an epoch's first.
pub(in crate::replication) const EPOCH_ITEM: &str = "epoch";

/// What the claim of an epoch says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::replication) struct EpochRecord {
    /// The random name of the process that claimed it.
    pub(in crate::replication) process: String,
}

/// This process as a writer of one Mirror's records.
#[derive(Debug)]
pub(in crate::replication) struct Writer {
    process: String,
    /// The versions that are left of the epoch; `None` while none is claimed.
    versions: Mutex<Option<Range<u64>>>,
    /// The highest version of an epoch that was given up.
    used: AtomicU64,
    /// The version of the last position of this epoch that the destination has taken.
    recorded: AtomicU64,
}

impl Writer {
    pub(in crate::replication) fn new() -> Writer {
        Writer {
            process: format!("{:016x}", fastrand::u64(..)),
            versions: Mutex::new(None),
            used: AtomicU64::new(0),
            recorded: AtomicU64::new(0),
        }
    }

    fn versions(&self) -> MutexGuard<'_, Option<Range<u64>>> {
        lock(&self.versions)
    }

    /// Begins an epoch above everything that was found, and gives the record that claims it.
    pub(in crate::replication) fn begin(&self, newest: StateVersion) -> EpochRecord {
        // A destination that was restored has forgotten versions which may be on their way to it still.
        let newest = newest.max(StateVersion(self.used.load(Relaxed)));
        *self.versions() = Some(newest.next_epoch(fastrand::u16(..)).to_end_of_epoch());
        EpochRecord { process: self.process.clone() }
    }

    /// Gives the epoch up, and says whether there was one.
    pub(in crate::replication) fn end(&self) -> bool {
        let left = self.versions().take();
        self.recorded.store(0, Relaxed);
        if let Some(left) = &left {
            self.used.fetch_max(left.start, Relaxed);
        }
        left.is_some()
    }

    /// The version of the next record.
    ///
    /// # Errors
    /// [`Error::Replaced`] without an epoch, or when all of its versions are used.
    pub(in crate::replication) fn next(&self) -> Result<StateVersion, Error> {
        let next = self.versions().as_mut().and_then(Iterator::next);
        next.map(StateVersion).ok_or(Error::Replaced)
    }

    /// How many versions of the epoch are used.
    pub(in crate::replication) fn begun(&self) -> u64 {
        self.versions().as_ref().map_or(0, |left| left.start)
    }

    /// The destination has taken a position of this version.
    pub(in crate::replication) fn record(&self, version: StateVersion) {
        self.recorded.fetch_max(version.0, Relaxed);
    }

    /// Whether the destination once had a newer position than what was found: it was restored from a backup
    /// of before.
    pub(in crate::replication) fn misses(&self, found: StateVersion) -> bool {
        found.0 < self.recorded.load(Relaxed)
    }

    /// Whether another process has claimed a newer epoch, or the same one. A claim that is missing was not
    /// replaced, but removed.
    pub(in crate::replication) fn is_replaced(&self, found: &StateRows) -> bool {
        let newest = Some(found.newest.epoch());
        let other = claim(found).is_some_and(|claim| claim.process != self.process);
        self.epoch() < newest || (self.epoch() == newest && other)
    }

    fn epoch(&self) -> Option<u64> {
        self.versions().as_ref().map(|left| StateVersion(left.start).epoch())
    }

    /// Whether the newest record is one of this process's present epoch.
    pub(in crate::replication) fn owns(&self, found: &StateRows) -> bool {
        let ours = claim(found).is_some_and(|claim| claim.process == self.process);
        self.epoch() == Some(found.newest.epoch()) && ours
    }
}

/// The newest claim of an epoch.
fn claim(found: &StateRows) -> Option<EpochRecord> {
    let row = found.rows.iter().find(|row| row.item == EPOCH_ITEM)?;
    serde_json::from_str(&row.value).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replication::StateRow;

    fn claimed(writer: &Writer, newest: StateVersion) -> StateRows {
        let value = serde_json::to_string(&writer.begin(newest)).unwrap();
        let rows = vec![StateRow { item: EPOCH_ITEM.into(), value }];
        StateRows { rows, newest: writer.next().unwrap() }
    }

    #[test]
    fn versions_of_a_later_epoch_are_higher() {
        let writer = Writer::new();
        assert!(matches!(writer.next(), Err(Error::Replaced)), "nothing is claimed");
        let found = claimed(&writer, StateVersion::default());
        assert!(writer.owns(&found));
        let last = writer.next().unwrap();
        assert!(last > found.newest && last.epoch() == found.newest.epoch());
        let other = Writer::new();
        let taken = claimed(&other, last);
        assert!(taken.newest > writer.next().unwrap() && other.owns(&taken) && !writer.owns(&taken));
        assert!(writer.is_replaced(&taken) && !other.is_replaced(&taken) && !other.is_replaced(&found));
        let removed = StateRows { rows: Vec::new(), ..taken };
        assert!(!other.owns(&removed) && !other.is_replaced(&removed), "nobody has replaced it");
        assert!(writer.end() && !writer.end());
        assert!(matches!(writer.next(), Err(Error::Replaced)));
    }

    #[test]
    fn the_last_version_of_an_epoch_is_followed_by_none() {
        let writer = Writer::new();
        let first = claimed(&writer, StateVersion(7)).newest;
        *writer.versions() = Some(StateVersion(first.0 + (1 << 26) - 2).to_end_of_epoch());
        assert_eq!(writer.next().unwrap().epoch(), first.epoch());
        assert!(writer.next().is_ok() && writer.next().is_err());
    }

    proptest! {
        /// Whatever random bits two epochs have; also above records of before there were epochs.
        #[test]
        fn the_next_epoch_is_above_all_of_this_one(version in 0..1_u64 << 62, nonce: u16) {
            let first = StateVersion(version).next_epoch(nonce);
            let highest = StateVersion(version).to_end_of_epoch().end - 1;
            prop_assert!(first.0 > highest);
            prop_assert_eq!(first.to_end_of_epoch().end - first.0, 1 << 26);
        }
    }
}
