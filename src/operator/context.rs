//! What all reconciles share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Client, Resource, ResourceExt,
    api::{Api, Patch, PatchParams},
    runtime::reflector::{ObjectRef, Store},
};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::{
    backoff::Backoff,
    events::Events,
    labels,
    metrics::Metrics,
    mirror::{self, ReplicatorSettings, StatusClient},
    peer,
    scope::{Guarded, Scope},
    secrets::SecretCache,
    watch::Watched,
};
use crate::api::{Mirror, ReplicationPeer, is_object_name};

/// What reconciles work with while this process leads.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) replicators: ReplicatorSettings,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
    pub(super) secrets: Arc<SecretCache>,
    pub(super) scopes: Vec<Scope>,
    pub(super) memory: Arc<Memory>,
    pub(super) status_client: StatusClient,
}

impl Context {
    /// The object of this name from the stores.
    pub(super) fn find<K>(
        &self,
        store: impl Fn(&Scope) -> &Store<K>,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<K>>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let key = ObjectRef::new(name).within(namespace);
        self.scopes.iter().find_map(|scope| store(scope).get(&key))
    }

    /// All Mirrors that are watched.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = Arc<Guarded<Mirror>>> {
        self.scopes.iter().flat_map(|scope| scope.mirrors.state())
    }

    /// The peer of this name, from the API server where the stores don't know it yet; a name that no object can have is not asked for.
    ///
    /// # Errors
    /// What the API server says, other than that there is none.
    pub(super) async fn peer(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Guarded<ReplicationPeer>>>, kube::Error> {
        if let Some(peer) = self.find(|scope| &scope.peers, namespace, name) {
            return Ok(Some(peer));
        }
        if !is_object_name(name) {
            return Ok(None);
        }
        let api: Api<Guarded<ReplicationPeer>> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.get_opt(name).await?.map(Arc::new))
    }

    /// Writes the whole status of an object. One that was replaced by another of the same name is left alone.
    ///
    /// # Errors
    /// What the API server says.
    pub(super) async fn write_status<K>(
        &self,
        object: &Guarded<K>,
        status: &impl Serialize,
    ) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = ()>,
        Guarded<K>: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<Guarded<K>> = Api::namespaced(self.client.clone(), &namespace);
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

/// What outlives one look at an object, but not the time as leader. Losing it costs a few requests and nothing else.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) mirrors: Memories<mirror::Memory>,
    pub(super) peers: Memories<peer::Memory>,
    pub(super) backoff: Backoff,
}

impl Memory {
    /// Forgets an object that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.mirrors.forget(uid);
        self.peers.forget(uid);
        self.backoff.reset(uid);
    }
}

/// What is remembered of objects, by UID.
pub(super) struct Memories<T>(Mutex<HashMap<String, T>>);

impl<T> Default for Memories<T> {
    fn default() -> Self {
        Memories(Mutex::default())
    }
}

impl<T: Default> Memories<T> {
    /// What is remembered of one object, to read or change.
    pub(super) fn of<R>(&self, uid: &str, look: impl FnOnce(&mut T) -> R) -> R {
        look(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(uid.to_owned()).or_default())
    }

    fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// A status as this process last wrote it.
#[derive(Clone, Debug)]
pub(super) struct Written<S> {
    /// The version of the object that the status was made for.
    version: Option<String>,
    status: S,
    at: Instant,
}

impl<S: Clone> Written<S> {
    /// `status`, written just now for this object.
    pub(super) fn now(object: &impl ResourceExt, status: S) -> Written<S> {
        Written { version: object.resource_version(), status, at: Instant::now() }
    }
}

/// The status that the API server has, and how long ago it was written. The watch shows our own writes only a little later: until then
/// they are remembered.
pub(super) fn previous<S: Clone>(
    written: Option<&Written<S>>,
    object: &impl ResourceExt,
    status: Option<&S>,
) -> (Option<S>, Duration) {
    match written {
        Some(written) if written.version == object.resource_version() => {
            (Some(written.status.clone()), written.at.elapsed())
        }
        written => (status.cloned(), written.map_or(Duration::MAX, |written| written.at.elapsed())),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn own_writes_count_before_the_watch_shows_them() {
        let object = |version: &str| {
            let mut object = ConfigMap::default();
            object.metadata.resource_version = Some(version.to_owned());
            object
        };
        assert_eq!(previous(None, &object("1"), Some(&"theirs")), (Some("theirs"), Duration::MAX));
        let written = Written::now(&object("1"), "ours");
        tokio::time::advance(Duration::from_secs(3)).await;
        let three = Duration::from_secs(3);
        assert_eq!(previous(Some(&written), &object("1"), Some(&"theirs")), (Some("ours"), three));
        assert_eq!(previous(Some(&written), &object("2"), Some(&"later")), (Some("later"), three));
    }
}
