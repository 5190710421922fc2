//! What all reconciles share while this process leads.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Client, Resource, ResourceExt,
    api::{Api, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::json;

use super::{
    backoff::Backoff,
    events::EventRecorder,
    labels,
    metrics::Metrics,
    object::{MaybeInvalid, Watched},
    secrets::SecretCache,
    stores::Stores,
};
use crate::api::{ReplicationPeer, is_object_name};

/// Access to the cluster, and what is counted and cached about it.
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) events: EventRecorder,
    pub(super) metrics: Arc<Metrics>,
    pub(super) secrets: Arc<SecretCache>,
    pub(super) stores: Stores,
    pub(super) backoff: Arc<Backoff>,
}

impl Shared {
    /// The peer of this name, from the API server where the stores don't have it yet. A name that no object
    /// can have isn't requested.
    ///
    /// # Errors
    /// The API server's error, except that there is no such peer.
    pub(super) async fn peer(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<MaybeInvalid<ReplicationPeer>>>, kube::Error> {
        if let Some(peer) = self.stores.find(|stores| &stores.peers, namespace, name) {
            return Ok(Some(peer));
        }
        if !is_object_name(name) {
            return Ok(None);
        }
        let api: Api<MaybeInvalid<ReplicationPeer>> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.get_opt(name).await?.map(Arc::new))
    }

    /// Writes the whole status of an object. The UID keeps it from an object that was created under the same
    /// name since.
    ///
    /// # Errors
    /// The API server's error.
    pub(super) async fn write_status<K>(
        &self,
        object: &MaybeInvalid<K>,
        status: &impl Serialize,
    ) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = ()>,
        MaybeInvalid<K>: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<MaybeInvalid<K>> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"uid": object.uid()},
            "status": status,
        });
        let apply = PatchParams::apply(labels::FIELD_MANAGER).force();
        api.patch_status(&object.name_any(), &apply, &Patch::Apply(patch)).await?;
        self.metrics.status_written(&K::kind(&()));
        Ok(())
    }
}
