//! The client of the API server. Every request has a time limit, whatever the server does with the
//! connection.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::{Request, Response};
use kube::{Client, Config, client::Body};
use tokio::time::timeout;
use tower_service::Service;

/// The time limit to connect to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit until the whole response has arrived; for a watch, until it has begun.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a watch may be silent: the server ends each watch after 290 s.
const READ_TIMEOUT: Duration = Duration::from_secs(300);

/// A client for the cluster of `config`.
///
/// # Errors
/// When the configuration can't be used.
pub fn connect(mut config: Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let namespace = config.default_namespace.clone();
    Ok(with_time_limits(Client::try_from(config)?, &namespace))
}

/// The same client with time limits.
fn with_time_limits(client: Client, namespace: &str) -> Client {
    let valid_until = *client.valid_until();
    Client::new(TimeLimit(client), namespace).with_valid_until(valid_until)
}

/// The API server did not respond in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", RESPONSE_TIMEOUT.as_secs())]
struct NoResponse;

/// Limits the time of each request.
struct TimeLimit(Client);

impl Service<Request<Body>> for TimeLimit {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, kube::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move {
            let watches = is_watch(&request);
            let response = async {
                let response = client.send(request).await?;
                if watches {
                    return Ok(response);
                }
                let (head, body) = response.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok(Response::from_parts(head, Body::from(body)))
            };
            timeout(RESPONSE_TIMEOUT, response)
                .await
                .unwrap_or_else(|_| Err(kube::Error::Service(NoResponse.into())))
        })
    }
}

/// Whether the response is meant to have no end: a list requested with exactly `watch=true`.
fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|parameter| parameter == "watch=true"))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use bytes::Bytes;
    use futures::{StreamExt, TryStreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use kube::{
        Api,
        api::{Patch, PatchParams, WatchParams},
    };
    use serde_json::json;
    use tokio::time::Instant;
    use tracing_subscriber::{filter::filter_fn, layer::SubscriberExt};

    use super::*;
    use crate::{operator::error::api_error, telemetry::holds_no_answer};

    /// How a server responds to every request.
    #[derive(Clone, Copy)]
    enum Answers {
        Never,
        /// The beginning of a response, and no more.
        Half(&'static str),
    }

    fn client(answers: Answers) -> Client {
        let service = tower::service_fn(move |_: Request<Body>| async move {
            let Answers::Half(text) = answers else { return std::future::pending().await };
            let begins = stream::once(async move { Ok::<_, Infallible>(Frame::data(Bytes::from(text))) });
            Ok::<_, Infallible>(Response::new(StreamBody::new(begins.chain(stream::pending()))))
        });
        with_time_limits(Client::new(service, "team"), "team")
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_hangs() {
        for answers in [Answers::Never, Answers::Half(r#"{"kind": "Secret", "#)] {
            let began = Instant::now();
            let secrets: Api<Secret> = Api::namespaced(client(answers), "team");
            let error = secrets.get_opt("app-db").await.unwrap_err();
            assert_eq!(api_error(&error), "ServiceError: no answer within 30 s");
            let patch = Patch::Merge(json!({"data": null}));
            secrets.patch("app-db", &PatchParams::default(), &patch).await.unwrap_err();
            assert_eq!(began.elapsed(), 2 * RESPONSE_TIMEOUT);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_has_begun_continues() {
        let event = concat!(
            r#"{"type":"ADDED","object":{"apiVersion":"v1","kind":"ConfigMap","#,
            r#""metadata":{"name":"a","namespace":"team","resourceVersion":"1"}}}"#,
            "\n"
        );
        let watch = |answers| {
            let maps: Api<ConfigMap> = Api::namespaced(client(answers), "team");
            async move { maps.watch(&WatchParams::default(), "0").await }
        };
        let mut events = Box::pin(watch(Answers::Half(event)).await.unwrap());
        assert!(events.try_next().await.unwrap().is_some());
        assert!(timeout(3 * RESPONSE_TIMEOUT, events.next()).await.is_err(), "it waits for more");
        assert!(watch(Answers::Never).await.is_err(), "a watch that does not begin times out");
    }

    /// What a process logs during `work` when its filter lets everything through.
    async fn logged(work: impl Future<Output = ()>) -> String {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&lines);
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("trace,kube_client=trace,kube_client::client=trace")
            .with_writer(move || Lines(Arc::clone(&writer)))
            .finish()
            .with(filter_fn(holds_no_answer));
        let guard = tracing::subscriber::set_default(subscriber);
        work.await;
        drop(guard);
        let lines = lines.lock().unwrap().clone();
        String::from_utf8(lines).unwrap()
    }

    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A list where one Secret was asked for, a Secret whose data has another form, and an error whose body
    /// is no Status.
    #[tokio::test]
    async fn answers_of_the_api_server_are_never_logged() {
        let hush = "aHVzaC1odXNo";
        for (code, answer) in [
            (200, json!({"kind": "SecretList", "apiVersion": "v1", "items": [{"data": {"password": hush}}]})),
            (200, json!({"kind": "Secret", "apiVersion": "v1", "data": [{"password": hush}]})),
            (200, json!({"kind": "Secret", "apiVersion": "v1", "data": hush})),
            (500, json!({"data": {"password": hush}})),
        ] {
            let text = answer.to_string();
            let service = tower::service_fn(move |_: hyper::Request<Body>| {
                let body = Body::from(text.clone().into_bytes());
                async move { Ok::<_, Infallible>(hyper::Response::builder().status(code).body(body).unwrap()) }
            });
            let secrets: Api<Secret> = Api::namespaced(Client::new(service, "team"), "team");
            let logged = logged(async {
                tracing::trace!("everything is logged");
                secrets.get("app-db").await.unwrap_err();
            });
            let logged = logged.await;
            assert!(logged.contains("everything is logged"), "{logged}");
            assert!(!logged.contains(hush), "{code}: {logged}");
        }
    }
}
