//! What a Mirror, and each of its tables, is doing.

use serde::{Deserialize, Serialize};

/// What is happening to one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableState {
    /// Not begun.
    #[default]
    Pending,
    /// Existing rows are being copied; changes stream meanwhile.
    Snapshotting,
    /// Only changes remain.
    Streaming,
    /// Stopped alone; its message says why.
    Failed,
}

/// What the Mirror as a whole is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MirrorPhase {
    /// Connecting, checking, creating publication, slot and target tables.
    #[default]
    Provisioning,
    /// At least one table is being copied; changes stream meanwhile.
    Snapshotting,
    /// All tables are copied; changes stream.
    Streaming,
    /// A transient error, retried automatically.
    Retrying,
    /// Manual action required; the failure says what to do.
    Stalled,
    /// Paused by `spec.suspend`.
    Suspended,
    /// Everything asked for is done (`snapshot.mode: InitialOnly`), or the process received a signal to stop.
    Finished,
    /// The Mirror is being deleted; a failure says what its clean-up waits for.
    Deleting,
}

impl MirrorPhase {
    /// All of them, in the order in which a Mirror may go through them.
    pub const ALL: [MirrorPhase; 8] = [
        MirrorPhase::Provisioning,
        MirrorPhase::Snapshotting,
        MirrorPhase::Streaming,
        MirrorPhase::Retrying,
        MirrorPhase::Stalled,
        MirrorPhase::Suspended,
        MirrorPhase::Finished,
        MirrorPhase::Deleting,
    ];
}
