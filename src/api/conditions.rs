//! Condition types and reasons: the words that `kubectl`, `/status` and alerts see, kept stable.
//!
//! `Ready` is always there. `Reconciling` and `Stalled` are there only while they are true, and never both: `Stalled` exactly when
//! a human is needed. The others stay. Tools that follow kstatus (`kubectl wait`, Flux, Argo CD) read them without configuration.

/// Changes are streaming, or nothing more is requested.
pub const READY: &str = "Ready";
/// Work is going on or is tried again.
pub const RECONCILING: &str = "Reconciling";
/// Manual action required; the message has the remedy.
pub const STALLED: &str = "Stalled";
/// The source can be used.
pub const SOURCE_READY: &str = "SourceReady";
/// The destination can be used.
pub const DESTINATION_READY: &str = "DestinationReady";
/// The existing rows are copied.
pub const SNAPSHOTTED: &str = "Snapshotted";
/// Changes are streaming.
pub const STREAMING: &str = "Streaming";
/// The destination has everything that the source has committed.
pub const CAUGHT_UP: &str = "CaughtUp";

/// All condition types.
pub const ALL: [&str; 8] =
    [READY, RECONCILING, STALLED, SOURCE_READY, DESTINATION_READY, SNAPSHOTTED, STREAMING, CAUGHT_UP];
