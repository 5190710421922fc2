//! Where the copy of a table without a key ends and its stream begins.
//!
//! Copied rows of a keyed table give way to streamed ones; without a key a change counts once in the copy or once in the stream. So
//! these tables are copied in one snapshot, and what it sees is not taken from the stream.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    model::{Lsn, TransactionSnapshot},
    replication::stream::Hold,
};

/// Which transactions a copy has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// What the copy's snapshot sees.
    pub snapshot: TransactionSnapshot,
    /// The end of the log when the snapshot had been taken: it sees nothing that was committed later. So the numbers of later
    /// transactions, which come again after 2^32, need not be looked at.
    pub end: Lsn,
}

impl Cut {
    fn has(&self, xid: u32, commit: Lsn) -> bool {
        commit < self.end && self.snapshot.sees(xid)
    }
}

/// What is taken from the stream.
#[derive(Debug)]
enum State {
    /// Everything: there is nothing to copy.
    Everything,
    /// Nothing, for the copy's snapshot is still to be taken. It must see the transactions that were left out, and until it has
    /// the source must not forget them.
    Nothing { left_out: HashSet<u32>, hold: Option<Hold>, paused: bool },
    /// What the copy has not.
    Rest(Cut),
}

impl State {
    fn nothing() -> Self {
        State::Nothing { left_out: HashSet::new(), hold: None, paused: false }
    }
}

/// What becomes of a transaction's changes to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Verdict {
    /// They are taken from the stream.
    Take,
    /// The copy has them, or is going to have them.
    Leave,
    /// The snapshot is being taken just now.
    Wait,
}

/// Tells which transactions of a table are taken from the stream. Shared by the stream and the copy.
#[derive(Debug)]
pub(in crate::replication) struct Sieve {
    state: Mutex<State>,
    resumed: Notify,
}

impl Sieve {
    /// For a table that is copied already, by `cut`, or that has nothing to copy.
    pub(in crate::replication) fn copied(cut: Option<Cut>) -> Self {
        Sieve { state: Mutex::new(cut.map_or(State::Everything, State::Rest)), resumed: Notify::new() }
    }

    /// For a table whose copy is still to begin.
    pub(in crate::replication) fn closed() -> Self {
        Sieve { state: Mutex::new(State::nothing()), resumed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of the changes of a transaction whose commit record is at `commit`. When they are left out for a copy that is
    /// still to begin, `hold` keeps the slot before them.
    pub(in crate::replication) fn judge(
        &self,
        xid: u32,
        commit: Lsn,
        hold: impl FnOnce() -> Hold,
    ) -> Verdict {
        match &mut *self.state() {
            State::Everything => Verdict::Take,
            State::Rest(cut) if cut.has(xid, commit) => Verdict::Leave,
            State::Rest(_) => Verdict::Take,
            State::Nothing { paused: true, .. } => Verdict::Wait,
            State::Nothing { left_out, hold: held, .. } => {
                left_out.insert(xid);
                held.get_or_insert_with(hold);
                Verdict::Leave
            }
        }
    }

    /// Makes the stream wait for the verdict while the snapshot is taken: what it brings by then may be too late for it.
    pub(in crate::replication) fn pause(&self) -> Paused<'_> {
        if let State::Nothing { paused, .. } = &mut *self.state() {
            *paused = true;
        }
        Paused(self)
    }

    /// Waits while the snapshot is being taken.
    pub(in crate::replication) async fn resumed(&self) {
        loop {
            let resumed = self.resumed.notified();
            tokio::pin!(resumed);
            resumed.as_mut().enable();
            if !matches!(&*self.state(), State::Nothing { paused: true, .. }) {
                return;
            }
            resumed.await;
        }
    }

    /// Forgets transactions that are seen by now, and so by every later snapshot: their number is not bounded.
    pub(in crate::replication) fn forget_seen(&self, snapshot: &TransactionSnapshot) {
        if let State::Nothing { left_out, .. } = &mut *self.state() {
            left_out.retain(|xid| !snapshot.sees(*xid));
        }
    }

    /// A copy begins anew: what it needs of the stream will be sent again.
    pub(in crate::replication) fn close(&self) {
        *self.state() = State::nothing();
        self.resumed.notify_waiters();
    }

    /// A stream begins where the slot stands, with a hold of its own.
    pub(in crate::replication) fn begin_stream(&self) {
        if let State::Nothing { hold, .. } = &mut *self.state() {
            *hold = None;
        }
    }
}

/// A sieve whose stream waits until this is dropped.
#[derive(Debug)]
pub(in crate::replication) struct Paused<'a>(&'a Sieve);

