//! Labels, annotations and finalizers that the operator sets or reads.

/// The finalizer of a Mirror: slot, publication and state are removed before it goes.
pub(super) const CLEANUP: &str = "walferry.dev/cleanup";
/// The finalizer of a ReplicationPeer: it stays while Mirrors use it.
pub(super) const IN_USE: &str = "walferry.dev/in-use";
/// Who writes what the operator applies.
pub(super) const FIELD_MANAGER: &str = "walferry";

/// Selects what belongs to any Mirror.
pub(super) fn selector() -> String {
    "app.kubernetes.io/managed-by=walferry,app.kubernetes.io/component=replicator".to_owned()
}
