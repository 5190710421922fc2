//! Distinguishes work that progresses, or waits for a server, from work that is deadlocked.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::lock;

/// How long nothing may move while nothing outside is waited for. Longer than any answer that is waited for
/// without saying so.
const STUCK_AFTER: Duration = Duration::from_secs(600);

/// What a liveness probe asks of a Mirror. Retries count as movement, however long they last: a server that
/// is away is no reason to start the process again.
#[derive(Debug, Default)]
pub struct Liveness(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When something last moved; `None` when nothing is to move.
    moved: Option<Instant>,
    /// Waits for servers that are under way.
    outside: usize,
}

impl Liveness {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Something moves.
    pub fn moved(&self) {
        self.moved_at(Instant::now());
    }

    /// Something has moved then.
    pub fn moved_at(&self, at: Instant) {
        self.state().moved = Some(at);
    }

    /// Nothing is to move from now on: the Mirror is suspended, done or stopping.
    pub fn rest(&self) {
        self.state().moved = None;
    }

    /// A server is waited for, until the guard is dropped.
    pub fn outside(self: &Arc<Self>) -> Outside {
        self.state().outside += 1;
        Outside(Arc::clone(self))
    }

    /// For how long nothing has moved, where that is too long.
    pub fn stuck(&self) -> Option<Duration> {
        let state = self.state();
        let still = state.moved.filter(|_| state.outside == 0)?.elapsed();
        (still >= STUCK_AFTER).then_some(still)
    }
}

/// A wait for a server.
#[derive(Debug)]
pub struct Outside(Arc<Liveness>);

impl Drop for Outside {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.outside -= 1;
        // What rests stays at rest.
        state.moved = state.moved.map(|_| Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_means_waiting_for_nothing_outside() {
        let liveness = Arc::new(Liveness::default());
        assert_eq!(liveness.stuck(), None, "nothing has begun");
        let long_ago = Instant::now().checked_sub(STUCK_AFTER * 2).unwrap();
        liveness.moved_at(long_ago);
        assert!(liveness.stuck().is_some());
        let outside = liveness.outside();
        assert_eq!(liveness.stuck(), None, "a server is waited for");
        drop(outside);
        assert_eq!(liveness.stuck(), None, "it has answered just now");
        liveness.moved_at(long_ago);
        liveness.rest();
        drop(liveness.outside());
        assert_eq!(liveness.stuck(), None);
    }
}
