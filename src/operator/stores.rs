//! The local copies of what is watched, and lookups in them.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{
        ObjectRef,
        store::{Store, WriterDropped},
    },
};

use super::object::{MaybeInvalid, peer_names, valid};
use crate::api::{Mirror, ReplicationPeer};

/// Stores of the objects of one namespace, or of all namespaces.
#[derive(Clone)]
pub(super) struct NamespaceStores {
    pub(super) peers: Store<MaybeInvalid<ReplicationPeer>>,
    pub(super) mirrors: Store<MaybeInvalid<Mirror>>,
    pub(super) deployments: Store<Deployment>,
    pub(super) config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub(super) pods: Store<Pod>,
}

impl NamespaceStores {
    /// Waits until each store has what the API server had when its watch began. Until then an object may look
    /// absent although it exists: a replicator that runs, or the older Mirror that writes a target table.
    ///
    /// # Errors
    /// When a watch has ended, which happens only when all work ends.
    pub(super) async fn synced(&self) -> Result<(), WriterDropped> {
        self.peers.wait_until_ready().await?;
        self.mirrors.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.pods.wait_until_ready().await
    }

    /// The names of the Mirrors that refer to a peer, sorted.
    pub(super) fn mirrors_of_peer(&self, namespace: &str, peer: &str) -> Vec<String> {
        let refers = |mirror: &MaybeInvalid<Mirror>| {
            mirror.namespace().as_deref() == Some(namespace)
                && valid(mirror).is_some_and(|mirror| peer_names(mirror).contains(&peer))
        };
        let mirrors = self.mirrors.state_filter(refers);
        let mut names: Vec<String> = mirrors.iter().map(|mirror| mirror.name_any()).collect();
        names.sort();
        names
    }
}

/// The stores of all watched namespaces.
#[derive(Clone, Default)]
pub(super) struct Stores(pub(super) Vec<NamespaceStores>);

impl Stores {
    /// The object of this name.
    pub(super) fn find<K>(
        &self,
        store: impl Fn(&NamespaceStores) -> &Store<K>,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let key = ObjectRef::new(name).within(namespace);
        self.0.iter().find_map(|stores| store(stores).get(&key))
    }

    /// All watched Mirrors.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = Arc<MaybeInvalid<Mirror>>> {
        self.0.iter().flat_map(|stores| stores.mirrors.state())
    }

    /// The names of the Mirrors that refer to a peer.
    pub(super) fn mirrors_of_peer(&self, namespace: &str, peer: &str) -> Vec<String> {
        self.0.iter().flat_map(|stores| stores.mirrors_of_peer(namespace, peer)).collect()
    }

    /// The pods for which `belongs` holds.
    pub(super) fn pods(&self, belongs: impl Fn(&Pod) -> bool) -> Vec<Pod> {
        let pods = self.0.iter().flat_map(|stores| stores.pods.state_filter(&belongs));
        pods.map(|pod| Pod::clone(&pod)).collect()
    }
}
