//! The Kubernetes operator: a controller for ReplicationPeers and one for Mirrors, led by one process at a time.
//!
//! It never moves a row: it checks, starts one replicator pod for each Mirror, tells how that fares, and cleans up.
//!
//! # Rights
//! In each watched namespace:
//!
//! | group | resource | verbs | why |
//! |---|---|---|---|
//! | walferry.dev | mirrors, replicationpeers | get, list, watch, patch | finalizers are patched |
//! | walferry.dev | mirrors/status, replicationpeers/status | patch | server-side apply |
//! | core | secrets | get, list, watch | metadata is watched; what peers name is read |
//! | core | configmaps | list, watch, create, patch | a replicator's configuration |
//! | core | pods | list, watch | how a replicator fares |
//! | apps | deployments | list, watch, create, patch, delete | a replicator |
//! | events.k8s.io | events | create, patch | what happened |
//!
//! In its own namespace, for leader election: coordination.k8s.io leases get, create, update.

mod backoff;
mod client;
mod context;
mod controller;
mod election;
mod error;
mod events;
mod finalizer;
mod labels;
mod login;
mod metrics;
mod mirror;
mod obstacle;
mod peer;
mod scope;
mod secrets;
mod watch;

pub use client::connect;
pub use election::LeaseSettings;
pub use metrics::Metrics;
pub use mirror::ReplicatorSettings;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{
    channel::mpsc,
    future::{join_all, try_join_all},
};
use kube::Client;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use context::{Context, Memory};
use election::Candidate;
use events::Events;
use scope::{Queues, Scope};
use secrets::SecretCache;

/// How long namespaces wait for the others to be known too: one that is gone, or in which the operator has no rights, never is.
const FILLED_WITHIN: Duration = Duration::from_secs(30);
/// How long reconciles that are running get to end, when the process is told to stop.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// What an operator is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespaces to watch; all of them when there are none.
    pub namespaces: BTreeSet<String>,
    /// What all replicators have in common.
    pub replicators: ReplicatorSettings,
    /// Names this process in events and as the Lease's holder.
    pub identity: String,
    /// The Lease to hold while working; `None` to work at once, where no second operator runs.
    pub lease: Option<LeaseSettings>,
}

/// Works until `stop`: waits for the Lease, runs the controllers while it is held, and waits again when it is lost. Then reconciles that are running end,
/// and the Lease is let go.
pub async fn run(client: Client, settings: Settings, metrics: Arc<Metrics>, stop: CancellationToken) {
    let Some(lease) = settings.lease.clone() else {
        work(&client, &settings, &metrics, stop).await;
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
            () = work(&client, &settings, &metrics, stop.clone()) => {
                candidate.release().await;
                return;
            }
            // Dropping the work ends it at once, before anybody else may begin; whatever it was at can be done again.
            () = candidate.hold(since) => {
                metrics.set_leader(false);
                tracing::warn!("not leading any more");
            }
        }
    }
}

/// Runs the controllers until `stop`.
async fn work(client: &Client, settings: &Settings, metrics: &Arc<Metrics>, stop: CancellationToken) {
    metrics.set_leader(true);
    // Not that of an earlier time as leader: it was cut off anywhere, and what others did since isn't in it.
    let memory = Arc::new(Memory::default());
    let secrets = Arc::new(SecretCache::default());
    let mut watches = JoinSet::new();
    let mut scopes = Vec::new();
    let mut queues = Vec::new();
    let namespaces: Vec<Option<&str>> = match settings.namespaces.is_empty() {
        true => vec![None],
        false => settings.namespaces.iter().map(|namespace| Some(namespace.as_str())).collect(),
    };
    for namespace in namespaces {
        let (peers, peer_queue) = mpsc::unbounded();
        let (mirrors, mirror_queue) = mpsc::unbounded();
        let queue = Queues { peers, mirrors, memory: Arc::clone(&memory), metrics: Arc::clone(metrics) };
        scopes.push(Scope::watch(client, namespace, &queue, &secrets, &mut watches));
        queues.push((peer_queue, mirror_queue));
    }
    let context = Arc::new(Context {
        client: client.clone(),
        replicators: settings.replicators.clone(),
        events: Events::new(client.clone(), &settings.identity),
        metrics: Arc::clone(metrics),
        secrets,
        scopes,
        memory,
        status_client: mirror::StatusClient::new(),
    });
    let controllers = context.scopes.iter().zip(queues).map(|(scope, (peer_queue, mirror_queue))| {
        let peers = (scope.peers.clone(), peer_queue);
        let mirrors = (scope.mirrors.clone(), mirror_queue);
        let peers = controller::run("peer", peers, Arc::clone(&context), peer::reconcile, stop.clone());
        let mirrors =
            controller::run("mirror", mirrors, Arc::clone(&context), mirror::reconcile, stop.clone());
        let stopped = stop.clone();
        async move {
            tokio::select! {
                Ok(()) = scope.filled() => {
                    tokio::join!(peers, mirrors);
                }
                () = stopped.cancelled() => {}
            }
        }
    });
    let all = async {
        let filled = timeout(FILLED_WITHIN, try_join_all(context.scopes.iter().map(Scope::filled)));
        tokio::select! {
            filled = filled => {
                if filled.is_err() {
                    tracing::warn!("some namespaces can't be read; the others are looked at without them");
                }
                join_all(controllers).await
            }
            () = stop.cancelled() => Vec::new(),
        }
    };
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_WITHIN).await;
    };
    tokio::select! {
        _ = all => tracing::info!("controllers have ended"),
        () = drained => tracing::warn!("reconciles that have not ended in time are left; they are done again"),
    }
    metrics.set_leader(false);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::StreamExt;
    use kube::client::Body;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    /// An API server with one Mirror in `shop`, which refuses all that is asked about `gone`, and that sends the time of the first write.
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
        let looked = async {
            let first = timeout(Duration::from_secs(300), written.next()).await;
            let stopping = Instant::now();
            stop.cancel();
            (first, stopping)
        };
        let ((), (first, stopping)) = futures::join!(running, looked);
        assert!(first.unwrap().unwrap() - began >= FILLED_WITHIN, "it might still have come");
        assert!(stopping.elapsed() <= DRAIN_WITHIN, "it ends in order");
    }
}
