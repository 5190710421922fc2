//! A wall clock that can be changed for one process.

use std::process::Command;

/// The replicator's wall clock.
pub(super) struct Clock {
    library: String,
    offset: tempfile::NamedTempFile,
}

impl Clock {
    /// The correct clock; `None` without libfaketime.
    pub(super) fn find() -> Option<Clock> {
        let servers = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/tools/servers");
        let found =
            Command::new(servers).arg("faketime").output().ok().filter(|found| found.status.success())?;
        let library = String::from_utf8(found.stdout).ok()?.trim().to_owned();
        let clock = Clock { library, offset: tempfile::NamedTempFile::new().ok()? };
        clock.set("+0");
        Some(clock)
    }

    /// Shifts it by an offset such as `-2h`.
    pub(super) fn set(&self, offset: &str) {
        std::fs::write(self.offset.path(), offset).unwrap();
    }

    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.path().display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}
