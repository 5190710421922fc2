//! Tells a backlog from single transactions.

use std::time::{Duration, Instant};

/// This much within [`BUSY_WITHIN`] says that the source has more than we have taken.
const BACKLOG_BYTES: usize = 8 << 10;

/// How long the socket is left to fill while a backlog is there: the walsender wakes a hungry reader once a row.
const NAP: Duration = Duration::from_millis(2);

/// A backlog is what keeps coming: a lone transaction, however large, is not napped over.
const BUSY_WITHIN: Duration = Duration::from_millis(8);

/// Tells a backlog from single transactions, by what has come since the last nap.
///
/// One read's size can't: a hungry reader gets a few rows at a time, however long the queue behind them is.
pub(super) struct Pace {
    since: Instant,
    bytes: usize,
    last_read: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Pace { since: now, bytes: 0, last_read: now }
    }

    pub(super) fn read(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.last_read = Instant::now();
    }

    /// Whether more is there than we have taken; counts anew when it says so, or when too little came for too long.
    pub(super) fn backlog(&mut self) -> bool {
        let busy = self.bytes >= BACKLOG_BYTES;
        if busy || self.since.elapsed() > BUSY_WITHIN {
            self.bytes = 0;
            self.since = Instant::now();
        }
        busy
    }

    pub(super) fn next_read(&self) -> Instant {
        self.last_read + NAP
    }
}
