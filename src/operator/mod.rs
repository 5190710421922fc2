//! The Kubernetes operator: a controller for ReplicationPeers and one for Mirrors, run by the leader.
//!
//! It never moves a row: it checks the databases, runs one replicator pod for each Mirror, reports its state,
//! and cleans up.
//!
//! # Permissions
//! In each watched namespace:
//!
//! | group | resource | verbs | why |
//! |---|---|---|---|
//! | walferry.dev | mirrors, replicationpeers | get, list, watch, patch | finalizers are patched |
//! | walferry.dev | mirrors/status, replicationpeers/status | patch | server-side apply |
//! | core | secrets | get, list, watch | metadata is watched; what peers name is read |
//! | core | configmaps | list, watch, create, patch | a replicator's configuration |
//! | core | pods | list, watch | the state of a replicator |
//! | apps | deployments | list, watch, create, patch, delete | a replicator |
//! | events.k8s.io | events | create, patch | what happened |
//!
//! In its own namespace, for leader election: coordination.k8s.io leases get, create, update.

mod backoff;
mod blocker;
mod cache;
mod client;
mod controller;
mod credentials;
mod election;
mod error;
mod events;
mod finalizer;
mod labels;
mod last_status;
mod mapper;
mod metrics;
mod mirror;
mod object;
mod peer;
mod reflector;
mod secrets;
mod shared;
mod stores;
mod watch;

pub use client::connect;
pub use election::LeaseSettings;
pub use metrics::Metrics;
pub use mirror::ReplicatorSettings;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{
    channel::mpsc::{UnboundedReceiver, unbounded},
    future::{join_all, try_join_all},
};
use kube::{Client, runtime::controller::ReconcileRequest};
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::api::{Mirror, ReplicationPeer};
use backoff::Backoff;
use cache::PerObject;
use election::Candidate;
use events::EventRecorder;
use mapper::Queues;
use object::MaybeInvalid;
use secrets::SecretCache;
use shared::Shared;
use stores::{NamespaceStores, Stores};
use watch::NamespaceWatch;

/// How long all namespaces wait for the caches of each other. A namespace that is gone, or that the operator
/// may not read, never syncs.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// How long running reconciles may take to finish when the process stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of an operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespaces to watch; all namespaces when empty.
    pub namespaces: BTreeSet<String>,
    /// What all replicators have in common.
    pub replicators: ReplicatorSettings,
    /// The identity of this process in events and as holder of the Lease.
    pub identity: String,
    /// The Lease for leader election; `None` to start immediately, where no second operator runs.
    pub lease: Option<LeaseSettings>,
}

/// Runs until `stop`: waits for the Lease, runs the controllers while this process is the leader, and waits
/// again when it is not. At the end running reconciles finish and the Lease is released.
pub async fn run(client: Client, settings: Settings, metrics: Arc<Metrics>, stop: CancellationToken) {
    let Some(lease) = settings.lease.clone() else {
        lead(&client, &settings, &metrics, stop).await;
        return;
    };
    let mut candidate = Candidate::new(client.clone(), lease);
    tracing::info!(identity = settings.identity, "waiting for the lease");
    loop {
        let since = tokio::select! {
            since = candidate.win() => since,
            () = stop.cancelled() => return,
        };
        tracing::info!(identity = settings.identity, "leading");
        tokio::select! {
            () = lead(&client, &settings, &metrics, stop.clone()) => {
                candidate.release().await;
                return;
            }
            // Dropping the controllers ends them immediately, before another process may lead. Every step can
            // be repeated.
            () = candidate.hold(since) => {
                metrics.set_leader(false);
                tracing::warn!("lost the lease, not leading any more");
            }
        }
    }
}

/// Runs the controllers until `stop`. Caches begin empty: other leaders may have changed anything since this
/// process last led.
async fn lead(client: &Client, settings: &Settings, metrics: &Arc<Metrics>, stop: CancellationToken) {
    metrics.set_leader(true);
    let mut watches = JoinSet::new();
    let controllers = Controllers::start(client, settings, metrics, &mut watches);
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        () = controllers.run(&stop) => tracing::info!("controllers have ended"),
        () = drained => tracing::warn!("reconciles did not finish in time and were stopped; they will be repeated"),
    }
    metrics.set_leader(false);
}

type Requests<K> = UnboundedReceiver<ReconcileRequest<MaybeInvalid<K>>>;

/// Both controllers, and for each watched namespace its stores and queues.
struct Controllers {
    peers: Arc<peer::Controller>,
    mirrors: Arc<mirror::Controller>,
    namespaces: Vec<(NamespaceStores, Requests<ReplicationPeer>, Requests<Mirror>)>,
}

