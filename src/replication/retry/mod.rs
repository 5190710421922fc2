//! Repeats what was refused: with pauses, and for how long.

mod backoff;
mod observer;
mod patience;

use tokio_util::sync::CancellationToken;

pub(super) use self::{
    backoff::Backoff,
    observer::{Answers, RetryObserver},
    patience::{RetriedTable, SessionErrors},
};
use self::{
    observer::Repeating,
    patience::{Others, Refusals, Scope},
};
use super::{Error, policy};
use crate::model::TableId;

/// Repeats `attempt` while its error is one that passes, until `stop`, which also ends an attempt that hangs.
/// What does not say whether it will pass is repeated for two minutes.
///
/// `observer` hears of each error before the pause, and of the success after one, so that a status can show
/// it.
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

/// As [`retry`], for what the destination is asked to do to one table: what is refused for that table alone,
/// for as long as [`Scope::patience`] says, becomes the table's own fault, so that the others continue. Where
/// all are refused, the state table is too, and with it the record that the table has failed: that is the
/// Mirror's.
///
/// # Errors
/// As [`retry`].
pub(super) async fn retry_for_table<T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    table: &impl RetriedTable,
    attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, observer, Scope::of(table, Others::Stream), attempt).await
}

/// The same while the stream waits for it, and so all other tables.
///
/// # Errors
/// As [`retry`].
pub(super) async fn retry_in_stream<T, F, Fut>(
    stop: &CancellationToken,
    observer: &RetryObserver,
    table: &impl RetriedTable,
    attempt: F,
) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    repeat(stop, observer, Scope::of(table, Others::WaitInStream), attempt).await
}

/// Does something to one table at the destination before anything streams. What may stay refused is the
/// table's own fault after a few tries, also for want of a privilege: the state table was read and written
/// just before. Any other error is given back, for the session to begin again.
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
    let mut repeating = Repeating::new(observer, scope);
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
            return Err(scope.exhausted(error, times));
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
mod tests;
