//! Repeats what was refused: pauses between tries, and how long it goes on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Destination, Error, ErrorKind, Policy, error::failure_of_table, failure, policy, table::Table};
use crate::model::{Liveness, MirrorFailure, Outside, TableId, TableProgress};

/// Grows from 100 ms to 15 s, doubling, with the fraction that spreads many Mirrors apart taken from the clock.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(15);

impl Backoff {
    /// Tries so far.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// The pause before the next try.
    pub(super) fn next(&mut self, policy: Policy) -> Duration {
        let steps = self.tries + if policy == Policy::SlowDown { 3 } else { 0 };
        self.tries = self.tries.saturating_add(1);
        let base = FIRST.saturating_mul(1 << steps.min(10)).min(LONGEST);
        base.mul_f64(0.75 + 0.5 * spread())
    }
}

/// A number in 0..1 that differs between processes and moments; nothing depends on its quality.
fn spread() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

type Report = dyn Fn(Option<&MirrorFailure>) + Send + Sync;

/// What was refused and accepted, which outlives connections: a table's refusals count on when another one changes its columns.
#[derive(Default)]
pub(super) struct Answers {
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
pub(super) struct RetryObserver {
    report: Arc<Report>,
    liveness: Arc<Liveness>,
    answers: Arc<Answers>,
}

impl RetryObserver {
    /// `report` is called with what is being repeated, and with `None` when nothing is any more.
    pub(super) fn new(
        liveness: Arc<Liveness>,
        answers: Arc<Answers>,
        report: impl Fn(Option<&MirrorFailure>) + Send + Sync + 'static,
    ) -> Self {
        RetryObserver { report: Arc::new(report), liveness, answers }
    }

    /// Reports what is being repeated: what concerns the whole Mirror before what concerns a table, and the oldest first.
    pub(super) fn report(&self) {
        let repeated = self.repeated();
        let of_the_mirror = repeated.values().find(|repeated| repeated.at_table.is_none());
        let shown = of_the_mirror.or_else(|| repeated.values().next());
        (self.report)(shown.map(|repeated| &repeated.failure));
    }

    /// A server is waited for, until the guard is dropped.
    pub(super) fn outside(&self) -> Outside {
        self.liveness.outside()
    }

    fn repeated(&self) -> MutexGuard<'_, BTreeMap<u64, Repeated>> {
        self.answers.repeated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<TableId, Refusals>> {
        self.answers.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, table: &TableId) {
        let mut accepted = self.answers.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.insert(table.clone(), Instant::now());
        drop(accepted);
        self.refused().remove(table);
    }

