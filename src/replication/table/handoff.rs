//! Where the copy of a table without a key ends and its stream begins.
//!
//! Copied rows of a keyed table give way to streamed ones; without a key a change counts once in the copy or
//! once in the stream. So these tables are copied in one snapshot, and what it sees is skipped in the stream.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    model::{Lsn, TransactionSnapshot, lock},
    replication::stream::CheckpointGuard,
};

/// Which transactions a copy has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBoundary {
    /// What the copy's snapshot sees.
    pub snapshot: TransactionSnapshot,
    /// The end of the log when the snapshot had been taken: it sees nothing that was committed later. So the
    /// numbers of later transactions, which come again after 2^32, are not compared.
    pub end: Lsn,
}

impl SnapshotBoundary {
    fn contains(&self, xid: u32, commit: Lsn) -> bool {
        commit < self.end && self.snapshot.sees(xid)
    }
}

/// What is applied of the stream.
#[derive(Debug)]
enum State {
    /// Everything: there is nothing to copy.
    ApplyAll,
    /// Nothing, for the copy's snapshot is still to be taken. It must see the transactions that were skipped,
    /// and until then the source must not forget them.
    SkipAll { skipped: HashSet<u32>, guard: Option<CheckpointGuard>, paused: bool },
    /// What the copy has not.
    ApplyUnseen(SnapshotBoundary),
}

impl State {
    fn skip_all() -> Self {
        State::SkipAll { skipped: HashSet::new(), guard: None, paused: false }
    }
}

/// What becomes of a transaction's changes to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Decision {
    /// They are applied.
    Apply,
    /// The copy has them, or is going to have them.
    Skip,
    /// The snapshot is being taken just now.
    Wait,
}

/// Decides which transactions of a table are applied. Shared by the stream and the copy.
#[derive(Debug)]
pub(in crate::replication) struct SnapshotFilter {
    state: Mutex<State>,
    resumed: Notify,
}

impl SnapshotFilter {
    /// For a table that is copied already, by `boundary`, or that has nothing to copy.
    pub(in crate::replication) fn after_snapshot(boundary: Option<SnapshotBoundary>) -> Self {
        SnapshotFilter {
            state: Mutex::new(boundary.map_or(State::ApplyAll, State::ApplyUnseen)),
            resumed: Notify::new(),
        }
    }

    /// For a table whose copy is still to begin.
    pub(in crate::replication) fn before_snapshot() -> Self {
        SnapshotFilter { state: Mutex::new(State::skip_all()), resumed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What becomes of the changes of a transaction whose commit record is at `commit`. When they are skipped
    /// for a copy that is still to begin, `guard` keeps the slot before them.
    pub(in crate::replication) fn decide(
        &self,
        xid: u32,
        commit: Lsn,
        guard: impl FnOnce() -> CheckpointGuard,
    ) -> Decision {
        match &mut *self.state() {
            State::ApplyAll => Decision::Apply,
            State::ApplyUnseen(boundary) if boundary.contains(xid, commit) => Decision::Skip,
            State::ApplyUnseen(_) => Decision::Apply,
            State::SkipAll { paused: true, .. } => Decision::Wait,
            State::SkipAll { skipped, guard: held, .. } => {
                skipped.insert(xid);
                held.get_or_insert_with(guard);
                Decision::Skip
            }
        }
    }

    /// Makes the stream wait for a decision while the snapshot is taken: what it brings by then may be too
    /// late for it.
    pub(in crate::replication) fn pause(&self) -> HandoffGuard<'_> {
        if let State::SkipAll { paused, .. } = &mut *self.state() {
            *paused = true;
        }
        HandoffGuard(self)
    }

    /// Waits while the snapshot is being taken.
    pub(in crate::replication) async fn resumed(&self) {
        loop {
            let resumed = self.resumed.notified();
            tokio::pin!(resumed);
            resumed.as_mut().enable();
            if !matches!(&*self.state(), State::SkipAll { paused: true, .. }) {
                return;
            }
            resumed.await;
        }
    }

    /// Forgets transactions that are visible by now, and so by every later snapshot: their number is not
    /// bounded.
    pub(in crate::replication) fn forget_visible(&self, snapshot: &TransactionSnapshot) {
        if let State::SkipAll { skipped, .. } = &mut *self.state() {
            skipped.retain(|xid| !snapshot.sees(*xid));
        }
    }

    /// A copy begins again: what it needs of the stream will be sent again.
    pub(in crate::replication) fn reset(&self) {
        *self.state() = State::skip_all();
        self.resumed.notify_waiters();
    }

    /// A stream begins where the slot stands, with a guard of its own.
    pub(in crate::replication) fn begin_stream(&self) {
        if let State::SkipAll { guard, .. } = &mut *self.state() {
            *guard = None;
        }
    }
}

/// A filter whose stream waits until this is dropped.
#[derive(Debug)]
pub(in crate::replication) struct HandoffGuard<'a>(&'a SnapshotFilter);

