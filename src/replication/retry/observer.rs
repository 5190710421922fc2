//! What is being repeated, for the status, and what was refused and accepted.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::time::Instant;

use super::patience::{Patience, Refusals, Scope};
use crate::{
    model::{Liveness, MirrorFailure, Outside, TableId, TableProgress, lock},
    replication::{Error, failure, failure_of_table},
};

type Report = dyn Fn(Option<&MirrorFailure>) + Send + Sync;

/// What was refused and accepted, which outlives connections: a table's refusals count on when another one
/// changes its columns.
#[derive(Default)]
pub(in crate::replication) struct Answers {
    /// What is being repeated, in the order in which it began.
    repeated: Mutex<BTreeMap<u64, Repeated>>,
    /// When a statement on each table was accepted last.
    accepted: Mutex<HashMap<TableId, Instant>>,
    /// Each table's refusals since then.
    refused: Mutex<HashMap<TableId, Refusals>>,
}

struct Repeated {
    /// As the table shows it, which is named there.
    at_table: Option<(Arc<TableProgress>, MirrorFailure)>,
    /// As the Mirror shows it, whose status names no table but in the message.
    failure: MirrorFailure,
}

/// Hears of what is repeated, and of what was accepted.
#[derive(Clone)]
pub(in crate::replication) struct RetryObserver {
    report: Arc<Report>,
    liveness: Arc<Liveness>,
    answers: Arc<Answers>,
}

impl RetryObserver {
    /// `report` is called with what is being repeated, and with `None` when nothing is any more.
    pub(in crate::replication) fn new(
        liveness: Arc<Liveness>,
        answers: Arc<Answers>,
        report: impl Fn(Option<&MirrorFailure>) + Send + Sync + 'static,
    ) -> Self {
        RetryObserver { report: Arc::new(report), liveness, answers }
    }

    /// Reports what is being repeated: what concerns the whole Mirror before what concerns a table, and the
    /// oldest first.
    pub(in crate::replication) fn report(&self) {
        let repeated = self.repeated();
        let of_the_mirror = repeated.values().find(|repeated| repeated.at_table.is_none());
        let shown = of_the_mirror.or_else(|| repeated.values().next());
        (self.report)(shown.map(|repeated| &repeated.failure));
    }

    /// A server is waited for, until the guard is dropped.
    pub(in crate::replication) fn outside(&self) -> Outside {
        self.liveness.outside()
    }

    fn repeated(&self) -> MutexGuard<'_, BTreeMap<u64, Repeated>> {
        lock(&self.answers.repeated)
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<TableId, Refusals>> {
        lock(&self.answers.refused)
    }

    pub(super) fn accept(&self, table: &TableId) {
        let mut accepted = lock(&self.answers.accepted);
        accepted.insert(table.clone(), Instant::now());
        drop(accepted);
        self.refused().remove(table);
    }

    /// Counts a refusal, and gives their number once there were enough of them for it to be the table's own.
    pub(super) fn refuse(&self, table: &TableId, patience: Option<Patience>) -> Option<u32> {
        let beside_others = |since: Instant| {
            let accepted = lock(&self.answers.accepted);
            accepted.iter().any(|(other, at)| other != table && *at > since)
        };
        let mut refused = self.refused();
        let refusals = refused.entry(table.clone()).or_default();
        let times = refusals.exhaust(patience, beside_others);
        if times.is_some() {
            refused.remove(table);
        }
        times
    }
}

/// What one loop repeats, shown until this is dropped.
pub(super) struct Repeating<'a> {
    observer: &'a RetryObserver,
    scope: Scope<'a>,
    /// Where it is among what is repeated, from the first report on.
    place: Option<u64>,
}

impl<'a> Repeating<'a> {
    pub(super) fn new(observer: &'a RetryObserver, scope: Scope<'a>) -> Self {
        Repeating { observer, scope, place: None }
    }

    pub(super) fn report(&mut self, error: &Error) {
        let mut repeated = self.observer.repeated();
        let next = repeated.last_key_value().map_or(0, |(last, _)| last + 1);
        let place = *self.place.get_or_insert(next);
        let at_table = match self.scope {
            Scope::Table { id, progress: Some(progress), .. } => {
                let failure = failure_of_table(id, error);
                progress.set_repeated(Some(failure.clone()));
                Some((Arc::clone(progress), failure))
            }
            Scope::Table { progress: None, .. } | Scope::Mirror => None,
        };
        repeated.insert(place, Repeated { at_table, failure: failure(error) });
        drop(repeated);
        self.observer.report();
    }

    /// It has passed, or is not repeated any more.
    pub(super) fn end(mut self) {
        if self.forget() {
            self.observer.report();
        }
    }

    fn forget(&mut self) -> bool {
        let mut repeated = self.observer.repeated();
        let Some(ended) = self.place.take().and_then(|place| repeated.remove(&place)) else { return false };
        if let Some((table, _)) = ended.at_table {
            let mut at_tables = repeated.values().filter_map(|other| other.at_table.as_ref());
            let other = at_tables.find(|(other, _)| Arc::ptr_eq(other, &table));
            table.set_repeated(other.map(|(_, failure)| failure.clone()));
        }
        true
    }
}

impl Drop for Repeating<'_> {
    /// What a stream that ends was repeating is no news: how it ended is reported.
    fn drop(&mut self) {
        self.forget();
    }
}
