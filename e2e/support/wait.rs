//! Waiting for events: look until it is so, with a deadline, never a fixed nap.

use std::time::{Duration, Instant};

/// Generous, because a loaded machine is slow; reached only by a test that fails.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Looks every few milliseconds until `look` gives something. Panics after [`DEADLINE`] with what was awaited.
#[track_caller]
pub fn until<T>(awaited: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain for {awaited}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Looks until `holds` is true.
#[track_caller]
pub fn eventually(awaited: &str, mut holds: impl FnMut() -> bool) {
    until(awaited, || holds().then_some(()));
}
