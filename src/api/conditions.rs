//! Condition types and reasons: the words that `kubectl`, `/status` and alerts see, kept stable.
//!
//! `Ready` is always there. `Reconciling` and `Stalled` are there only while they are true, and never both: `Stalled` exactly when
//! a human is needed. The others stay. Tools that follow kstatus (`kubectl wait`, Flux, Argo CD) read them without configuration.

/// Rows flow, or nothing more is asked for.
pub const READY: &str = "Ready";
/// Work is going on or is tried again.
pub const RECONCILING: &str = "Reconciling";
/// Nothing will happen until a human acts; the message says how.
pub const STALLED: &str = "Stalled";
/// The source can be used.
pub const SOURCE_READY: &str = "SourceReady";
/// The destination can be used.
pub const DESTINATION_READY: &str = "DestinationReady";
/// The rows that were there at the start are copied.
pub const SNAPSHOTTED: &str = "Snapshotted";
/// Changes flow.
pub const STREAMING: &str = "Streaming";
/// The destination has everything that the source has committed.
pub const CAUGHT_UP: &str = "CaughtUp";

/// Reasons. Those of faults begin with the side they lie on: `Source…` or `Destination…`.
pub mod reason {
    /// Not there yet, and on the way.
    pub const PROGRESSING: &str = "Progressing";
    /// A passing fault; tried again by itself.
    pub const PROGRESSING_WITH_RETRY: &str = "ProgressingWithRetry";
    /// Connecting, checking, making publication, slot and target tables.
    pub const PROVISIONING: &str = "Provisioning";
    /// Existing rows are being copied.
    pub const SNAPSHOTTING: &str = "Snapshotting";
    /// Changes flow.
    pub const STREAMING: &str = "Streaming";
    /// Changes flow, but not for every table: some have failed.
    pub const STREAMING_WITH_FAILED_TABLES: &str = "StreamingWithFailedTables";
    /// No table is left that works.
    pub const ALL_TABLES_FAILED: &str = "AllTablesFailed";
    /// Paused by `spec.suspend`.
    pub const SUSPENDED: &str = "Suspended";
    /// All that was asked for is done.
    pub const FINISHED: &str = "Finished";
    /// The side in question works.
    pub const CONNECTED: &str = "Connected";
    /// Not known at present.
    pub const UNKNOWN: &str = "Unknown";
    /// The copy of the existing rows is complete.
    pub const COPIED: &str = "Copied";
    /// The destination has everything.
    pub const NO_LAG: &str = "NoLag";
    /// The destination is behind.
    pub const BEHIND: &str = "Behind";
    /// It waits for a human; `Stalled` says why.
    pub const STALLED: &str = "Stalled";

    /// What the reasons of faults of the source begin with.
    pub const SOURCE_PREFIX: &str = "Source";
    /// What the reasons of faults of the destination begin with.
    pub const DESTINATION_PREFIX: &str = "Destination";
}