    /// Counts a refusal, and gives their number once there were enough of them for it to be the table's own.
    fn refuse(&self, table: &TableId, patience: Option<Patience>) -> Option<u32> {
        let beside_others = |since: Instant| {
            let accepted = self.answers.accepted.lock().unwrap_or_else(PoisonError::into_inner);
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
struct Repeating<'a> {
    observer: &'a RetryObserver,
    scope: Scope<'a>,
    /// Where it is among what is repeated, from the first report on.
    place: Option<u64>,
}

impl Repeating<'_> {
    fn report(&mut self, error: &Error) {
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
    fn end(mut self) {
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

/// How long a refusal is repeated until it counts as a table's own: time and tries have to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patience {
    time: Duration,
    tries: u32,
    /// Whether only a refusal counts before which another table's statement was accepted since the one before: what the server as a whole
    /// refuses is no table's own, however long it lasts.
    beside_others: bool,
}

impl Patience {
    const fn new(seconds: u64, tries: u32) -> Self {
        Patience { time: Duration::from_secs(seconds), tries, beside_others: false }
    }
}

/// Where a refusal doesn't say whether it will pass.
const UNCLEAR: Patience = Patience::new(120, 10);

/// Where a privilege is missing, which doesn't pass: long enough for a user or a database that is just made again.
const DENIED: Patience = Patience::new(30, 5);

/// Where a table has too many parts: long enough for merges to keep up again.
const TOO_MANY_PARTS: Patience = Patience::new(600, 10);

/// Where a condition of the server is met by one table alone: a view on it that needs much memory, a limit that only this table has.
const BY_ONE_TABLE: Patience = Patience { beside_others: true, ..Patience::new(600, 10) };

/// While others wait for the table to begin.
const AT_THE_START: Patience = Patience::new(1, 4);

/// Repeats `attempt` while its error is one that passes, until `stop`, which also ends an attempt that hangs. What does not say whether
/// it will pass is repeated for two minutes.
///
/// `observer` hears of each error before the pause, and of the success after one, so that a status can show it.
///
/// # Errors
/// The first error that does not pass, or [`Error::Stopped`].
pub(super) async fn retry<T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, observer, Scope::Mirror, attempt).await
}

/// As [`retry`], for what the destination is asked to do to one table: what is refused for that table alone, for as long as
/// [`Scope::patience`] says, becomes the table's own fault, so that the others go on. Where all are refused, the state table is too, and
/// with it the record that the table has failed: that is the Mirror's.
///
/// # Errors
/// As [`retry`].
pub(super) async fn retry_for_table<D, T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    table: &Table<D>,
    attempt: F,
) -> Result<T, Error>
where
    D: Destination,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, observer, Scope::of(table, Others::Stream), attempt).await
}

/// The same while the stream waits for it, and so all other tables.
///
/// # Errors
/// As [`retry`].
pub(super) async fn retry_in_stream<D, T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    table: &Table<D>,
    attempt: F,
) -> Result<T, Error>
where
    D: Destination,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, observer, Scope::of(table, Others::WaitInStream), attempt).await
}

/// Does something to one table at the destination before anything streams. What may stay refused is the table's own fault after a few
/// tries, also for want of a privilege: the state table was read and written just before. Any other error is given back, for the
/// session to begin again.
///
/// # Errors
/// The first error that is no such refusal, such a one as the table's own, or [`Error::Stopped`].
pub(super) async fn start_table<T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    table: &TableId,
    attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, observer, Scope::Table { id: table, progress: None, others: Others::WaitToBegin }, attempt)
        .await
}

/// What a statement is about.
#[derive(Clone, Copy)]
enum Scope<'a> {
    Mirror,
    Table { id: &'a TableId, progress: Option<&'a Arc<TableProgress>>, others: Others },
}

/// What other tables do while one's statement is repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    /// They stream.
    Stream,
    /// They wait for the change that comes next in the stream.
    WaitInStream,
    /// Nothing streams yet.
    WaitToBegin,
}

impl<'a> Scope<'a> {
    /// One table that has begun.
    fn of<D: Destination>(table: &'a Table<D>, others: Others) -> Self {
        Scope::Table { id: &table.id, progress: Some(&table.progress), others }
    }

