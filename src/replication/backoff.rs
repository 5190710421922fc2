//! Pauses between tries.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Error, Policy, policy};
use crate::model::{Liveness, Outside};

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

type Report = dyn Fn(Option<&Error>) + Send + Sync;

/// Hears of what is tried.
#[derive(Clone)]
pub(super) struct Notice {
    report: Arc<Report>,
    liveness: Arc<Liveness>,
}

impl Notice {
    /// `report` is called with each fault that is being retried, and with `None` when it has passed.
    pub(super) fn new(
        liveness: Arc<Liveness>,
        report: impl Fn(Option<&Error>) + Send + Sync + 'static,
    ) -> Self {
        Notice { report: Arc::new(report), liveness }
    }

    /// A fault is being retried, or has passed.
    pub(super) fn report(&self, error: Option<&Error>) {
        (self.report)(error);
    }

    /// A server is waited for, until the guard is dropped.
    pub(super) fn outside(&self) -> Outside {
        self.liveness.outside()
    }
}

/// How long a refusal that doesn't say whose fault it is is repeated until it counts as a table's own: both have to be over.
#[derive(Clone, Copy, Debug)]
struct Patience {
    time: Duration,
    tries: u32,
}

/// While others stream meanwhile.
const OF_A_TABLE: Patience = Patience { time: Duration::from_secs(120), tries: 10 };

/// The same where a privilege is missing, which doesn't pass: long enough for a user or a database that is just made again.
const DENIED: Patience = Patience { time: Duration::from_secs(30), tries: 5 };

/// While others wait for it to begin.
const AT_THE_START: Patience = Patience { time: Duration::from_secs(1), tries: 4 };

/// Repeats `attempt` while its error is one that passes, until `stop`, which also ends an attempt that hangs.
///
/// `notice` hears of each fault before the pause, and of the success after one, so that a status can show it.
///
/// # Errors
/// The first error that does not pass, or [`Error::Stopped`].
pub(super) async fn retry<T, F, Fut>(
    stop: &CancellationToken,
    notice: &Notice,
    attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, notice, Scope::Mirror, attempt).await
}

/// As [`retry`], for what the destination is asked to do to one table: a refusal that may stay, repeated for two minutes, or one for want
/// of a privilege, repeated for half a minute, becomes the table's own fault, so that the others go on. Where all are refused, the state
/// table is too, and with it the record that the table has failed: that stalls the Mirror.
///
/// # Errors
/// As [`retry`].
pub(super) async fn retry_for_table<T, F, Fut>(
    stop: &CancellationToken,
    notice: &Notice,
    attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, notice, Scope::Table, attempt).await
}

/// Does something to one table at the destination before anything streams. What may stay refused is the table's own fault after a few
/// tries, also for want of a privilege: the state table was read and written just before. Any other error is given back.
///
/// # Errors
/// The first error that is no such refusal, or such a one as the table's own.
pub(super) async fn start_table<T, F, Fut>(mut attempt: F) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let (mut backoff, mut refusals) = (Backoff::default(), Refusals::default());
    loop {
        let error = match attempt().await {
            Err(error) if error.may_be_of_table() => error,
            outcome => return outcome,
        };
        if refusals.exhaust(&error, AT_THE_START) {
            return Err(error.for_good(refusals.count));
        }
        tokio::time::sleep(backoff.next(Policy::Retry)).await;
    }
}

/// What a statement is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Mirror,
    Table,
}

/// Refusals in a row that don't say whose fault they are.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
    count: u32,
}

impl Refusals {
    /// Counts one, and says whether there were enough of them.
    fn exhaust(&mut self, error: &Error, patience: Patience) -> bool {
        if !error.may_be_of_table() {
            *self = Refusals::default();
            return false;
        }
        self.count = self.count.saturating_add(1);
        let since = *self.since.get_or_insert_with(Instant::now);
        self.count >= patience.tries && since.elapsed() >= patience.time
    }
}

