//! The error that ends a stream, whichever of its tasks meets it.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::{model::lock, replication::Error};

/// Where tasks report an error that ends the whole stream. Reporting never waits, so a task that holds
/// something that others wait for can always go on to release it. Clones share the place.
#[derive(Clone, Debug, Default)]
pub(in crate::replication) struct Fatal(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    first: Mutex<Option<Error>>,
    reported: Notify,
}

impl Fatal {
    /// Reports an error. The first one ends the stream; what a later one is about comes again with the next
    /// stream.
    pub(in crate::replication) fn report(&self, error: Error) {
        let mut first = lock(&self.0.first);
        if first.is_some() {
            tracing::debug!(%error, "the stream is ending already");
            return;
        }
        *first = Some(error);
        drop(first);
        self.0.reported.notify_one();
    }

    /// Waits for the first error that is reported, and takes it. Cancel-safe. Only one task may wait.
    pub(in crate::replication) async fn reported(&self) -> Error {
        loop {
            let first = lock(&self.0.first).take();
            match first {
                Some(error) => return error,
                None => self.0.reported.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn many_reports_wait_for_nobody_and_the_first_one_counts() {
        let fatal = Fatal::default();
        for _ in 0..1000 {
            fatal.report(Error::Protocol("the same"));
        }
        assert!(matches!(fatal.reported().await, Error::Protocol("the same")));
        let waiting = tokio::spawn({
            let fatal = fatal.clone();
            async move { fatal.reported().await }
        });
        tokio::task::yield_now().await;
        fatal.report(Error::Stopped);
        assert!(matches!(waiting.await.unwrap(), Error::Stopped));
    }
}
