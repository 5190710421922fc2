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
    /// The Mirror is being deleted: its pod ends, then slot, publication and state go.
    pub const DELETING: &str = "Deleting";
    /// Slot, publication or state could not be removed while the Mirror is being deleted; tried again.
    pub const CLEANUP_FAILED: &str = "CleanupFailed";

    /// The source is in use, but may soon give up the slot.
    pub const SLOT_AT_RISK: &str = "SlotAtRisk";
    /// The source is in use, but its slot holds back much WAL, and nothing limits that.
    pub const SOURCE_DISK_AT_RISK: &str = "SourceDiskAtRisk";

    /// The resource asks for something that can't be, such as a source that is a peer of kind clickhouse.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The Mirror names a ReplicationPeer that isn't there.
    pub const PEER_MISSING: &str = "PeerMissing";
    /// A Secret isn't there.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// A Secret has no such key, or its value can't be used.
    pub const SECRET_KEY_MISSING: &str = "SecretKeyMissing";
    /// An older Mirror writes this target table already.
    pub const TARGET_TABLE_TAKEN: &str = "TargetTableTaken";

    /// The replicator's pod is on its way.
    pub const REPLICATOR_STARTING: &str = "ReplicatorStarting";
    /// The replicator's image can't be pulled.
    pub const REPLICATOR_IMAGE_UNAVAILABLE: &str = "ReplicatorImageUnavailable";
    /// The replicator's container can't be made from its settings.
    pub const REPLICATOR_MISCONFIGURED: &str = "ReplicatorMisconfigured";
    /// The replicator was killed at its memory limit.
    pub const REPLICATOR_OUT_OF_MEMORY: &str = "ReplicatorOutOfMemory";
    /// The replicator ends again and again.
    pub const REPLICATOR_CRASHING: &str = "ReplicatorCrashing";
    /// No node takes the replicator's pod.
    pub const REPLICATOR_UNSCHEDULABLE: &str = "ReplicatorUnschedulable";
    /// The cluster refuses to make the replicator's pod.
    pub const REPLICATOR_FORBIDDEN: &str = "ReplicatorForbidden";
    /// The replicator runs and its `/status` doesn't answer.
    pub const REPLICATOR_UNREACHABLE: &str = "ReplicatorUnreachable";

    /// What the reasons of faults of the source begin with.
    pub const SOURCE_PREFIX: &str = "Source";
    /// What the reasons of faults of the destination begin with.
    pub const DESTINATION_PREFIX: &str = "Destination";
}
