//! The loop of a controller: from a queue of what may have changed to reconciles, one at a time for each object.

use std::{convert::Infallible, fmt::Debug, future::Future, sync::Arc};

use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{
    Resource, ResourceExt,
    runtime::{
        applier,
        controller::{self, Action, ReconcileRequest},
        reflector::Store,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{context::Context, error::Error};

/// How many objects are looked at at the same time: enough that sources which don't answer don't hold up the others.
const CONCURRENCY: u16 = 16;

/// Works through the queue until `stop`, then until the reconciles that are running have ended. Errors are tried again with pauses that grow.
pub(super) async fn run<K, F>(
    name: &'static str,
    (store, queue): (Store<K>, UnboundedReceiver<ReconcileRequest<K>>),
    context: Arc<Context>,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + 'static,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let reconciler = move |object: Arc<K>, context: Arc<Context>| {
        let reconcile = reconcile.clone();
        async move {
            let started = Instant::now();
            let result = reconcile(object, Arc::clone(&context)).await;
            context.metrics.reconciled(name, started.elapsed(), result.is_ok());
            result
        }
        .boxed()
    };
    let error_policy = move |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let pause = context.memory.backoff.next(&object.uid().unwrap_or_default());
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        match error {
            // What was looked at is not what is there now: the watch brings that.
            Error::Api(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                tracing::debug!(namespace, name, %error, "the object has changed meanwhile");
            }
            _ => tracing::warn!(namespace, name, %error, ?pause, "reconcile failed, trying again"),
        }
        Action::requeue(pause)
    };
    let queue = queue.map(Ok::<_, Infallible>).take_until(stop.cancelled_owned());
    let config = controller::Config::default().concurrency(CONCURRENCY);
    applier(reconciler, error_policy, context, store, queue, config)
        .for_each(|result| async move {
            // Failed reconciles have been told by the error policy; what is left is about objects that are gone.
            if let Err(error @ controller::Error::ObjectNotFound(_)) = result {
                tracing::debug!(%error, "nothing to reconcile");
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    use futures::channel::mpsc;
    use http_body_util::BodyExt;
    use kube::{
        Client,
        client::Body,
        runtime::{reflector, watcher},
    };
    use serde_json::{Value, json};

    use super::{
        super::{
            context::Memory,
            events::Events,
            metrics::Metrics,
            mirror::{ReplicatorSettings, StatusClient},
            peer,
            scope::Guarded,
        },
        *,
    };
    use crate::api::ReplicationPeer;

    /// An API server, as far as one patch goes, that says conflict so often.
    fn client(conflicts: u32, patches: &Arc<Mutex<Vec<Value>>>) -> Client {
        let (left, patches) = (Arc::new(AtomicU32::new(conflicts)), Arc::clone(patches));
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let (left, patches) = (Arc::clone(&left), Arc::clone(&patches));
            async move {
                let body = request.into_body().collect().await?.to_bytes();
                patches.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                let refused = left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
                let (code, answer) = if refused {
                    (
                        409,
                        json!({"kind": "Status", "status": "Failure", "reason": "Conflict", "code": 409, "message": "the object has been modified"}),
                    )
                } else {
                    (
                        200,
                        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "app"}}),
                    )
                };
                let answer =
                    hyper::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer?)
            }
        });
        Client::new(service, "team")
    }

    fn context(client: Client) -> Context {
        let replicators = ReplicatorSettings {
            image: "w".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
        };
        Context {
            events: Events::new(client.clone(), "test"),
            client,
            replicators,
            metrics: Arc::new(Metrics::new().unwrap()),
            secrets: Arc::default(),
            scopes: Vec::new(),
            memory: Arc::<Memory>::default(),
            status_client: StatusClient::new(),
        }
    }

    /// Others write the same object all the time: each try is made once, after a longer pause, and the last one succeeds.
    #[tokio::test(start_paused = true)]
    async fn a_storm_of_conflicts_is_sat_out() {
        let peer: Guarded<ReplicationPeer> = serde_json::from_value(json!({
            "apiVersion": "walferry.dev/v1alpha1", "kind": "ReplicationPeer",
            "metadata": {"name": "app", "namespace": "team", "uid": "0a", "resourceVersion": "7",
                "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["walferry.dev/in-use", "example.com/other"]},
            "spec": {"postgres": {"host": "db", "database": "app", "credentialsSecretRef": {"name": "login"}}},
        }))
        .unwrap();
        let (store, mut writer) = reflector::store();
        for event in [watcher::Event::Init, watcher::Event::InitApply(peer.clone()), watcher::Event::InitDone]
        {
            writer.apply_watcher_event(&event);
        }
        let (requests, queue) = mpsc::unbounded();
        requests.unbounded_send(ReconcileRequest::from(reflector::ObjectRef::from_obj(&peer))).unwrap();
        let patches = Arc::default();
        let context = Arc::new(context(client(6, &patches)));
        let stop = CancellationToken::new();
        let began = Instant::now();
        let running = run("peer", (store, queue), context, peer::reconcile, stop.clone());
        let seven = async {
            while patches.lock().unwrap().len() < 7 {
                assert!(began.elapsed().as_secs() < 600, "{:?}", patches.lock().unwrap());
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            let took = began.elapsed().as_secs();
            tokio::time::sleep(std::time::Duration::from_secs(300)).await;
            stop.cancel();
            took
        };
        let ((), took) = futures::join!(running, seven);
        assert_eq!(took, 1 + 2 + 4 + 8 + 16 + 32);
        let wanted =
            json!({"metadata": {"uid": "0a", "resourceVersion": "7", "finalizers": ["example.com/other"]}});
        assert_eq!(*patches.lock().unwrap(), vec![wanted; 7]);
    }
}
