//! The watches of one namespace, or of all namespaces.

use std::{future::Future, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Secret};
use kube::{
    Api, Client, Resource,
    core::PartialObjectMeta,
    runtime::{
        reflector::{store, store::Writer},
        watcher,
    },
};
use tokio::task::JoinSet;

use super::{
    labels,
    mapper::{Mapper, Queues},
    object::Watched,
    reflector::{self, Change},
    secrets::SecretCache,
    stores::NamespaceStores,
};

/// Starts the watches of one namespace, each as a task.
pub(super) struct NamespaceWatch<'a> {
    pub(super) client: &'a Client,
    /// `None` for all namespaces.
    pub(super) namespace: Option<&'a str>,
    pub(super) tasks: &'a mut JoinSet<()>,
}

impl NamespaceWatch<'_> {
    /// Starts all watches. They fill the returned stores and send what has to be reconciled to `queues`.
    pub(super) fn start(mut self, queues: Queues, secrets: &Arc<SecretCache>) -> NamespaceStores {
        let (peers, peer_writer) = store();
        let (mirrors, mirror_writer) = store();
        let (deployments, deployment_writer) = store();
        let (config_maps, config_map_writer) = store();
        let (pods, pod_writer) = store();
        let stores = NamespaceStores { peers, mirrors, deployments, config_maps, pods };
        let mapper = Mapper { stores: stores.clone(), queues, secrets: Arc::clone(secrets) };
        let all = watcher::Config::default();
        let owned = watcher::Config::default().labels(&labels::selector());
        self.reflect(&mapper, all.clone(), peer_writer, Mapper::peer_changed);
        self.reflect(&mapper, all.clone(), mirror_writer, Mapper::mirror_changed);
        self.reflect(&mapper, owned.clone(), deployment_writer, Mapper::owned_changed);
        self.reflect(&mapper, owned.clone(), config_map_writer, Mapper::owned_changed);
        self.reflect(&mapper, owned, pod_writer, Mapper::pod_changed);
        let api: Api<PartialObjectMeta<Secret>> = self.api();
        self.spawn(reflector::watch_names(api, all, move |secret| mapper.secret_changed(secret)));
        stores
    }

    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn reflect<K>(
        &mut self,
        mapper: &Mapper,
        config: watcher::Config,
        writer: Writer<K>,
        changed: impl Fn(&Mapper, Change<'_, K>) + Send + Sync + 'static,
    ) where
        K: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let mapper = mapper.clone();
        let api = self.api();
        self.spawn(reflector::reflect(api, config, writer, move |change| changed(&mapper, change)));
    }

    fn spawn(&mut self, watch: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(watch);
    }
}
