//! The rule that decides how far the slot may move.
//!
//! The slot's position may only pass a transaction when every row of it is durable. Rows wait in batches, so each batch
//! takes a *hold* at its first row: the end of the last transaction that was complete before. The oldest hold bounds
//! the confirmed position; without holds everything received is durable. No list of transactions is kept, so the
//! memory does not grow with their number.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::model::Lsn;

/// Microseconds since 2000-01-01 UTC, PostgreSQL's epoch.
pub(super) type PgMicros = i64;

#[derive(Debug)]
struct Bound {
    safe: Lsn,
    committed_at: PgMicros,
}

#[derive(Debug)]
struct Inner {
    holds: BTreeMap<u64, Bound>,
    next: u64,
    received: Lsn,
}

/// Tracks which position is durable. Shared by the stream, the insert tasks and the feedback task.
#[derive(Debug)]
pub(super) struct Checkpoint {
    inner: Mutex<Inner>,
}

/// Keeps the confirmed position before the rows of one batch until it is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    checkpoint: Arc<Checkpoint>,
    id: u64,
}

impl Checkpoint {
    /// Starts where the slot stands.
    pub(super) fn new(confirmed: Lsn) -> Arc<Self> {
        Arc::new(Checkpoint {
            inner: Mutex::new(Inner { holds: BTreeMap::new(), next: 0, received: confirmed }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a hold for rows of the transaction being received, which was committed at `committed_at`.
    pub(super) fn hold(self: &Arc<Self>, committed_at: PgMicros) -> Hold {
        let mut inner = self.inner();
        let id = inner.next;
        inner.next += 1;
        let safe = inner.received;
        inner.holds.insert(id, Bound { safe, committed_at });
        Hold { checkpoint: Arc::clone(self), id }
    }

    /// Records that everything the source sent up to `lsn` has been received: the end of a transaction, or, between
    /// transactions, the position of a keepalive.
    pub(super) fn received(&self, lsn: Lsn) {
        let mut inner = self.inner();
        inner.received = inner.received.max(lsn);
    }

    /// Everything committed up to here is durable.
    pub(super) fn confirmed(&self) -> Lsn {
        let inner = self.inner();
        inner.holds.values().next().map_or(inner.received, |oldest| oldest.safe)
    }

    /// When the oldest transaction that is not yet durable was committed, if there is one.
    pub(super) fn oldest_commit(&self) -> Option<PgMicros> {
        self.inner().holds.values().next().map(|oldest| oldest.committed_at)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.checkpoint.inner().holds.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moves_with_what_is_received_when_nothing_is_held() {
        let checkpoint = Checkpoint::new(Lsn(10));
        assert_eq!(checkpoint.confirmed(), Lsn(10));
        checkpoint.received(Lsn(20));
        checkpoint.received(Lsn(15));
        assert_eq!(checkpoint.confirmed(), Lsn(20));
        assert_eq!(checkpoint.oldest_commit(), None);
    }

    #[test]
    fn stays_before_the_oldest_hold() {
        let checkpoint = Checkpoint::new(Lsn(10));
        let first = checkpoint.hold(1);
        checkpoint.received(Lsn(20));
        let second = checkpoint.hold(2);
        checkpoint.received(Lsn(30));
        assert_eq!((checkpoint.confirmed(), checkpoint.oldest_commit()), (Lsn(10), Some(1)));
        drop(first);
        assert_eq!((checkpoint.confirmed(), checkpoint.oldest_commit()), (Lsn(20), Some(2)));
        drop(second);
        assert_eq!(checkpoint.confirmed(), Lsn(30));
    }

    proptest! {
        /// Against a model that keeps every transaction: confirmed is the last end before the first unfinished one.
        #[test]
        fn never_passes_a_transaction_with_rows_outstanding(steps in prop::collection::vec((0u8..3, 0usize..4), 1..60)) {
            let checkpoint = Checkpoint::new(Lsn(0));
            let mut holds: Vec<(Hold, u64)> = Vec::new();
            let mut end = 0u64;
            for (step, pick) in steps {
                match step {
                    0 => holds.push((checkpoint.hold(0), end)),
                    1 => { end += 10; checkpoint.received(Lsn(end)); }
                    _ => if !holds.is_empty() { let at = pick % holds.len(); holds.remove(at); }
                }
                let expected = holds.iter().map(|(_, safe)| *safe).min().unwrap_or(end);
                prop_assert_eq!(checkpoint.confirmed(), Lsn(expected));
            }
        }
    }
}
