//! Tells a backlog from single transactions, and has reads coalesce while there is one.

use std::time::{Duration, Instant};

/// This much within [`BUSY_WITHIN`] means that the source has more than was read.
const BACKLOG_BYTES: usize = 8 << 10;

/// How long the socket is left to fill while there is a backlog: the walsender wakes a waiting reader once a
/// row.
const COALESCE_FOR: Duration = Duration::from_millis(2);

/// A backlog is what keeps coming: reads do not coalesce for a lone transaction, however large.
const BUSY_WITHIN: Duration = Duration::from_millis(8);

/// Tells a backlog from single transactions, by what has come since it was asked last.
///
/// One read's size can't: a waiting reader gets a few rows at a time, however long the queue behind them is.
pub(super) struct BacklogDetector {
    since: Instant,
    bytes: usize,
    last_read: Instant,
}

impl BacklogDetector {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        BacklogDetector { since: now, bytes: 0, last_read: now }
    }

    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.last_read = Instant::now();
    }

    /// Whether there is more than was read. Counts from zero again when there is, or when too little came for
    /// too long.
    pub(super) fn backlog(&mut self) -> bool {
        let busy = self.bytes >= BACKLOG_BYTES;
        if busy || self.since.elapsed() > BUSY_WITHIN {
            self.bytes = 0;
            self.since = Instant::now();
        }
        busy
    }

    /// Until when reads coalesce.
    pub(super) fn next_read(&self) -> Instant {
        self.last_read + COALESCE_FOR
    }
}
