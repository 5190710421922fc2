//! What a reconcile can fail of, and the words for it.

use super::obstacle::Obstacle;
use crate::fault::error_chain;

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

/// The API server's own sentence, without the whole answer around it; where there is none, what went wrong down to its cause.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => return status.message.clone(),
        // What serde says quotes the answer.
        kube::Error::SerdeError(error) => {
            let (line, column) = (error.line(), error.column());
            return format!("the answer is not what was asked for (line {line}, column {column})");
        }
        _ => {}
    }
    error_chain(error)
}

impl From<Obstacle> for Error {
    fn from(obstacle: Obstacle) -> Self {
        Error::Obstacle(obstacle)
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
        let told = Error::from(kube::Error::SerdeError(error)).to_string();
        assert_eq!(told, "API server: the answer is not what was asked for (line 1, column 19)");
    }

    /// "ServiceError: client error (Connect)" tells nobody what to look at.
    #[tokio::test]
    async fn an_api_server_out_of_reach_is_told_with_the_cause() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = kube::Config::new(format!("http://{closed}").parse().unwrap());
        let peers: Api<ReplicationPeer> = Api::all(Client::try_from(config).unwrap());
        let error = peers.get_metadata("app").await.unwrap_err();
        assert!(words(&error).contains("Connection refused"), "{}", words(&error));
    }
}