    /// How long a refusal is repeated until it is the table's own; `None` for what is not repeated for a table's sake. Total: a new
    /// kind has to be placed here.
    fn patience(self, error: &Error) -> Option<Patience> {
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

    /// The error that a refusal has become.
    fn for_good(self, error: Error, tries: u32) -> Error {
        match self {
            Scope::Mirror => error.for_good_of_mirror(tries),
            Scope::Table { .. } => error.for_good(tries),
        }
    }

    /// Whether an error is given back at once.
    fn gives_back(self, error: &Error, policy: Policy) -> bool {
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
struct Refusals {
    patience: Option<Patience>,
    since: Option<Instant>,
    last: Option<Instant>,
    count: u32,
}

/// Refusals that lie further apart are none in a row: an attempt may wait for its answer, but not so long.
const FORGOTTEN: Duration = Duration::from_secs(300);

impl Refusals {
    /// Counts one, and gives their number once there were enough of them. `beside_others` says whether others were accepted since a
    /// moment.
    fn exhaust(
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
pub(super) struct SessionErrors(Refusals);

impl SessionErrors {
    /// Counts a session's end: an error that doesn't say whether it will pass becomes one of the Mirror after some of them.
    pub(super) fn judge(&mut self, error: Error) -> Error {
        match self.0.exhaust(mirror_patience(&error), |_| true) {
            Some(times) => error.for_good_of_mirror(times),
            None => error,
        }
    }
}

async fn repeat<T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    scope: Scope<'_>,
    mut attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let mut backoff = Backoff::default();
    let mut refusals = Refusals::default();
    let mut repeating = Repeating { observer, scope, place: None };
    let _outside = observer.outside();
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = attempt() => outcome,
            () = stop.cancelled() => return Err(Error::Stopped),
        };
        let error = match outcome {
            Ok(value) => {
                if let Scope::Table { id, .. } = scope {
                    observer.accept(id);
                }
                repeating.end();
                return Ok(value);
            }
            Err(error) => error,
        };
        let (policy, reason) = policy(&error);
        if scope.gives_back(&error, policy) {
            return Err(error);
        }
        let times = match scope {
            Scope::Table { id, .. } => observer.refuse(id, scope.patience(&error)),
            Scope::Mirror => refusals.exhaust(scope.patience(&error), |_| true),
        };
        if let Some(times) = times {
            repeating.end();
            return Err(scope.for_good(error, times));
        }
        let pause = backoff.next(policy);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(%reason, %error, try_number = backoff.tries(), pause_ms, "will try again");
        repeating.report(&error);
        tokio::select! {
            () = stop.cancelled() => return Err(Error::Stopped),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fault::Reason,
        model::{MirrorIdentity, Progress},
        replication::DestinationError,
    };

    #[test]
    fn grows_and_stays_bounded() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.next(Policy::Retry)).collect();
        assert!(pauses[0] < Duration::from_millis(130));
        assert!(pauses[3] > pauses[0]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST.mul_f64(1.25)));
    }

    #[test]
    fn an_overloaded_side_gets_a_longer_pause() {
        assert!(Backoff::default().next(Policy::SlowDown) > Backoff::default().next(Policy::Retry));
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_until_it_works_and_not_for_what_stays() {
        let stop = CancellationToken::new();
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let mut tries = 0;
        let answer = retry(&stop, &observer, || {
            tries += 1;
            let done = tries == 3;
            async move { if done { Ok(7) } else { Err(Error::Protocol("x")) } }
        });
        assert_eq!(answer.await.unwrap(), 7);
        let refused = retry(&stop, &observer, || async {
            Err::<(), _>(Error::SlotMissing { slot: "s".into(), since: crate::model::Lsn(1) })
        });
        assert!(matches!(refused.await, Err(Error::SlotMissing { .. })));
    }

    fn refusal(kind: ErrorKind) -> Error {
        let message = "code 123456: odd".to_owned();
        let reason = match kind {
            ErrorKind::Denied => Reason::DestinationAccessDenied,
            ErrorKind::Refused => Reason::DestinationTlsFailed,
            _ => Reason::DestinationError,
        };
        Error::Destination(DestinationError { kind, reason, message, remedies: Vec::new(), source: None })
    }

    /// What a table's loop is told, without a table.
    fn of(table: &TableId) -> Scope<'_> {
        Scope::Table { id: table, progress: None, others: Others::Stream }
    }

    fn table(name: &str) -> TableId {
        TableId::new("public", name)
    }

