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

use super::{context::Context, obstacle::Obstacle};

/// How many objects are looked at at the same time: enough that sources which don't answer don't hold up the others.
const CONCURRENCY: u16 = 16;

/// Why a reconcile stopped half-way.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Something that the object's status tells.
    #[error("{}: {}", .0.failure.reason, .0.failure.message)]
    Obstacle(Obstacle),
    /// The API server refused or did not answer.
    #[error("API server: {}", words(.0))]
    Api(#[from] kube::Error),
    /// A resource can't be written as YAML: a defect of walferry.
    #[error("cannot render the configuration: {0}")]
    Render(#[from] serde_yaml::Error),
}

/// The API server's own sentence, without the whole answer around it.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

impl From<Obstacle> for Error {
    fn from(obstacle: Obstacle) -> Self {
        Error::Obstacle(obstacle)
    }
}

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