impl Paused<'_> {
    /// Lets the copy begin whose snapshot is the cut's, unless the snapshot does not yet see what was left out: a transaction is in
    /// the log before others see it, long before where it waits for a synchronous standby. `false` asks for a later snapshot.
    pub(in crate::replication) fn open(self, cut: &Cut) -> bool {
        let mut state = self.0.state();
        let State::Nothing { left_out, .. } = &*state else { return true };
        if !left_out.iter().all(|xid| cut.snapshot.sees(*xid)) {
            return false;
        }
        *state = State::Rest(cut.clone());
        true
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if let State::Nothing { paused, .. } = &mut *self.0.state() {
            *paused = false;
        }
        self.0.resumed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::stream::{Checkpoint, Mark};

    fn cut(snapshot: &str, end: u64) -> Cut {
        Cut { snapshot: snapshot.to_owned().try_into().unwrap(), end: Lsn(end) }
    }

    #[test]
    fn takes_what_the_copy_has_not() {
        let sieve = Sieve::copied(Some(cut("10:20:12", 1000)));
        let checkpoint = Checkpoint::new(Mark { lsn: Lsn(1), commit: None });
        let takes = |xid, commit| sieve.judge(xid, Lsn(commit), || checkpoint.hold(0)) == Verdict::Take;
        assert!(!takes(5, 900) && !takes(11, 900), "seen by the snapshot");
        assert!(takes(12, 900) && takes(20, 900), "not seen by it");
        assert!(takes(5, 1000), "a number that came again");
        assert_eq!(Sieve::copied(None).judge(5, Lsn(1), || checkpoint.hold(0)), Verdict::Take);
    }

    #[test]
    fn leaves_out_what_the_snapshot_is_going_to_see() {
        let checkpoint = Checkpoint::new(Mark { lsn: Lsn(1), commit: None });
        let sieve = Sieve::closed();
        let judge = |xid, commit| sieve.judge(xid, Lsn(commit), || checkpoint.hold(0));
        assert_eq!((judge(12, 50), judge(13, 60)), (Verdict::Leave, Verdict::Leave));
        checkpoint.received(Lsn(70), None);
        assert_eq!(checkpoint.confirmed().lsn, Lsn(1), "what was left out would be sent again after a crash");
        assert!(!sieve.pause().open(&cut("10:20:12", 100)), "12 was left out and is not in the copy");
        sieve.forget_seen(&cut("10:20:12", 100).snapshot);
        let paused = sieve.pause();
        assert_eq!(judge(30, 120), Verdict::Wait, "the snapshot may have been taken before");
        assert!(paused.open(&cut("13:20:", 110)));
        assert_eq!((judge(30, 120), judge(12, 50)), (Verdict::Take, Verdict::Leave));
        assert_eq!(checkpoint.confirmed().lsn, Lsn(70));
        sieve.close();
        assert_eq!(judge(30, 200), Verdict::Leave);
    }

    #[tokio::test]
    async fn a_stream_waits_until_the_snapshot_is_taken_or_given_up() {
        let sieve = Sieve::closed();
        let paused = sieve.pause();
        let ((), ()) = tokio::join!(sieve.resumed(), async { drop(paused) });
        sieve.resumed().await;
    }
}
