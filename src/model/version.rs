//! Versions: which of two rows with one key is the newer.
//!
//! Whatever is sent to a destination may run late, twice, or after a newer statement. So what a row loses to
//! is said by the row alone: two changes of a key that reach the destination in different inserts have
//! different versions.

use serde::{Deserialize, Serialize};

use super::Lsn;

/// What a target's `_walferry_version` holds: `(commit LSN / 8) << 12 | step`. Of the rows with one key the
/// one with the highest version counts.
///
/// Commit records lie at multiples of 8, so the commit LSNs of two transactions differ by at least 8. `step`
/// distinguishes the changes of one transaction ([`Steps`]); copied rows have step 0, so they lose to every
/// change that is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(u64);

/// Bits of a version that hold the step.
const STEP_BITS: u32 = 12;

/// The highest step.
const LAST_STEP: u64 = (1 << STEP_BITS) - 1;

/// Bits of an LSN that every commit record has as 0.
const ALIGNMENT_BITS: u32 = 3;

impl Version {
    /// The version of rows that the first copy brings: below every other.
    pub const ZERO: Version = Version(0);

    /// The first position of the log that a version has no room for: 32 PiB.
    pub const LIMIT: Lsn = Lsn(1 << (64 - STEP_BITS + ALIGNMENT_BITS));

    /// The version of rows that are copied at a position: above every change that was committed before it,
    /// below every change that is committed there or later.
    pub const fn copied(at: Lsn) -> Version {
        Version::of(at, 0)
    }

    const fn of(commit: Lsn, step: u64) -> Version {
        // Sessions refuse a log that is longer (`Version::LIMIT`); here the highest version stands for all
        // that follows.
        let last = Version::LIMIT.0 - 1;
        let commit = if commit.0 > last { last } else { commit.0 };
        Version((commit >> ALIGNMENT_BITS) << STEP_BITS | step)
    }

    /// Whether it is that of a copied row.
    pub const fn is_copied(self) -> bool {
        self.0 & LAST_STEP == 0
    }

    /// The bits of a version, as a target holds it, that are 0 in copied rows alone.
    pub const STEP_MASK: u64 = LAST_STEP;

    /// As a target holds it.
    pub const fn from_number(number: u64) -> Version {
        Version(number)
    }

    /// As a target holds it.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The commit LSN that it was made of, or the position of the copy, to a multiple of 8.
    pub const fn lsn(self) -> Lsn {
        Lsn((self.0 >> STEP_BITS) << ALIGNMENT_BITS)
    }
}

/// Segments of the log that a transaction's changes to a table are divided into, at most.
const SEGMENTS: u64 = 1 << 11;

/// The shortest segment of the log, as a power of two: 64 KiB.
const SHORTEST: u32 = 16;

/// The steps of one transaction's changes to one table.
///
/// A step is a segment of the log: the shortest power of two, from 64 KiB on, of which at most 2,048 cover
/// the log from the table's first change to the commit record. Segments are counted back from the commit
/// record, so a transaction shorter than 64 KiB has one step. Nothing but positions of the log counts, which
/// are the same each time that the source sends the transaction: the size of what is sent is not, for it
/// depends on the form of the values. A TRUNCATE has a step of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    commit: Lsn,
    /// Where the transaction's first change to the table is.
    first: Lsn,
    /// The length of a segment, as a power of two.
    length: u32,
    /// How many steps TRUNCATEs have taken so far.
    taken: u64,
}

impl Steps {
    /// The version of a change at `at`, of the transaction whose commit record is at `commit`.
    #[inline]
    pub fn change(&mut self, commit: Lsn, at: Lsn) -> Version {
        if self.commit != commit {
            self.begin(commit, at);
        }
        Version::of(commit, self.step(at))
    }

    /// The version of a TRUNCATE at `at`: above all changes before it, below all after it. `None` after about
    /// a thousand in one transaction, for which there is no room.
    pub fn truncate(&mut self, commit: Lsn, at: Lsn) -> Option<Version> {
        if self.commit != commit {
            self.begin(commit, at);
        }
        if SEGMENTS + self.taken + 2 > LAST_STEP {
            return None;
        }
        let version = Version::of(commit, self.step(at) + 1);
        self.taken += 2;
        Some(version)
    }

    /// Whether no further change of the table can have this version, now that the source has come to `at` in
    /// the transaction whose commit record is at `commit`.
    pub fn is_over(&self, version: Version, commit: Lsn, at: Lsn) -> bool {
        version.lsn() != Version::copied(commit).lsn() || version < Version::of(commit, self.step(at))
    }

    fn begin(&mut self, commit: Lsn, first: Lsn) {
        let mut length = SHORTEST;
        while commit.bytes_since(first) >> length >= SEGMENTS {
            length += 1;
        }
        *self = Steps { commit, first, length, taken: 0 };
    }