async fn repeat<T, F, Fut>(
    stop: &CancellationToken,
    notice: &Notice,
    scope: Scope,
    mut attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let (mut backoff, mut refusals) = (Backoff::default(), Refusals::default());
    let _outside = notice.outside();
    loop {
        let outcome = tokio::select! {
            biased;
            outcome = attempt() => outcome,
            () = stop.cancelled() => return Err(Error::Stopped),
        };
        let error = match outcome {
            Ok(value) => {
                if backoff.tries() > 0 {
                    notice.report(None);
                }
                return Ok(value);
            }
            Err(error) => error,
        };
        let (policy, reason) = policy(&error);
        let denied = scope == Scope::Table && error.is_denied();
        if !(denied || matches!(policy, Policy::Retry | Policy::SlowDown)) {
            return Err(error);
        }
        if scope == Scope::Table && refusals.exhaust(&error, if denied { DENIED } else { OF_A_TABLE }) {
            notice.report(None);
            return Err(error.for_good(refusals.count));
        }
        let pause = backoff.next(policy);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(%reason, %error, try_number = backoff.tries(), pause_ms, "will try again");
        notice.report(Some(&error));
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
        replication::{DestinationError, ErrorKind},
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
        let notice = Notice::new(Arc::default(), |_| ());
        let mut tries = 0;
        let answer = retry(&stop, &notice, || {
            tries += 1;
            let done = tries == 3;
            async move { if done { Ok(7) } else { Err(Error::Protocol("x")) } }
        });
        assert_eq!(answer.await.unwrap(), 7);
        let refused = retry(&stop, &notice, || async {
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

    #[tokio::test(start_paused = true)]
    async fn an_unclear_refusal_of_a_table_becomes_its_own_after_minutes() {
        let stop = CancellationToken::new();
        let notice = Notice::new(Arc::default(), |_| ());
        let began = Instant::now();
        let refused = || async { Err::<(), _>(refusal(ErrorKind::Unclear)) };
        let error = retry_for_table(&stop, &notice, refused).await.unwrap_err();
        assert_eq!(super::policy(&error).0, Policy::FailTable);
        assert!(error.to_string().contains("it was refused 1"), "{error}");
        let took = began.elapsed();
        assert!(took >= OF_A_TABLE.time && took < 2 * OF_A_TABLE.time, "{took:?}");

        let began = Instant::now();
        let error = start_table(refused).await.unwrap_err();
        assert_eq!(super::policy(&error).0, Policy::FailTable);
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_privilege_is_a_table_s_own_after_half_a_minute_and_the_mirror_s_at_once() {
        let stop = CancellationToken::new();
        let notice = Notice::new(Arc::default(), |_| ());
        let began = Instant::now();
        let refused = || async { Err::<(), _>(refusal(ErrorKind::Denied)) };
        let error = retry(&stop, &notice, refused).await.unwrap_err();
        assert_eq!((super::policy(&error).0, began.elapsed()), (Policy::Stall, Duration::ZERO));
        let error = retry_for_table(&stop, &notice, refused).await.unwrap_err();
        assert_eq!(super::policy(&error).0, Policy::FailTable);
        let took = began.elapsed();
        assert!(took >= DENIED.time && took < 2 * DENIED.time, "{took:?}");
        assert_eq!(super::policy(&start_table(refused).await.unwrap_err()).0, Policy::FailTable);
        // What concerns no statement is nobody's but the Mirror's.
        let error = retry_for_table(&stop, &notice, || async { Err::<(), _>(refusal(ErrorKind::Refused)) });
        assert_eq!(super::policy(&error.await.unwrap_err()).0, Policy::Stall);
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_never_a_table_s_own_and_begins_the_count_anew() {
        let stop = CancellationToken::new();
        let notice = Notice::new(Arc::default(), |_| ());
        let mut tries = 0_u32;
        let outcome = retry_for_table(&stop, &notice, || {
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
        let ended = tokio::time::timeout(Duration::from_secs(3600), async {
            retry(&stop, &notice, || async { Err::<(), _>(refusal(ErrorKind::Unclear)) }).await
        });
        assert!(ended.await.is_err(), "what concerns no table is tried again");
    }
}