impl Controllers {
    /// Starts the watches as tasks of `watches`.
    fn start(
        client: &Client,
        settings: &Settings,
        metrics: &Arc<Metrics>,
        watches: &mut JoinSet<()>,
    ) -> Controllers {
        let (peer_caches, mirror_caches) = (Arc::<PerObject<_>>::default(), Arc::<PerObject<_>>::default());
        let (backoff, secrets) = (Arc::<Backoff>::default(), Arc::<SecretCache>::default());
        let forget: Arc<dyn Fn(&str) + Send + Sync> = {
            let (peers, mirrors) = (Arc::clone(&peer_caches), Arc::clone(&mirror_caches));
            let (backoff, metrics) = (Arc::clone(&backoff), Arc::clone(metrics));
            Arc::new(move |uid| {
                peers.forget(uid);
                mirrors.forget(uid);
                backoff.reset(uid);
                metrics.forget(uid);
            })
        };
        let watched: Vec<Option<&str>> = match settings.namespaces.is_empty() {
            true => vec![None],
            false => settings.namespaces.iter().map(|namespace| Some(namespace.as_str())).collect(),
        };
        let mut namespaces = Vec::new();
        for namespace in watched {
            let (peers, peer_requests) = unbounded();
            let (mirrors, mirror_requests) = unbounded();
            let queues = Queues { peers, mirrors, forget: Arc::clone(&forget) };
            let watch = NamespaceWatch { client, namespace, tasks: &mut *watches };
            namespaces.push((watch.start(queues, &secrets), peer_requests, mirror_requests));
        }
        let shared = Arc::new(Shared {
            client: client.clone(),
            events: EventRecorder::new(client.clone(), &settings.identity),
            metrics: Arc::clone(metrics),
            secrets,
            stores: Stores(namespaces.iter().map(|(stores, ..)| stores.clone()).collect()),
            backoff,
        });
        let peers = peer::Controller { shared: Arc::clone(&shared), caches: peer_caches };
        let mirrors = mirror::Controller::new(shared, settings.replicators.clone(), mirror_caches);
        Controllers { peers: Arc::new(peers), mirrors: Arc::new(mirrors), namespaces }
    }

    /// Waits for the caches to sync, then reconciles until `stop`. A namespace that does not sync keeps only
    /// its own objects waiting.
    async fn run(self, stop: &CancellationToken) {
        let synced = try_join_all(self.namespaces.iter().map(|(stores, ..)| stores.synced()));
        tokio::select! {
            synced = timeout(SYNC_TIMEOUT, synced) => if synced.is_err() {
                tracing::warn!("some namespaces can't be read; reconciling the others without them");
            },
            () = stop.cancelled() => return,
        }
        let Controllers { peers, mirrors, namespaces } = self;
        let namespaces = namespaces.into_iter().map(|(stores, peer_requests, mirror_requests)| {
            let peer_queue = (stores.peers.clone(), peer_requests);
            let mirror_queue = (stores.mirrors.clone(), mirror_requests);
            let peers =
                controller::run("peer", peer_queue, Arc::clone(&peers), peer::reconcile, stop.clone());
            let mirrors = controller::run(
                "mirror",
                mirror_queue,
                Arc::clone(&mirrors),
                mirror::reconcile,
                stop.clone(),
            );
            async move {
                tokio::select! {
                    Ok(()) = stores.synced() => {
                        tokio::join!(peers, mirrors);
                    }
                    () = stop.cancelled() => {}
                }
            }
        });
        join_all(namespaces).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::{StreamExt, channel::mpsc};
    use kube::client::Body;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    /// An API server with one Mirror in `shop` that refuses every request for `gone` and sends the time of
    /// each write.
    fn client(wrote: mpsc::UnboundedSender<Instant>) -> Client {
        let wrote = Arc::new(Mutex::new(wrote));
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let wrote = Arc::clone(&wrote);
            async move {
                let path = request.uri().path();
                let (code, answer) = if request.method() != hyper::Method::GET {
                    let _ = wrote.lock().unwrap().unbounded_send(Instant::now());
                    (500, json!({"kind": "Status", "status": "Failure", "code": 500, "message": "enough"}))
                } else if path.contains("/gone/") {
                    (403, json!({"kind": "Status", "status": "Failure", "code": 403, "message": "forbidden"}))
                } else if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                    return std::future::pending().await;
                } else {
                    let mirror = json!({
                        "apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror",
                        "metadata": {"namespace": "shop", "name": "shop", "uid": "0a", "resourceVersion": "1"},
                        "spec": {"sourceRef": {"name": "app"}, "destinationRef": {"name": "analytics"},
                            "tables": [{"schema": "public", "name": "users"}]},
                    });
                    let items = if path.ends_with("/mirrors") { vec![mirror] } else { Vec::new() };
                    (
                        200,
                        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}),
                    )
                };
                let answer =
                    hyper::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer?)
            }
        });
        Client::new(service, "shop")
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_cannot_be_read_stops_no_other() {
        let settings = Settings {
            namespaces: ["gone", "shop"].map(str::to_owned).into(),
            replicators: ReplicatorSettings::default(),
            identity: "test".to_owned(),
            lease: None,
        };
        let (wrote, mut written) = mpsc::unbounded();
        let (began, stop) = (Instant::now(), CancellationToken::new());
        let running = run(client(wrote), settings, Arc::new(Metrics::new().unwrap()), stop.clone());
        let reconciled = async {
            let first = timeout(Duration::from_secs(300), written.next()).await;
            let stopping = Instant::now();
            stop.cancel();
            (first, stopping)
        };
        let ((), (first, stopping)) = futures::join!(running, reconciled);
        assert!(first.unwrap().unwrap() - began >= SYNC_TIMEOUT, "the other namespace might have synced");
        assert!(stopping.elapsed() <= DRAIN_TIMEOUT, "the reconciles finish");
    }
}
