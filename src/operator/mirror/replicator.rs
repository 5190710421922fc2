//! The sixth step: how the replicator fares, from its pod and from its own `/status`.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::{SignedDuration, Timestamp},
};
use tokio::time::timeout;

use super::{
    observe::{ReplicatorState, replicator_state},
    owned::Owner,
};
use crate::{
    fault::{Reason, innermost},
    model::{Lsn, MirrorFailure, MirrorIdentity, MirrorPhase, MirrorReport},
    operator::{context::Context, obstacle::Obstacle},
    status::StatusDocument,
};

/// Longest time of a request: the pod is near and answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a container that has started may take until it answers.
const LISTENS_WITHIN: SignedDuration = SignedDuration::from_secs(10);
/// Most bytes of an answer.
const LONGEST_ANSWER: usize = 8 << 20;

/// Asks replicators for their status.
pub(in crate::operator) struct StatusClient(Client<HttpConnector, Empty<Bytes>>);

impl fmt::Debug for StatusClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusClient")
    }
}

impl StatusClient {
    /// A client without connections.
    pub(in crate::operator) fn new() -> StatusClient {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(ANSWER_WITHIN));
        // The next question comes seconds later, perhaps to another pod at the same address.
        StatusClient(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }

    /// The report about this Mirror of the replicator at `address`.
    async fn ask(&self, address: &str, mirror: &MirrorIdentity) -> Result<MirrorReport, String> {
        let answer = async {
            let uri = format!("http://{address}/status").parse().map_err(|_| "not an address".to_owned())?;
            let response = self.0.get(uri).await.map_err(|error| innermost(&error))?;
            if !response.status().is_success() {
                return Err(format!("it answers {}", response.status()));
            }
            let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
            Ok(body.map_err(|error| error.to_string())?.to_bytes())
        };
        let seconds = ANSWER_WITHIN.as_secs();
        let body =
            timeout(ANSWER_WITHIN, answer).await.map_err(|_| format!("no answer within {seconds} s"))??;
        let document: StatusDocument = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let slot = mirror.slot_name();
        let mut mirrors = document.mirrors.into_iter().map(|mirror| mirror.report);
        mirrors.find(|report| report.slot_name == slot).ok_or_else(|| "it mirrors something else".to_owned())
    }
}

/// A report about a Mirror whose replicator was not asked. It has names and no figures.
pub(super) fn unasked(
    mirror: &MirrorIdentity,
    phase: MirrorPhase,
    failure: Option<MirrorFailure>,
) -> MirrorReport {
    MirrorReport {
        namespace: mirror.namespace.clone(),
        name: mirror.name.clone(),
        phase,
        failure,
        meanwhile: None,
        warning: None,
        slot_name: mirror.slot_name(),
        publication_name: mirror.publication_name(),
        last_lsn: Lsn::ZERO,
        lag: Default::default(),
        slot: Default::default(),
        slot_place: None,
        tables: Vec::new(),
    }
}

/// The same, about one that something keeps from going on.
pub(super) fn hindered(mirror: &MirrorIdentity, obstacle: Obstacle) -> MirrorReport {
    let phase = if obstacle.passing { MirrorPhase::Retrying } else { MirrorPhase::Stalled };
    unasked(mirror, phase, Some(obstacle.failure))
}

/// How the replicator of this Deployment fares.
pub(super) async fn report(
    context: &Context,
    mirror: &MirrorIdentity,
    owner: &Owner,
    deployment: Option<&Deployment>,
) -> MirrorReport {
    let pods = pods(context, owner);
    match replicator_state(deployment, &pods) {
        ReplicatorState::Absent => unasked(mirror, MirrorPhase::Provisioning, None),
        ReplicatorState::Starting { message } => {
            let failure = MirrorFailure::new(Reason::ReplicatorStarting, message);
            unasked(mirror, MirrorPhase::Provisioning, Some(failure))
        }
        ReplicatorState::Failing { reason, message, needs_human } => {
            let failure = MirrorFailure::new(reason.to_owned(), message);
            hindered(mirror, Obstacle { failure, passing: !needs_human })
        }
        ReplicatorState::Running { address } => {
            context.status_client.ask(&address, mirror).await.unwrap_or_else(|error| {
                if has_just_started(&pods, Timestamp::now()) {
                    let message = "the replicator's container has started".to_owned();
                    let failure = MirrorFailure::new(Reason::ReplicatorStarting, message);
                    return unasked(mirror, MirrorPhase::Provisioning, Some(failure));
                }
                let message = format!(
                    "the replicator at {address} does not answer: {error}; a NetworkPolicy may keep the operator from it"
                );
                hindered(mirror, Obstacle::passing(Reason::ReplicatorUnreachable, message))
            })
        }
    }
}

/// Whether a container runs that may not listen yet.
fn has_just_started(pods: &[Pod], now: Timestamp) -> bool {
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref()).flatten();
    let mut starts =
        statuses.filter_map(|container| container.state.as_ref()?.running.as_ref()?.started_at.clone());
    starts.any(|start| now.duration_since(start.0) < LISTENS_WITHIN)
}

/// The pods of this Mirror's replicator, as the store has them.
pub(super) fn pods(context: &Context, owner: &Owner) -> Vec<Pod> {
    let pods = context.scopes.iter().flat_map(|scope| scope.pods.state_filter(|pod| owner.owns_pod(pod)));
    pods.map(|pod| Pod::clone(&pod)).collect()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{model::Progress, status};

    fn identity(uid: &str) -> MirrorIdentity {
        MirrorIdentity { namespace: "team".into(), name: "demo".into(), uid: uid.into() }
    }

    /// Answers one request with this and gives the address.
    async fn server(answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    fn http(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_replicator_is_believed_about_its_own_mirror_alone() {
        let document = status::document(vec![(Progress::new(&identity("0a")).report(), None)]);
        let body = serde_json::to_string(&document).unwrap();
        let client = StatusClient::new();
        let address = server(http(&body)).await;
        let report = client.ask(&address, &identity("0a")).await.unwrap();
        assert_eq!(report.slot_name, "walferry_0a");
        let address = server(http(&body)).await;
        assert_eq!(client.ask(&address, &identity("0b")).await.unwrap_err(), "it mirrors something else");
    }

    #[tokio::test]
    async fn answers_that_make_no_sense_are_told() {
        let client = StatusClient::new();
        let address = server(http("{}")).await;
        assert!(client.ask(&address, &identity("0a")).await.unwrap_err().contains("mirrors"));
        let address =
            server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        assert_eq!(
            client.ask(&address, &identity("0a")).await.unwrap_err(),
            "it answers 503 Service Unavailable"
        );
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        assert!(client.ask(&closed, &identity("0a")).await.unwrap_err().contains("refused"));
    }
}