    fn step(&self, at: Lsn) -> u64 {
        let segments_left = |at: Lsn| self.commit.bytes_since(at) >> self.length;
        1 + self.taken + segments_left(self.first).saturating_sub(segments_left(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn has_commit_and_step() {
        assert_eq!(Version::copied(Lsn::ZERO), Version::ZERO);
        assert_eq!(Version::copied(Lsn(0x1000)).number(), 0x20_0000);
        assert_eq!(Version::copied(Lsn(0x1007)), Version::copied(Lsn(0x1000)), "a multiple of 8 counts");
        let version = Steps::default().change(Lsn(0x1000), Lsn(0x0f00));
        assert_eq!((version.number(), version.lsn()), (0x20_0001, Lsn(0x1000)));
        assert!(Version::copied(Lsn(0x1000)) < version && version < Version::copied(Lsn(0x1008)));
    }

    #[test]
    fn has_room_for_the_whole_log() {
        assert_eq!(Version::LIMIT, Lsn(32 << 50), "32 PiB");
        let last = Steps::default().change(Lsn(Version::LIMIT.0 - 8), Lsn(Version::LIMIT.0 - 16));
        assert_eq!(last.number(), !LAST_STEP | 1);
        assert_eq!(Version::copied(Lsn(u64::MAX)).number(), !LAST_STEP);
    }

    #[test]
    fn a_small_transaction_has_one_step_and_a_large_one_many() {
        let commit = Lsn(1 << 40);
        let steps = |bytes: u64| {
            let mut steps = Steps::default();
            let at = |back: u64| Lsn(commit.0 - back);
            (
                steps.change(commit, at(bytes)).number() & LAST_STEP,
                steps.change(commit, at(8)).number() & LAST_STEP,
            )
        };
        assert_eq!(steps(60_000), (1, 1));
        assert_eq!(steps(100 << 20), (1, 1601), "64 KiB each");
        assert_eq!(steps((128 << 20) - 8), (1, 2048));
        assert_eq!(steps(128 << 20), (1, 1025), "128 KiB each");
        assert_eq!(steps(64 << 30).1, 1025, "64 MiB each");
    }

    #[test]
    fn a_truncate_ends_a_step_and_has_one_of_its_own() {
        let (commit, mut steps) = (Lsn(0x1000), Steps::default());
        let versions = [
            Some(steps.change(commit, Lsn(0x800))),
            steps.truncate(commit, Lsn(0x810)),
            Some(steps.change(commit, Lsn(0x820))),
            steps.truncate(commit, Lsn(0x830)),
            steps.truncate(commit, Lsn(0x840)),
            Some(steps.change(commit, Lsn(0x850))),
        ];
        assert!(versions.is_sorted_by(|one, next| one < next), "{versions:?}");
        let many = (0..3000).take_while(|_| steps.truncate(commit, Lsn(0x860)).is_some()).count();
        assert_eq!(many, 1020);
        let mut late = Steps::default();
        late.truncate(commit, Lsn(0x10)).unwrap();
        assert_eq!(late.change(Lsn(0x2000), Lsn(0x1800)), Steps::default().change(Lsn(0x2000), Lsn(0x1800)));
    }

    proptest! {
        /// Whatever a transaction has, its changes have versions in their order that are the same each time,
        /// and a step that is said to be over gets no further change.
        #[test]
        fn versions_keep_the_order_of_changes(
            end in 1_u64..(1 << 52) - (1 << 43),
            changes in prop::collection::vec((0_u64..1 << 36, 0_u8..20), 1..200),
        ) {
            let commit = Lsn((end + (1 << 42)) << 3);
            let total: u64 = changes.iter().map(|(bytes, _)| bytes).sum();
            let mut at = commit.0.saturating_sub(total + 8);
            let (mut first, mut second) = (Steps::default(), Steps::default());
            let (mut last, mut over) = (Version::copied(commit), Vec::new());
            for (bytes, kind) in &changes {
                let truncates = *kind == 0;
                let version = |steps: &mut Steps| match truncates {
                    true => steps.truncate(commit, Lsn(at)).unwrap(),
                    false => steps.change(commit, Lsn(at)),
                };
                let now = version(&mut first);
                prop_assert_eq!(now, version(&mut second));
                prop_assert!(now > last || (!truncates && now == last));
                prop_assert!(!over.contains(&now));
                prop_assert_eq!(now.lsn(), commit);
                if !truncates && first.is_over(last, commit, Lsn(at)) {
                    over.push(last);
                    prop_assert!(now > last);
                }
                last = now;
                at += bytes;
            }
            prop_assert!(first.is_over(last, Lsn(commit.0 + 64), Lsn(commit.0 + 8)));
            prop_assert!(last < Version::copied(Lsn(commit.0 + 8)));
        }
    }
}
