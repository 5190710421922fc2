//! Reads a replicator's own report from its `/status`.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

use crate::{
    fault::innermost,
    model::{MirrorIdentity, MirrorReport},
    status::StatusDocument,
};

/// The time limit of a request: the pod is near and answers from memory.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// The most bytes of a response.
const MAX_RESPONSE: usize = 8 << 20;

/// Requests the status of replicators.
pub(super) struct StatusClient(Client<HttpConnector, Empty<Bytes>>);

impl fmt::Debug for StatusClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusClient")
    }
}

impl StatusClient {
    /// A client without connections.
    pub(super) fn new() -> StatusClient {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(REQUEST_TIMEOUT));
        // The next request comes seconds later, perhaps to another pod at the same address.
        StatusClient(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }

    /// The report about this Mirror from the replicator at `address`.
    ///
    /// # Errors
    /// Why there is none, as part of a sentence.
    pub(super) async fn report(
        &self,
        address: &str,
        mirror: &MirrorIdentity,
    ) -> Result<MirrorReport, String> {
        let response = async {
            let uri = format!("http://{address}/status").parse().map_err(|_| "not an address".to_owned())?;
            let response = self.0.get(uri).await.map_err(|error| innermost(&error))?;
            if !response.status().is_success() {
                return Err(format!("it answers {}", response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
            Ok(body.map_err(|error| error.to_string())?.to_bytes())
        };
        let seconds = REQUEST_TIMEOUT.as_secs();
        let body = timeout(REQUEST_TIMEOUT, response)
            .await
            .map_err(|_| format!("no answer within {seconds} s"))??;
        let document: StatusDocument = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let slot = mirror.slot_name();
        let mut reports = document.mirrors.into_iter().map(|mirror| mirror.report);
        reports.find(|report| report.slot_name == slot).ok_or_else(|| "it runs another Mirror".to_owned())
    }
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
    async fn a_replicator_reports_only_its_own_mirror() {
        let document = status::document(vec![(Progress::new(&identity("0a")).report(), None)]);
        let body = serde_json::to_string(&document).unwrap();
        let client = StatusClient::new();
        let address = server(http(&body)).await;
        let report = client.report(&address, &identity("0a")).await.unwrap();
        assert_eq!(report.slot_name, "walferry_0a");
        let address = server(http(&body)).await;
        assert_eq!(client.report(&address, &identity("0b")).await.unwrap_err(), "it runs another Mirror");
    }

    #[tokio::test]
    async fn unusable_responses_are_errors() {
        let client = StatusClient::new();
        let address = server(http("{}")).await;
        assert!(client.report(&address, &identity("0a")).await.unwrap_err().contains("mirrors"));
        let address =
            server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        assert_eq!(
            client.report(&address, &identity("0a")).await.unwrap_err(),
            "it answers 503 Service Unavailable"
        );
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        assert!(client.report(&closed, &identity("0a")).await.unwrap_err().contains("refused"));
    }
}
