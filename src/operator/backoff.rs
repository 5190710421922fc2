//! How long to wait before an object is reconciled again after a failure.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use crate::model::lock;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// An exponential backoff for each object: 1 s, 2 s, 4 s and so on to 60 s, until the object succeeds.
#[derive(Debug, Default)]
pub(super) struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// The pause after one more failure of the object with this UID.
    pub(super) fn next(&self, uid: &str) -> Duration {
        let mut failures = lock(&self.0);
        let failures = failures.entry(uid.to_owned()).or_default();
        let pause = pause(*failures);
        *failures = failures.saturating_add(1);
        pause
    }

    /// Forgets the failures of an object that has succeeded or is gone.
    pub(super) fn reset(&self, uid: &str) {
        lock(&self.0).remove(uid);
    }
}

fn pause(failures: u32) -> Duration {
    FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_minute_for_each_object_until_it_succeeds() {
        let backoff = Backoff::default();
        let seconds: Vec<u64> = (0..8).map(|_| backoff.next("a").as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.next("b"), FIRST);
        backoff.reset("a");
        assert_eq!(backoff.next("a"), FIRST);
        assert_eq!(pause(u32::MAX), LONGEST);
    }
}
