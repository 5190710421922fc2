//! What is watched in one namespace, or in all of them, and who looks again when something changes.

use std::{future::Future, sync::Arc};

use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Pod, Secret},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        controller::{ReconcileReason, ReconcileRequest},
        reflector::{
            self, ObjectRef,
            store::{Store, Writer, WriterDropped},
        },
        watcher,
    },
};
use tokio::task::JoinSet;

use super::{
    context::Memory,
    labels,
    metrics::Metrics,
    mirror::MIRROR_UID,
    secrets::SecretCache,
    watch::{self, Change},
};
use crate::{
    api::{Mirror, ReplicationPeer, conditions},
    fault::Reason,
    resolve,
};

/// An object that may not be what its type says: one written past the API server's checks must not stop the watch of all the others.
pub(super) type Guarded<K> = DeserializeGuard<K>;

/// Stores of what is watched.
#[derive(Clone)]
pub(super) struct Scope {
    pub(super) peers: Store<Guarded<ReplicationPeer>>,
    pub(super) mirrors: Store<Guarded<Mirror>>,
    pub(super) deployments: Store<Deployment>,
    pub(super) config_maps: Store<PartialObjectMeta<ConfigMap>>,
    pub(super) pods: Store<Pod>,
}

/// Where to say what is to be looked at again.
#[derive(Clone)]
pub(super) struct Queues {
    pub(super) peers: UnboundedSender<ReconcileRequest<Guarded<ReplicationPeer>>>,
    pub(super) mirrors: UnboundedSender<ReconcileRequest<Guarded<Mirror>>>,
    /// What forgets objects that are gone.
    pub(super) memory: Arc<Memory>,
    pub(super) metrics: Arc<Metrics>,
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
        let uid = object.uid().unwrap_or_default();
        self.memory.forget(&uid);
        self.metrics.forget(&uid);
    }
}

fn request<K: Resource<DynamicType = ()>>(namespace: &str, name: &str, reason: &str) -> ReconcileRequest<K> {
    ReconcileRequest {
        obj_ref: ObjectRef::new(name).within(namespace),
        reason: ReconcileReason::Custom { reason: reason.to_owned() },
    }
}

/// The object, if it is what its type says.
pub(super) fn valid<K>(guarded: &Guarded<K>) -> Option<&K> {
    guarded.0.as_ref().ok()
}

/// The names of the peers that a Mirror refers to.
pub(super) fn peers_of(mirror: &Mirror) -> [&str; 2] {
    [&mirror.spec.source_ref.name, &mirror.spec.destination_ref.name]
}

impl Scope {
    /// Starts to watch `namespace`, or all namespaces, in tasks of `watches`.
    pub(super) fn watch(
        client: &Client,
        namespace: Option<&str>,
        queues: &Queues,
        secrets: &Arc<SecretCache>,
        watches: &mut JoinSet<()>,
    ) -> Scope {
        let (peers, peer_writer) = reflector::store();
        let (mirrors, mirror_writer) = reflector::store();
        let (deployments, deployment_writer) = reflector::store();
        let (config_maps, config_map_writer) = reflector::store();
        let (pods, pod_writer) = reflector::store();
        let scope = Scope { peers, mirrors, deployments, config_maps, pods };
        let mapper = Mapper { scope: scope.clone(), queues: queues.clone(), secrets: Arc::clone(secrets) };
        let mut watch = Watch { client, namespace, mapper: &mapper, tasks: watches };
        let owned = watcher::Config::default().labels(&labels::selector());
        watch.follow(watcher::Config::default(), peer_writer, Mapper::peer_changed);
        watch.follow(watcher::Config::default(), mirror_writer, Mapper::mirror_changed);
        watch.follow(owned.clone(), deployment_writer, Mapper::owned_changed);
        watch.follow(owned.clone(), config_map_writer, Mapper::owned_changed);
        watch.follow(owned, pod_writer, Mapper::pod_changed);
        watch.secrets();
        scope
    }

    /// Waits until each store has what the API server had when its watch began. Before that an object that is there looks as if it were not:
    /// a running replicator like none, an older Mirror's target table like a free one.
    ///
    /// # Errors
    /// When a watch has ended, which it does only with all of the work.
    pub(super) async fn filled(&self) -> Result<(), WriterDropped> {
        self.peers.wait_until_ready().await?;
        self.mirrors.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.pods.wait_until_ready().await
    }
}

struct Watch<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    mapper: &'a Mapper,
    tasks: &'a mut JoinSet<()>,
}

impl Watch<'_> {
    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn follow<K>(
        &mut self,
        config: watcher::Config,
        writer: Writer<K>,
        changed: impl Fn(&Mapper, Change<'_, K>) + Send + Sync + 'static,
    ) where
        K: watch::Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let mapper = self.mapper.clone();
        let api = self.api();
        self.spawn(watch::follow(api, config, writer, move |change| changed(&mapper, change)));
    }

    fn secrets(&mut self) {
        let mapper = self.mapper.clone();
        let api: Api<PartialObjectMeta<Secret>> = self.api();
        let config = watcher::Config::default();
        self.spawn(watch::observe(api, config, move |secret| mapper.secret_changed(secret)));
    }

    fn spawn(&mut self, watch: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(watch);
    }
}