impl HandoffGuard<'_> {
    /// Lets the copy begin whose snapshot is the boundary's, unless the snapshot does not yet see what was
    /// skipped: a transaction is in the log before others see it, long before where it waits for a
    /// synchronous standby. `false` asks for a later snapshot.
    pub(in crate::replication) fn commit(self, boundary: &SnapshotBoundary) -> bool {
        let mut state = self.0.state();
        let State::SkipAll { skipped, .. } = &*state else { return true };
        if !skipped.iter().all(|xid| boundary.snapshot.sees(*xid)) {
            return false;
        }
        *state = State::ApplyUnseen(boundary.clone());
        true
    }
}

impl Drop for HandoffGuard<'_> {
    fn drop(&mut self) {
        if let State::SkipAll { paused, .. } = &mut *self.0.state() {
            *paused = false;
        }
        self.0.resumed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::stream::{Checkpoint, Mark};

    fn boundary(snapshot: &str, end: u64) -> SnapshotBoundary {
        SnapshotBoundary { snapshot: snapshot.to_owned().try_into().unwrap(), end: Lsn(end) }
    }

    #[test]
    fn applies_what_the_copy_has_not() {
        let filter = SnapshotFilter::after_snapshot(Some(boundary("10:20:12", 1000)));
        let checkpoint = Checkpoint::new(Mark { lsn: Lsn(1), commit: None });
        let applies =
            |xid, commit| filter.decide(xid, Lsn(commit), || checkpoint.guard(0)) == Decision::Apply;
        assert!(!applies(5, 900) && !applies(11, 900), "seen by the snapshot");
        assert!(applies(12, 900) && applies(20, 900), "not seen by it");
        assert!(applies(5, 1000), "a number that came again");
        assert_eq!(
            SnapshotFilter::after_snapshot(None).decide(5, Lsn(1), || checkpoint.guard(0)),
            Decision::Apply
        );
    }

    #[test]
    fn skips_what_the_snapshot_is_going_to_see() {
        let checkpoint = Checkpoint::new(Mark { lsn: Lsn(1), commit: None });
        let filter = SnapshotFilter::before_snapshot();
        let decide = |xid, commit| filter.decide(xid, Lsn(commit), || checkpoint.guard(0));
        assert_eq!((decide(12, 50), decide(13, 60)), (Decision::Skip, Decision::Skip));
        checkpoint.received(Lsn(70), None);
        assert_eq!(checkpoint.confirmed().lsn, Lsn(1), "what was skipped would be sent again after a crash");
        assert!(!filter.pause().commit(&boundary("10:20:12", 100)), "12 was skipped and is not in the copy");
        filter.forget_visible(&boundary("10:20:12", 100).snapshot);
        let handoff = filter.pause();
        assert_eq!(decide(30, 120), Decision::Wait, "the snapshot may have been taken before");
        assert!(handoff.commit(&boundary("13:20:", 110)));
        assert_eq!((decide(30, 120), decide(12, 50)), (Decision::Apply, Decision::Skip));
        assert_eq!(checkpoint.confirmed().lsn, Lsn(70));
        filter.reset();
        assert_eq!(decide(30, 200), Decision::Skip);
    }

    #[tokio::test]
    async fn a_stream_waits_until_the_snapshot_is_taken_or_given_up() {
        let filter = SnapshotFilter::before_snapshot();
        let handoff = filter.pause();
        let ((), ()) = tokio::join!(filter.resumed(), async { drop(handoff) });
        filter.resumed().await;
    }
}
