//! Pauses between tries.

use std::time::Duration;

use crate::replication::Policy;

/// Grows from 100 ms to 15 s, doubling, with the fraction that spreads many Mirrors apart taken from the
/// clock.
#[derive(Debug, Default)]
pub(in crate::replication) struct Backoff {
    tries: u32,
}

const FIRST: Duration = Duration::from_millis(100);

const LONGEST: Duration = Duration::from_secs(15);

impl Backoff {
    /// Tries so far.
    pub(in crate::replication) fn tries(&self) -> u32 {
        self.tries
    }

    /// The pause before the next try.
    pub(in crate::replication) fn next(&mut self, policy: Policy) -> Duration {
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
}
