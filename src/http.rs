//! The HTTP endpoints: a replicator's `/healthz`, `/readyz`, `/metrics` and `/status`, and the operator's,
//! which has no `/status`.
//!
//! It shows figures and names, never rows or secrets, and takes no commands.

mod metrics;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    model::{MirrorPhase, MirrorReport, Progress, TableReport, TableState},
    status::{self, StatusDocument},
};

type Mirrors = Arc<[Arc<Progress>]>;

/// Listens at this address. `[::]` is every address of the machine, of IPv4 too and also where there is no
/// IPv6: a cluster has the one, the other or both.
///
/// # Errors
/// When the address can't be bound.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        listener => listener,
    }
}

/// Answers requests about these Mirrors until `stop`, then until those under way are answered.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    mirrors: Vec<Arc<Progress>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .route("/status", get(show_status))
        .with_state(Mirrors::from(mirrors));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Answers `/healthz` and `/readyz` with 200, and `/metrics` with what `render` gives, until `stop`, then
/// until requests under way are answered. A process that waits to lead is ready too: so a new one can take
/// over before the old one ends.
///
/// # Errors
/// When the listener fails.
pub async fn serve_metrics(
    listener: TcpListener,
    render: impl Fn() -> Result<String, prometheus::Error> + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(async || "ready\n"))
        .route("/metrics", get(async move || metrics_response(render())));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn reports(mirrors: &Mirrors) -> Vec<MirrorReport> {
    mirrors.iter().map(|mirror| mirror.report()).collect()
}

/// 200 unless a Mirror's tasks wait for each other, which only another process can end; then the body names
/// it.
async fn healthz(State(mirrors): State<Mirrors>) -> (StatusCode, String) {
    let stuck = mirrors.iter().filter_map(|mirror| {
        let (report, still) = (mirror.report(), mirror.liveness().stuck()?);
        let seconds = still.as_secs();
        Some(format!(
            "{}/{}: no progress for {seconds} s while waiting for no server: restart walferry\n",
            report.namespace, report.name
        ))
    });
    let stuck: String = stuck.collect();
    match stuck.is_empty() {
        true => (StatusCode::OK, "alive\n".to_owned()),
        false => (StatusCode::SERVICE_UNAVAILABLE, stuck),
    }
}

/// 200 when every Mirror streams changes or is finished; the body has a line for each.
async fn readyz(State(mirrors): State<Mirrors>) -> (StatusCode, String) {
    let reports = reports(&mirrors);
    let ready = reports.iter().all(is_ready);
    let line = |report: &MirrorReport| format!("{}/{}: {:?}\n", report.namespace, report.name, report.phase);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, reports.iter().map(line).collect())
}

fn is_ready(report: &MirrorReport) -> bool {
    match report.phase {
        MirrorPhase::Snapshotting | MirrorPhase::Streaming => {
            let failed = |table: &TableReport| table.state == TableState::Failed;
            report.tables.is_empty() || !report.tables.iter().all(failed)
        }
        MirrorPhase::Finished => true,
        // A suspended one is as it was asked to be, and nothing flows.
        MirrorPhase::Suspended
        | MirrorPhase::Provisioning
        | MirrorPhase::Retrying
        | MirrorPhase::Stalled
        | MirrorPhase::Deleting => false,
    }
}

async fn show_metrics(State(mirrors): State<Mirrors>) -> Response {
    metrics_response(metrics::render(&reports(&mirrors)))
}

fn metrics_response(rendered: Result<String, prometheus::Error>) -> Response {
    match rendered {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot make metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn show_status(State(mirrors): State<Mirrors>) -> Json<StatusDocument> {
    let reported = |mirror: &Arc<Progress>| (mirror.report(), mirror.renderer().cloned());
    Json(status::document(mirrors.iter().map(reported).collect()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::model::{Lsn, MirrorFailure, MirrorIdentity};

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn every_address_is_listened_at() {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.unwrap();
        if address.is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).await.unwrap();
        }
        let taken = listen(address).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn answers_until_stopped() {
        let mirror = MirrorIdentity { namespace: "default".into(), name: "demo".into(), uid: "0".into() };
        let progress = Arc::new(Progress::new(&mirror));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, vec![progress.clone()], stop.clone()));

        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let response = get(address, "/readyz").await;
        assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("default/demo: Provisioning\n"));
        progress.set_phase(MirrorPhase::Streaming, None);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let failure = MirrorFailure::new(crate::fault::Reason::SourceUnreachable, "refused");
        progress.set_phase(MirrorPhase::Retrying, Some(failure));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));

        let hour = std::time::Duration::from_secs(3600);
        progress.liveness().moved_at(std::time::Instant::now().checked_sub(hour).unwrap());
        let response = get(address, "/healthz").await;
        assert!(response.starts_with("HTTP/1.1 503") && response.contains("default/demo: no progress"));
        progress.liveness().moved();
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        progress.set_phase(MirrorPhase::Suspended, None);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        progress.set_source_lsn(Lsn(0));

        let response = get(address, "/status").await;
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json"), "{head}");
        let document: StatusDocument = serde_json::from_str(body).unwrap();
        assert_eq!(document.mirrors[0].report.name, "demo");
        assert!(
            get(address, "/metrics")
                .await
                .contains("walferry_lag_bytes{mirror=\"demo\",namespace=\"default\"} 0")
        );
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));

        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
