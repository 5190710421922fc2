//! Work that makes more work: the queue is at its end when no job is left and none is running that could add
//! one.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::Notify;

use crate::model::lock;

struct Inner<T> {
    jobs: VecDeque<T>,
    producers: usize,
    running: usize,
    closed: bool,
}

/// A queue of jobs for several workers.
pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    changed: Notify,
}

impl<T> Queue<T> {
    /// An empty queue with so many producers besides the workers.
    pub(super) fn new(producers: usize) -> Self {
        let inner = Inner { jobs: VecDeque::new(), producers, running: 0, closed: false };
        Queue { inner: Mutex::new(inner), changed: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        lock(&self.inner)
    }

    /// Adds a job.
    pub(super) fn push(&self, job: T) {
        self.inner().jobs.push_back(job);
        self.changed.notify_waiters();
    }

    /// A producer has nothing more to add.
    pub(super) fn producer_done(&self) {
        self.inner().producers -= 1;
        self.changed.notify_waiters();
    }

    /// Hands out no further job.
    pub(super) fn close(&self) {
        self.inner().closed = true;
        self.changed.notify_waiters();
    }

    /// The next job, or `None` when there will be none. Each job must be followed by [`Queue::done`].
    pub(super) async fn pop(&self) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut inner = self.inner();
                if inner.closed {
                    return None;
                }
                if let Some(job) = inner.jobs.pop_front() {
                    inner.running += 1;
                    return Some(job);
                }
                if inner.producers == 0 && inner.running == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// A job has ended.
    pub(super) fn done(&self) {
        self.inner().running -= 1;
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn ends_when_nothing_can_come_any_more() {
        let queue = Arc::new(Queue::new(1));
        queue.push(1);
        assert_eq!(queue.pop().await, Some(1));
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.pop().await }
        });
        queue.producer_done();
        queue.push(2);
        assert_eq!(waiting.await.unwrap(), Some(2), "the running job could add one");
        queue.done();
        queue.done();
        assert_eq!(queue.pop().await, None);
    }

    #[tokio::test]
    async fn closing_ends_the_wait() {
        let queue = Arc::new(Queue::<u8>::new(1));
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.pop().await }
        });
        queue.close();
        assert_eq!(waiting.await.unwrap(), None);
    }
}