    /// How long it takes until a refusal is the table's own.
    async fn given_up_after(scope: Scope<'_>, kind: ErrorKind) -> Duration {
        let stop = CancellationToken::new();
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let began = Instant::now();
        let error =
            repeat(&stop, &observer, scope, || async { Err::<(), _>(refusal(kind)) }).await.unwrap_err();
        assert_eq!(super::policy(&error).0, Policy::FailTable);
        assert!(error.to_string().contains("it was refused "), "{error}");
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_a_table_becomes_its_own_in_time() {
        let table = table("t");
        for (kind, time) in [
            (ErrorKind::Unclear, UNCLEAR.time),
            (ErrorKind::Denied, DENIED.time),
            (ErrorKind::TableOverloaded, TOO_MANY_PARTS.time),
        ] {
            let took = given_up_after(of(&table), kind).await;
            assert!(took >= time && took < 2 * time, "{kind:?}: {took:?}");
        }
        let in_stream = Scope::Table { id: &table, progress: None, others: Others::WaitInStream };
        for kind in [ErrorKind::Unclear, ErrorKind::Denied, ErrorKind::TableOverloaded] {
            let took = given_up_after(in_stream, kind).await;
            assert!(took >= DENIED.time && took < 2 * DENIED.time, "{kind:?}: {took:?}");
        }
        let at_the_start = Scope::Table { id: &table, progress: None, others: Others::WaitToBegin };
        for kind in [ErrorKind::Unclear, ErrorKind::Denied] {
            assert!(given_up_after(at_the_start, kind).await < Duration::from_secs(10));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_concerns_no_table_is_given_back_or_repeated() {
        let stop = CancellationToken::new();
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let began = Instant::now();
        let error = retry(&stop, &observer, || async { Err::<(), _>(refusal(ErrorKind::Denied)) }).await;
        assert_eq!(super::policy(&error.unwrap_err()).0, Policy::Stall);
        // What concerns no statement is nobody's but the Mirror's.
        let table = table("t");
        let refused = || async { Err::<(), _>(refusal(ErrorKind::Refused)) };
        let error = repeat(&stop, &observer, of(&table), refused).await.unwrap_err();
        assert_eq!(super::policy(&error).0, Policy::Stall);
        // Before anything streams, what passes is given back for the session to begin again.
        let lost = || async { Err::<(), _>(refusal(ErrorKind::Transient)) };
        let error = start_table(&stop, &observer, &table, lost).await.unwrap_err();
        assert_eq!((super::policy(&error).0, began.elapsed()), (Policy::Retry, Duration::ZERO));
        stop.cancel();
        let unclear = || async {
            tokio::task::yield_now().await;
            Err::<(), _>(refusal(ErrorKind::Unclear))
        };
        assert!(matches!(start_table(&stop, &observer, &table, unclear).await, Err(Error::Stopped)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_refuses_is_a_table_s_own_only_beside_others() {
        let stop = CancellationToken::new();
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let (table, other) = (table("t"), table("other"));
        for kind in [ErrorKind::Transient, ErrorKind::Overloaded] {
            let refused = || repeat(&stop, &observer, of(&table), || async { Err::<(), _>(refusal(kind)) });
            let hours = Duration::from_secs(7200);
            assert!(tokio::time::timeout(hours, refused()).await.is_err(), "{kind:?} of all tables");
            let accepted = async {
                loop {
                    repeat(&stop, &observer, of(&other), || async { Ok(()) }).await.unwrap();
                    tokio::time::sleep(Duration::from_secs(20)).await;
                }
            };
            let began = Instant::now();
            let error: Error = tokio::select! {
                refused = refused() => refused.unwrap_err(),
                () = accepted => unreachable!(),
            };
            assert_eq!(super::policy(&error).0, Policy::FailTable);
            assert!(began.elapsed() >= BY_ONE_TABLE.time && began.elapsed() < 2 * BY_ONE_TABLE.time);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_begins_the_count_again() {
        let stop = CancellationToken::new();
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let table = table("t");
        let mut tries = 0_u32;
        let outcome = repeat(&stop, &observer, of(&table), || {
            tries += 1;
            let now = tries;
            async move {
                match now {
                    // Half an hour of transient faults, with an unclear one now and then.
                    1..=120 if now.is_multiple_of(9) => Err(refusal(ErrorKind::Unclear)),
                    1..=120 => Err(refusal(ErrorKind::Transient)),
                    _ => Ok(now),
                }
            }
        });
        assert_eq!(outcome.await.unwrap(), 121);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unclear_of_no_table_stalls_the_mirror() {
        let stop = CancellationToken::new();
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let began = Instant::now();
        let unclear = retry(&stop, &observer, || async { Err::<(), _>(refusal(ErrorKind::Unclear)) });
        let error = unclear.await.unwrap_err();
        assert_eq!(super::policy(&error), (Policy::Stall, Reason::DestinationError));
        assert!(error.to_string().contains("it was refused "), "{error}");
        assert!(began.elapsed() >= UNCLEAR.time && began.elapsed() < 2 * UNCLEAR.time);
        let transient = tokio::time::timeout(Duration::from_secs(3600), async {
            retry(&stop, &observer, || async { Err::<(), _>(refusal(ErrorKind::Transient)) }).await
        });
        assert!(transient.await.is_err(), "what passes is tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_end_unclearly_stall_the_mirror() {
        let mut ends = SessionErrors::default();
        let mut policy_after = async |seconds: u64, kind: ErrorKind| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            super::policy(&ends.judge(refusal(kind))).0
        };
        for _ in 0..20 {
            assert_eq!(policy_after(13, ErrorKind::Unclear).await, Policy::Retry);
            assert_eq!(policy_after(1, ErrorKind::Transient).await, Policy::Retry, "it is counted again");
        }
        for _ in 0..10 {
            assert_eq!(policy_after(13, ErrorKind::Unclear).await, Policy::Retry);
        }
        assert_eq!(policy_after(13, ErrorKind::Unclear).await, Policy::Stall);
        assert_eq!(policy_after(30, ErrorKind::Unclear).await, Policy::Stall, "until it has passed");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_repeated_is_shown_until_all_of_it_has_passed() {
        let stop = CancellationToken::new();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let report = Arc::clone(&shown);
        let observer =
            RetryObserver::new(Arc::default(), Arc::default(), move |failure: Option<&MirrorFailure>| {
                report.lock().unwrap().push(failure.map(|failure| failure.reason));
            });
        let (table, other) = (table("t"), table("other"));
        let progress = Arc::new(TableProgress::default());
        let scope = Scope::Table { id: &table, progress: Some(&progress), others: Others::Stream };
        let refused =
            repeat(&stop, &observer, scope, || async { Err::<(), _>(refusal(ErrorKind::TableOverloaded)) });
        let mut tries = 0;
        let passes = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let passed = repeat(&stop, &observer, of(&other), || {
                tries += 1;
                let done = tries == 3;
                async move { if done { Ok(()) } else { Err(refusal(ErrorKind::Transient)) } }
            });
            passed.await.unwrap();
            shown.lock().unwrap().last().copied()
        };
        let (given_up, while_repeated) = tokio::join!(refused, passes);
        assert!(given_up.is_err());
        assert_eq!(while_repeated, Some(Some(Reason::DestinationError)), "the other's is still repeated");
        assert_eq!(shown.lock().unwrap().last(), Some(&None));
    }

    #[test]
    fn of_two_repetitions_of_a_table_the_one_left_is_shown_in_its_words() {
        let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
        let id = table("t");
        let mirror = MirrorIdentity { namespace: "n".into(), name: "m".into(), uid: "u".into() };
        let all = Progress::new(&mirror);
        let progress = all.table(&id);
        let scope = Scope::Table { id: &id, progress: Some(&progress), others: Others::Stream };
        let repeating = || Repeating { observer: &observer, scope, place: None };
        let (mut first, mut second) = (repeating(), repeating());
        let refused = |why: &str| Error::table(&id, Reason::DestinationError, why);
        first.report(&refused("first"));
        second.report(&refused("second"));
        let shown = || all.report().tables[0].message.clone();
        assert_eq!(shown(), "second");
        second.end();
        assert_eq!(shown(), "first", "without the table's name");
        first.end();
        assert_eq!(shown(), "");
    }
}