/// From what has changed to what is to be looked at again.
#[derive(Clone)]
struct Mapper {
    scope: Scope,
    queues: Queues,
    secrets: Arc<SecretCache>,
}

impl Mapper {
    /// What a user changes, and whether it works, matter; that we wrote its status doesn't.
    fn peer_changed(&self, change: Change<'_, Guarded<ReplicationPeer>>) {
        let Some(peer) = change.object() else { return };
        let (namespace, name) = (peer.namespace().unwrap_or_default(), peer.name_any());
        let edited = change.in_facet(user_facet);
        match change.new {
            None => self.queues.forget(peer),
            Some(_) if edited => self.queues.peer(&namespace, &name, "the peer changed"),
            Some(_) => {}
        }
        if edited || change.in_facet(|peer| valid(peer).and_then(ready_of_peer)) {
            for mirror in self.mirrors_of_peer(&namespace, &name) {
                self.queues.mirror(&namespace, &mirror, "a peer changed");
            }
        }
    }

    fn mirror_changed(&self, change: Change<'_, Guarded<Mirror>>) {
        let Some(mirror) = change.object() else { return };
        if !change.in_facet(user_facet) {
            return;
        }
        let (namespace, name) = (mirror.namespace().unwrap_or_default(), mirror.name_any());
        if change.new.is_some() {
            self.queues.mirror(&namespace, &name, "the mirror changed");
        } else {
            self.queues.forget(mirror);
            for peer in valid(mirror).map(peers_of).into_iter().flatten() {
                self.queues.peer(&namespace, peer, "a mirror is gone");
            }
        }
        self.free_targets();
    }

    /// Mirrors that wait for a target table may have it now.
    fn free_targets(&self) {
        for waiting in self.scope.mirrors.state() {
            let taken = |mirror: &Mirror| ready_reason(mirror) == Some(Reason::TargetTableTaken.name());
            if valid(&waiting).is_some_and(taken) {
                let namespace = waiting.namespace().unwrap_or_default();
                self.queues.mirror(&namespace, &waiting.name_any(), "another mirror changed");
            }
        }
    }

    /// A ConfigMap or Deployment.
    fn owned_changed<K: Resource<DynamicType = ()>>(&self, change: Change<'_, K>) {
        let Some(object) = change.object() else { return };
        let owners = object.owner_references().iter().filter(|owner| owner.controller == Some(true));
        for owner in owners.filter(|owner| owner.kind == "Mirror") {
            let namespace = object.namespace().unwrap_or_default();
            self.queues.mirror(&namespace, &owner.name, "what it owns changed");
        }
    }

    fn pod_changed(&self, change: Change<'_, Pod>) {
        let Some(pod) = change.object() else { return };
        let Some(uid) = pod.labels().get(MIRROR_UID) else { return };
        let theirs = |mirror: &Guarded<Mirror>| {
            mirror.uid().as_ref() == Some(uid) && mirror.namespace() == pod.namespace()
        };
        if let Some(mirror) = self.scope.mirrors.find(theirs) {
            let namespace = mirror.namespace().unwrap_or_default();
            self.queues.mirror(&namespace, &mirror.name_any(), "its pod changed");
        }
    }

    fn secret_changed(&self, secret: Option<(&str, &str)>) {
        self.secrets.invalidate(secret);
        let Some((namespace, name)) = secret else { return };
        for peer in self.scope.peers.state() {
            let Some(peer) = valid(&peer) else { continue };
            let refers = || resolve::secret_entries(peer).iter().any(|(secret, _)| secret == name);
            if peer.namespace().as_deref() == Some(namespace) && refers() {
                self.queues.peer(namespace, &peer.name_any(), "a secret changed");
                for mirror in self.mirrors_of_peer(namespace, &peer.name_any()) {
                    self.queues.mirror(namespace, &mirror, "a secret changed");
                }
            }
        }
    }

    fn mirrors_of_peer(&self, namespace: &str, peer: &str) -> Vec<String> {
        mirrors_of_peer(&self.scope.mirrors, namespace, peer)
    }
}

/// The names of the Mirrors that refer to a peer, sorted.
pub(super) fn mirrors_of_peer(mirrors: &Store<Guarded<Mirror>>, namespace: &str, peer: &str) -> Vec<String> {
    let refers = |mirror: &Guarded<Mirror>| {
        mirror.namespace().as_deref() == Some(namespace)
            && valid(mirror).is_some_and(|mirror| peers_of(mirror).contains(&peer))
    };
    let mut names: Vec<String> =
        mirrors.state_filter(refers).iter().map(|mirror| mirror.name_any()).collect();
    names.sort();
    names
}

/// What a user or the API server changes of an object, as opposed to its status.
fn user_facet<K: Resource>(object: &Guarded<K>) -> impl PartialEq + use<K> {
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
    let conditions = &peer.status.as_ref()?.conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == conditions::READY)?;
    Some((ready.status.clone(), ready.reason.clone()))
}

fn ready_reason(mirror: &Mirror) -> Option<&str> {
    let conditions = &mirror.status.as_ref()?.conditions;
    Some(conditions.iter().find(|condition| condition.type_ == conditions::READY)?.reason.as_str())
}
