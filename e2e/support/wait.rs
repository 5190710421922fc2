//! Waiting for events with a deadline, instead of sleeping for a fixed time.

use std::time::{Duration, Instant};

/// Generous, because a loaded machine is slow. Only a test that fails reaches it.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Calls `look` every few milliseconds until it returns something. Panics after [`DEADLINE`] and names what
/// was awaited.
#[track_caller]
pub fn until<T>(awaited: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "{awaited}: did not happen within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `holds` returns true.
#[track_caller]
pub fn eventually(awaited: &str, mut holds: impl FnMut() -> bool) {
    until(awaited, || holds().then_some(()));
}
