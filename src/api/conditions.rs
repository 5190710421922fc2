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

/// All condition types.
pub const ALL: [&str; 8] =
    [READY, RECONCILING, STALLED, SOURCE_READY, DESTINATION_READY, SNAPSHOTTED, STREAMING, CAUGHT_UP];
