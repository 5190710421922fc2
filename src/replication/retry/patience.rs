//! How long a refusal is repeated until it is a table's own, or the Mirror's.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    model::{TableId, TableProgress},
    replication::{DestinationError, Error, ErrorKind, MirrorRefused, Policy},
};

/// How long a refusal is repeated until it counts as a table's own: time and tries have to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    pub(super) time: Duration,
    tries: u32,
    /// Whether only a refusal counts before which another table's statement was accepted since the one
    /// before: what the server as a whole refuses is no table's own, however long it lasts.
    beside_others: bool,
}

impl Patience {
    const fn new(seconds: u64, tries: u32) -> Self {
        Patience { time: Duration::from_secs(seconds), tries, beside_others: false }
    }
}

/// Where a refusal doesn't say whether it will pass.
pub(super) const UNCLEAR: Patience = Patience::new(120, 10);

/// Where a privilege is missing, which doesn't pass: long enough for a user or a database that is just made
/// again.
pub(super) const DENIED: Patience = Patience::new(30, 5);

/// Where a table has too many parts: long enough for merges to keep up again.
pub(super) const TOO_MANY_PARTS: Patience = Patience::new(600, 10);

/// Where a condition of the server is met by one table alone: a view on it that needs much memory, a limit
/// that only this table has.
pub(super) const BY_ONE_TABLE: Patience = Patience { beside_others: true, ..Patience::new(600, 10) };

/// While others wait for the table to begin.
const AT_THE_START: Patience = Patience::new(1, 4);

/// A table whose status shows what is repeated for it.
pub(in crate::replication) trait RetriedTable {
    /// The table's name at the source.
    fn id(&self) -> &TableId;

    /// Where its status is kept.
    fn progress(&self) -> &Arc<TableProgress>;
}

impl<T: RetriedTable> RetriedTable for Arc<T> {
    fn id(&self) -> &TableId {
        self.as_ref().id()
    }

    fn progress(&self) -> &Arc<TableProgress> {
        self.as_ref().progress()
    }
}

/// What a statement is about.
#[derive(Clone, Copy)]
pub(super) enum Scope<'a> {
    Mirror,
    Table { id: &'a TableId, progress: Option<&'a Arc<TableProgress>>, others: Others },
}

/// What other tables do while one's statement is repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// They stream.
    Stream,
    /// They wait for the change that comes next in the stream.
    WaitInStream,
    /// Nothing streams yet.
    WaitToBegin,
}

impl<'a> Scope<'a> {
    /// One table that has begun.
    pub(super) fn of(table: &'a impl RetriedTable, others: Others) -> Self {
        Scope::Table { id: table.id(), progress: Some(table.progress()), others }
    }

    /// How long a refusal is repeated until it is the table's own; `None` for what is not repeated for a
    /// table's sake. Total: a new kind has to be placed here.
    pub(super) fn patience(self, error: &Error) -> Option<Patience> {
        use Others::{Stream, WaitInStream, WaitToBegin};
        let Error::Destination(refusal) = error else { return None };
        let Scope::Table { others, .. } = self else { return mirror_patience(error) };
        match (refusal.kind, others) {
            (ErrorKind::Unclear | ErrorKind::Denied, WaitToBegin) => Some(AT_THE_START),
            (ErrorKind::Unclear, Stream) => Some(UNCLEAR),
            (ErrorKind::TableOverloaded, Stream) => Some(TOO_MANY_PARTS),
            (ErrorKind::Denied, Stream | WaitInStream) => Some(DENIED),
            (ErrorKind::Unclear | ErrorKind::TableOverloaded, WaitInStream) => Some(DENIED),
            (ErrorKind::Transient | ErrorKind::Overloaded, Stream) => Some(BY_ONE_TABLE),
            (ErrorKind::Transient | ErrorKind::Overloaded, WaitInStream | WaitToBegin)
            | (ErrorKind::TableOverloaded, WaitToBegin)
            | (ErrorKind::Table | ErrorKind::Refused, _) => None,
        }
    }

    /// The error that a refusal becomes once it was repeated long enough: the table's own, or one that stalls
    /// the Mirror.
    pub(super) fn exhausted(self, error: Error, tries: u32) -> Error {
        let Error::Destination(refusal) = error else { return error };
        let message = format!("{}; it was refused {tries} times", refusal.message);
        match self {
            Scope::Table { .. } => {
                Error::Destination(DestinationError { kind: ErrorKind::Table, message, ..refusal })
            }
            Scope::Mirror => Error::MirrorRefused(MirrorRefused {
                reason: refusal.reason,
                message: format!("destination: {message}"),
                remedies: refusal.remedies,
                transient: false,
            }),
        }
    }

    /// Whether an error is given back without another try.
    pub(super) fn gives_back(self, error: &Error, policy: Policy) -> bool {
        let passes = matches!(policy, Policy::Retry | Policy::SlowDown);
        match self {
            Scope::Mirror => !passes,
            Scope::Table { others: Others::WaitToBegin, .. } => self.patience(error).is_none(),
            Scope::Table { .. } => !passes && self.patience(error).is_none(),
        }
    }
}

/// Refusals in a row that may be a table's own.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    patience: Option<Patience>,
    since: Option<Instant>,
    last: Option<Instant>,
    count: u32,
}

/// Refusals that lie further apart are none in a row: an attempt may wait for its answer, but not so long.
const FORGOTTEN: Duration = Duration::from_secs(300);

impl Refusals {
    /// Counts one, and gives their number once there were enough of them. `beside_others` says whether others
    /// were accepted since a moment.
    pub(super) fn exhaust(
        &mut self,
        patience: Option<Patience>,
        beside_others: impl FnOnce(Instant) -> bool,
    ) -> Option<u32> {
        let now = Instant::now();
        if self.patience != patience || self.last.is_some_and(|last| now - last > FORGOTTEN) {
            *self = Refusals { patience, ..Refusals::default() };
        }
        let patience = patience?;
        let last = self.last.replace(now);
        if patience.beside_others && !last.is_some_and(beside_others) {
            return None;
        }
        self.count = self.count.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        (self.count >= patience.tries && since.elapsed() >= patience.time).then_some(self.count)
    }
}

/// How long a refusal that concerns no table is repeated until the Mirror is stalled by it.
fn mirror_patience(error: &Error) -> Option<Patience> {
    let unclear = matches!(error, Error::Destination(refusal) if refusal.kind == ErrorKind::Unclear);
    unclear.then_some(UNCLEAR)
}

/// What ended the sessions of a Mirror one after another without any progress.
#[derive(Debug, Default)]
pub(in crate::replication) struct SessionErrors(Refusals);

impl SessionErrors {
    /// Counts a session's end: an error that doesn't say whether it will pass becomes one of the Mirror after
    /// some of them.
    pub(in crate::replication) fn judge(&mut self, error: Error) -> Error {
        match self.0.exhaust(mirror_patience(&error), |_| true) {
            Some(times) => Scope::Mirror.exhausted(error, times),
            None => error,
        }
    }
}
