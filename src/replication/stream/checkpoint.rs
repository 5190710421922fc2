//! The rule that decides how far the slot may move.
//!
//! The slot's position may only pass a transaction when every row of it is durable. Rows wait in batches, so
//! each batch takes a *guard* at its first row: the end of the last transaction that was complete before. The
//! oldest guard bounds the confirmed position; without guards everything received is durable. No list of
//! transactions is kept, so the memory does not grow with their number.
//!
//! A row with values that a query read may have them from a transaction that a failover loses. So what was
//! completed by a query stays unconfirmed, though durable, until the stream has passed the position at which
//! the query read: the source sends nothing from a failover slot that its standbys lack, and what is not
//! confirmed the promoted one sends again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, lock};

/// Microseconds since 2000-01-01 UTC, PostgreSQL's epoch.
pub(in crate::replication) type PgMicros = i64;

/// A transaction that the source sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Where its commit is in the log.
    pub lsn: Lsn,
    /// Its number.
    pub xid: u32,
    /// When it was committed.
    pub at: PgMicros,
}

/// A position, with the last transaction up to there that the source sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) struct Mark {
    pub(in crate::replication) lsn: Lsn,
    pub(in crate::replication) commit: Option<Commit>,
}

#[derive(Debug)]
struct Bound {
    safe: Mark,
    committed_at: PgMicros,
}

/// Durable rows with values that were read at `until`.
#[derive(Debug)]
struct Fetched {
    safe: Mark,
    until: Lsn,
}

#[derive(Debug)]
struct Inner {
    guards: BTreeMap<u64, Bound>,
    fetched: Vec<Fetched>,
    next: u64,
    received: Mark,
}

/// Tracks which position is durable. Shared by the stream, the insert tasks and the feedback task.
#[derive(Debug)]
pub(in crate::replication) struct Checkpoint {
    inner: Mutex<Inner>,
}

/// Keeps the confirmed position before the rows of one batch until it is dropped.
#[derive(Debug)]
pub(in crate::replication) struct CheckpointGuard {
    checkpoint: Arc<Checkpoint>,
    id: u64,
}

