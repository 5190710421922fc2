//! The loop of a controller: takes requests from its queue and reconciles, one reconcile at a time for each
//! object.

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

use super::{error::Error, shared::Shared};

/// How many objects are reconciled concurrently: enough that sources which don't respond don't delay the
/// others.
const CONCURRENCY: u16 = 16;

/// Reconciles from the queue until `stop`, then finishes the running reconciles. Errors are retried with
/// exponential backoff.
pub(super) async fn run<K, C, F>(
    name: &'static str,
    (store, queue): (Store<K>, UnboundedReceiver<ReconcileRequest<K>>),
    context: Arc<C>,
    reconcile: impl Fn(Arc<K>, Arc<C>) -> F + Clone + Send + 'static,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    C: AsRef<Shared> + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let reconciler = move |object: Arc<K>, context: Arc<C>| {
        let reconcile = reconcile.clone();
        async move {
            let started = Instant::now();
            let result = reconcile(object, Arc::clone(&context)).await;
            (*context).as_ref().metrics.reconciled(name, started.elapsed(), result.is_ok());
            result
        }
        .boxed()
    };
    let error_policy = move |object: Arc<K>, error: &Error, context: Arc<C>| {
        let pause = (*context).as_ref().backoff.next(&object.uid().unwrap_or_default());
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        match error {
            // The object in the store is outdated: the watch brings the current one.
            Error::Api(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                tracing::debug!(namespace, name, %error, "the object has changed since it was read");
            }
            _ => tracing::warn!(namespace, name, %error, ?pause, "reconcile failed, retrying"),
        }
        Action::requeue(pause)
    };
    let queue = queue.map(Ok::<_, Infallible>).take_until(stop.cancelled_owned());
    let config = controller::Config::default().concurrency(CONCURRENCY);
    applier(reconciler, error_policy, context, store, queue, config)
        .for_each(|result| async move {
            // The error policy has logged failed reconciles; the other errors are about objects that are
            // gone.
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
        super::{events::EventRecorder, metrics::Metrics, object::MaybeInvalid, peer, stores::Stores},
        *,
    };
    use crate::api::ReplicationPeer;

    /// An API server that answers the first `conflicts` patches with a conflict.
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

    fn context(client: Client) -> peer::Controller {
        let shared = Shared {
            events: EventRecorder::new(client.clone(), "test"),
            client,
            metrics: Arc::new(Metrics::new().unwrap()),
            secrets: Arc::default(),
            stores: Stores::default(),
            backoff: Arc::default(),
        };
        peer::Controller { shared: Arc::new(shared), caches: Arc::default() }
    }

    /// Others write the same object all the time: each attempt is made once, after a longer pause, and the
    /// last one succeeds.
    #[tokio::test(start_paused = true)]
    async fn conflicts_are_retried_with_backoff_until_one_patch_succeeds() {
        let peer: MaybeInvalid<ReplicationPeer> = serde_json::from_value(json!({
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
        let expected =
            json!({"metadata": {"uid": "0a", "resourceVersion": "7", "finalizers": ["example.com/other"]}});
        assert_eq!(*patches.lock().unwrap(), vec![expected; 7]);
    }
}
