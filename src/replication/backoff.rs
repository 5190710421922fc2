//! Pauses between tries.

use std::{sync::Arc, time::Duration};

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

/// Repeats `attempt` while its error is one that passes, until `stop`, which also ends an attempt that hangs.
///
/// `notice` hears of each fault before the pause, and of the success after one, so that a status can show it.
///
/// # Errors
/// The first error that does not pass, or [`Error::Stopped`].
pub(super) async fn retry<T, F, Fut>(
    stop: &CancellationToken,
    notice: &Notice,
    mut attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let mut backoff = Backoff::default();
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
        if !matches!(policy, Policy::Retry | Policy::SlowDown) {
            return Err(error);
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
}