impl Checkpoint {
    /// Starts where the slot stands.
    pub(in crate::replication) fn new(confirmed: Mark) -> Arc<Self> {
        Arc::new(Checkpoint {
            inner: Mutex::new(Inner {
                guards: BTreeMap::new(),
                fetched: Vec::new(),
                next: 0,
                received: confirmed,
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Takes a guard for rows of the transaction being received, which was committed at `committed_at`.
    pub(in crate::replication) fn guard(self: &Arc<Self>, committed_at: PgMicros) -> CheckpointGuard {
        let mut inner = self.inner();
        let id = inner.next;
        inner.next += 1;
        let safe = inner.received;
        inner.guards.insert(id, Bound { safe, committed_at });
        CheckpointGuard { checkpoint: Arc::clone(self), id }
    }

    /// Records that everything the source sent up to `lsn` has been received: the end of a transaction, which
    /// is given too, or, between transactions, the position of a keepalive.
    pub(in crate::replication) fn received(&self, lsn: Lsn, commit: Option<Commit>) {
        let mut inner = self.inner();
        let received = inner.received;
        inner.received = Mark { lsn: received.lsn.max(lsn), commit: commit.or(received.commit) };
        let received = inner.received.lsn;
        inner.fetched.retain(|read| read.until > received);
    }

    /// The last transaction that was received.
    pub(in crate::replication) fn last_commit(&self) -> Option<Commit> {
        self.inner().received.commit
    }

    /// Everything committed up to here is durable.
    pub(in crate::replication) fn durable(&self) -> Lsn {
        self.inner().durable().lsn
    }

    /// Everything committed up to here is durable, and was not completed with values that the source may
    /// still lose.
    pub(in crate::replication) fn confirmed(&self) -> Mark {
        let inner = self.inner();
        let earlier = |one: Mark, other: Mark| if other.lsn < one.lsn { other } else { one };
        inner.fetched.iter().map(|read| read.safe).fold(inner.durable(), earlier)
    }

    /// When the oldest transaction that is not yet durable was committed, if there is one.
    pub(in crate::replication) fn oldest_commit(&self) -> Option<PgMicros> {
        self.inner().guards.values().next().map(|oldest| oldest.committed_at)
    }
}

impl Inner {
    fn durable(&self) -> Mark {
        self.guards.values().next().map_or(self.received, |oldest| oldest.safe)
    }
}

impl CheckpointGuard {
    /// The rows are durable, with values that were read when the source's log ended at `until`.
    pub(in crate::replication) fn release_fetched(self, until: Lsn) {
        let mut inner = self.checkpoint.inner();
        if until > inner.received.lsn
            && let Some(safe) = inner.guards.get(&self.id).map(|bound| bound.safe)
        {
            inner.fetched.push(Fetched { safe, until });
        }
    }
}

impl Drop for CheckpointGuard {
    fn drop(&mut self) {
        self.checkpoint.inner().guards.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start(lsn: u64) -> Arc<Checkpoint> {
        Checkpoint::new(Mark { lsn: Lsn(lsn), commit: None })
    }

    #[test]
    fn moves_with_what_is_received_when_nothing_is_guarded() {
        let checkpoint = start(10);
        assert_eq!(checkpoint.confirmed().lsn, Lsn(10));
        checkpoint.received(Lsn(20), None);
        checkpoint.received(Lsn(15), None);
        assert_eq!(checkpoint.confirmed().lsn, Lsn(20));
        assert_eq!(checkpoint.oldest_commit(), None);
    }

    #[test]
    fn stays_before_the_oldest_guard() {
        let checkpoint = start(10);
        let first = checkpoint.guard(1);
        checkpoint.received(Lsn(20), None);
        let second = checkpoint.guard(2);
        checkpoint.received(Lsn(30), None);
        assert_eq!((checkpoint.confirmed().lsn, checkpoint.oldest_commit()), (Lsn(10), Some(1)));
        drop(first);
        assert_eq!((checkpoint.confirmed().lsn, checkpoint.oldest_commit()), (Lsn(20), Some(2)));
        drop(second);
        assert_eq!(checkpoint.confirmed().lsn, Lsn(30));
    }

    #[test]
    fn a_position_has_the_last_transaction_before_it() {
        let commit = |lsn| Some(Commit { lsn: Lsn(lsn), xid: 1, at: 2 });
        let checkpoint = start(10);
        checkpoint.received(Lsn(20), commit(15));
        let guard = checkpoint.guard(1);
        checkpoint.received(Lsn(30), commit(25));
        checkpoint.received(Lsn(40), None);
        assert_eq!(checkpoint.confirmed(), Mark { lsn: Lsn(20), commit: commit(15) });
        drop(guard);
        assert_eq!(checkpoint.confirmed(), Mark { lsn: Lsn(40), commit: commit(25) });
    }

    #[test]
    fn what_was_completed_by_a_query_waits_for_its_position_in_the_stream() {
        let checkpoint = start(10);
        let guard = checkpoint.guard(1);
        checkpoint.received(Lsn(20), None);
        guard.release_fetched(Lsn(35));
        let positions = || (checkpoint.durable(), checkpoint.confirmed().lsn);
        assert_eq!((positions(), checkpoint.oldest_commit()), ((Lsn(20), Lsn(10)), None));
        let guard = checkpoint.guard(2);
        checkpoint.received(Lsn(30), None);
        assert_eq!(positions(), (Lsn(20), Lsn(10)));
        guard.release_fetched(Lsn(40));
        checkpoint.received(Lsn(35), None);
        assert_eq!(positions(), (Lsn(35), Lsn(20)));
        checkpoint.received(Lsn(40), None);
        assert_eq!(positions(), (Lsn(40), Lsn(40)));
        checkpoint.guard(3).release_fetched(Lsn(40));
        assert_eq!(positions(), (Lsn(40), Lsn(40)), "the stream was there already");
    }

    proptest! {
        /// Against a model that keeps every transaction: confirmed is the last end before the first
        /// unfinished one.
        #[test]
        fn never_passes_a_transaction_with_rows_outstanding(steps in prop::collection::vec((0u8..3, 0usize..4), 1..60)) {
            let checkpoint = start(0);
            let mut guards: Vec<(CheckpointGuard, u64)> = Vec::new();
            let mut end = 0u64;
            for (step, pick) in steps {
                match step {
                    0 => guards.push((checkpoint.guard(0), end)),
                    1 => { end += 10; checkpoint.received(Lsn(end), None); }
                    _ => if !guards.is_empty() { let at = pick % guards.len(); guards.remove(at); }
                }
                let expected = guards.iter().map(|(_, safe)| *safe).min().unwrap_or(end);
                prop_assert_eq!(checkpoint.confirmed().lsn, Lsn(expected));
            }
        }
    }
}
