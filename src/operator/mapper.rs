//! From a changed object to the Mirrors and ReplicationPeers that have to be reconciled.

use std::sync::Arc;

use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::{ReconcileReason, ReconcileRequest},
        reflector::ObjectRef,
    },
};

use super::{
    labels::MIRROR_UID,
    object::{MaybeInvalid, condition, peer_names, valid},
    reflector::Change,
    secrets::SecretCache,
    stores::NamespaceStores,
};
use crate::{
    api::{Mirror, ReplicationPeer, conditions::READY},
    fault::Reason,
    resolve,
};

/// The queues of both controllers.
#[derive(Clone)]
pub(super) struct Queues {
    pub(super) peers: UnboundedSender<ReconcileRequest<MaybeInvalid<ReplicationPeer>>>,
    pub(super) mirrors: UnboundedSender<ReconcileRequest<MaybeInvalid<Mirror>>>,
    /// Drops everything that is cached of the object with this UID.
    pub(super) forget: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Queues {
    fn peer(&self, namespace: &str, name: &str, reason: &str) {
        // A queue that is closed belongs to a controller that is stopping.
        let _ = self.peers.unbounded_send(request(namespace, name, reason));
    }

    fn mirror(&self, namespace: &str, name: &str, reason: &str) {
        let _ = self.mirrors.unbounded_send(request(namespace, name, reason));
    }

    fn forget(&self, object: &impl ResourceExt) {
        (self.forget)(&object.uid().unwrap_or_default());
    }
}

fn request<K: Resource<DynamicType = ()>>(namespace: &str, name: &str, reason: &str) -> ReconcileRequest<K> {
    ReconcileRequest {
        obj_ref: ObjectRef::new(name).within(namespace),
        reason: ReconcileReason::Custom { reason: reason.to_owned() },
    }
}

/// Maps changes of one watched namespace to reconcile requests.
#[derive(Clone)]
pub(super) struct Mapper {
    pub(super) stores: NamespaceStores,
    pub(super) queues: Queues,
    pub(super) secrets: Arc<SecretCache>,
}

impl Mapper {
    /// Edits by a user matter to the peer, and whether it is ready matters to its Mirrors; our own status
    /// writes do not.
    pub(super) fn peer_changed(&self, change: Change<'_, MaybeInvalid<ReplicationPeer>>) {
        let Some(peer) = change.object() else { return };
        let (namespace, name) = (peer.namespace().unwrap_or_default(), peer.name_any());
        let edited = change.differs_in(user_projection);
        match change.new {
            None => self.queues.forget(peer),
            Some(_) if edited => self.queues.peer(&namespace, &name, "the peer changed"),
            Some(_) => {}
        }
        if edited || change.differs_in(|peer| valid(peer).and_then(ready_of_peer)) {
            for mirror in self.stores.mirrors_of_peer(&namespace, &name) {
                self.queues.mirror(&namespace, &mirror, "a peer changed");
            }
        }
    }

    /// Also wakes the peers of a Mirror that is gone, which may be waiting for that to be deleted themselves.
    pub(super) fn mirror_changed(&self, change: Change<'_, MaybeInvalid<Mirror>>) {
        let Some(mirror) = change.object() else { return };
        if !change.differs_in(user_projection) {
            return;
        }
        let (namespace, name) = (mirror.namespace().unwrap_or_default(), mirror.name_any());
        if change.new.is_some() {
            self.queues.mirror(&namespace, &name, "the mirror changed");
        } else {
            self.queues.forget(mirror);
            for peer in valid(mirror).map(peer_names).into_iter().flatten() {
                self.queues.peer(&namespace, peer, "a mirror is gone");
            }
        }
        self.wake_mirrors_without_target();
    }

    /// Mirrors whose target table was taken may get it now.
    fn wake_mirrors_without_target(&self) {
        for waiting in self.stores.mirrors.state() {
            let taken = |mirror: &Mirror| ready_reason(mirror) == Some(Reason::TargetTableTaken.name());
            if valid(&waiting).is_some_and(taken) {
                let namespace = waiting.namespace().unwrap_or_default();
                self.queues.mirror(&namespace, &waiting.name_any(), "another mirror changed");
            }
        }
    }

    /// A ConfigMap or Deployment.
    pub(super) fn owned_changed<K: Resource<DynamicType = ()>>(&self, change: Change<'_, K>) {
        let Some(object) = change.object() else { return };
        let owners = object.owner_references().iter().filter(|owner| owner.controller == Some(true));
        for owner in owners.filter(|owner| owner.kind == "Mirror") {
            let namespace = object.namespace().unwrap_or_default();
            self.queues.mirror(&namespace, &owner.name, "what it owns changed");
        }
    }

    /// A replicator's pod.
    pub(super) fn pod_changed(&self, change: Change<'_, Pod>) {
        let Some(pod) = change.object() else { return };
        let Some(uid) = pod.labels().get(MIRROR_UID) else { return };
        let owns = |mirror: &MaybeInvalid<Mirror>| {
            mirror.uid().as_ref() == Some(uid) && mirror.namespace() == pod.namespace()
        };
        if let Some(mirror) = self.stores.mirrors.find(owns) {
            let namespace = mirror.namespace().unwrap_or_default();
            self.queues.mirror(&namespace, &mirror.name_any(), "its pod changed");
        }
    }

    /// One Secret, or any of them.
    pub(super) fn secret_changed(&self, secret: Option<(&str, &str)>) {
        self.secrets.invalidate(secret);
        let Some((namespace, name)) = secret else { return };
        for peer in self.stores.peers.state() {
            let Some(peer) = valid(&peer) else { continue };
            let refers = || resolve::secret_entries(peer).iter().any(|(secret, _)| secret == name);
            if peer.namespace().as_deref() == Some(namespace) && refers() {
                self.queues.peer(namespace, &peer.name_any(), "a secret changed");
                for mirror in self.stores.mirrors_of_peer(namespace, &peer.name_any()) {
                    self.queues.mirror(namespace, &mirror, "a secret changed");
                }
            }
        }
    }
}

/// The parts of an object that a user or the API server changes, as opposed to its status.
fn user_projection<K: Resource>(object: &MaybeInvalid<K>) -> impl PartialEq + use<K> {
    let meta = object.meta();
    (
        meta.uid.clone(),
        meta.generation,
        meta.annotations.clone(),
        meta.finalizers.clone(),
        meta.deletion_timestamp.is_some(),
        object.0.is_ok(),
    )
}

fn ready_of_peer(peer: &ReplicationPeer) -> Option<(String, String)> {
    let ready = condition(&peer.status.as_ref()?.conditions, READY)?;
    Some((ready.status.clone(), ready.reason.clone()))
}

fn ready_reason(mirror: &Mirror) -> Option<&str> {
    Some(condition(&mirror.status.as_ref()?.conditions, READY)?.reason.as_str())
}
