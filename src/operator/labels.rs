//! Labels, annotations and finalizers that the operator sets or reads.

/// The finalizer of a Mirror: slot, publication and state are removed before the Mirror is.
pub(super) const CLEANUP: &str = "walferry.dev/cleanup";
/// The finalizer of a ReplicationPeer: it stays while Mirrors use it.
pub(super) const IN_USE: &str = "walferry.dev/in-use";
/// The field manager of everything that the operator applies.
pub(super) const FIELD_MANAGER: &str = "walferry";
/// The annotation of the pod template that holds the hash of the replicator's configuration.
pub(super) const CONFIG_HASH: &str = "walferry.dev/config-hash";
/// The label that holds the Mirror's UID and selects the pods of its Deployment. Ownership is proven by
/// controller references instead.
pub(super) const MIRROR_UID: &str = "walferry.dev/mirror-uid";

/// Selects the objects of all Mirrors.
pub(super) fn selector() -> String {
    "app.kubernetes.io/managed-by=walferry,app.kubernetes.io/component=replicator".to_owned()
}
