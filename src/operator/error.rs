//! Errors of a reconcile, and their text.

use super::blocker::Blocker;
use crate::fault::error_chain;

/// Why a reconcile stopped before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Reported in the object's status.
    #[error("{}: {}", .0.failure.reason, .0.failure.message)]
    Blocked(Blocker),
    /// The API server refused or did not answer.
    #[error("API server: {}", api_error(.0))]
    Api(#[from] kube::Error),
    /// A resource can't be rendered as YAML: a defect of walferry.
    #[error("cannot render the configuration: {0}")]
    Render(#[from] serde_yaml::Error),
}

/// The API server's message without the answer around it or, for an error of the client, the error with its
/// causes.
pub(super) fn api_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => return status.message.clone(),
        // An error of serde quotes the answer.
        kube::Error::SerdeError(error) => {
            let (line, column) = (error.line(), error.column());
            return format!("the answer is not what was asked for (line {line}, column {column})");
        }
        _ => {}
    }
    error_chain(error)
}

impl From<Blocker> for Error {
    fn from(blocker: Blocker) -> Self {
        Error::Blocked(blocker)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::{Api, Client};

    use super::*;
    use crate::api::ReplicationPeer;

    /// An answer may be a Secret.
    #[test]
    fn an_answer_that_cannot_be_read_is_not_quoted() {
        let error = serde_json::from_str::<BTreeMap<String, u8>>(r#"{"password": "hush"}"#).unwrap_err();
        assert!(error.to_string().contains("hush"));
        let text = Error::from(kube::Error::SerdeError(error)).to_string();
        assert_eq!(text, "API server: the answer is not what was asked for (line 1, column 19)");
    }

    /// "ServiceError: client error (Connect)" alone gives no hint where to look.
    #[tokio::test]
    async fn an_unreachable_api_server_is_reported_with_the_cause() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = kube::Config::new(format!("http://{closed}").parse().unwrap());
        let peers: Api<ReplicationPeer> = Api::all(Client::try_from(config).unwrap());
        let error = peers.get_metadata("app").await.unwrap_err();
        assert!(api_error(&error).contains("Connection refused"), "{}", api_error(&error));
    }
}
