//! Condition types and reasons: the words that `kubectl`, `/status` and alerts see, kept stable.
//!
//! `Ready` is always there. `Reconciling` and `Stalled` are there only while they are true, and never both:
//! `Stalled` exactly when manual action is required. The others stay. Tools that follow kstatus (`kubectl
//! wait`, Flux, Argo CD) read them without configuration.

/// Changes are streaming, or nothing more is requested.
pub const READY: &str = "Ready";
/// Work is in progress or retrying.
pub const RECONCILING: &str = "Reconciling";
/// Manual action required; the message has the remedy.
pub const STALLED: &str = "Stalled";
/// The source is usable.
pub const SOURCE_READY: &str = "SourceReady";
/// The destination is usable.
pub const DESTINATION_READY: &str = "DestinationReady";
/// The existing rows are copied.
pub const SNAPSHOTTED: &str = "Snapshotted";
/// Changes are streaming.
pub const STREAMING: &str = "Streaming";
/// The destination has every change that the source has committed.
pub const CAUGHT_UP: &str = "CaughtUp";

/// All condition types.
pub const ALL: [&str; 8] =
    [READY, RECONCILING, STALLED, SOURCE_READY, DESTINATION_READY, SNAPSHOTTED, STREAMING, CAUGHT_UP];
