//! Probes a peer's database.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    check::{self, Check},
    fault::Reason,
    operator::blocker::Blocker,
    resolve::Endpoint,
    status::{PeerOutcome, PeerReport},
};

/// The operator's `application_name` at a source when it probes on behalf of no particular Mirror.
const APPLICATION_NAME: &str = "walferry operator";
/// The time limit of a probe: a server that takes longer counts as unreachable.
const PROBE_TIMEOUT: Duration = Duration::from_secs(40);

/// Connects, and checks version, settings and privileges.
pub(super) async fn probe(endpoint: &Endpoint) -> PeerReport {
    let checks = async {
        match endpoint {
            Endpoint::Postgres(endpoint) => {
                let (checks, server) = check::source_server(endpoint, APPLICATION_NAME).await;
                let identifier = server.as_ref().and_then(|server| server.system_identifier.clone());
                (checks, server.map(|server| server.version), identifier)
            }
            Endpoint::ClickHouse(endpoint) => {
                let (checks, version) = check::destination_server(endpoint).await;
                (checks, version.map(|version| version.text), None)
            }
        }
    };
    match timeout(PROBE_TIMEOUT, checks).await {
        Ok((checks, server_version, system_identifier)) => {
            PeerReport { outcome: outcome(&checks), server_version, system_identifier }
        }
        Err(_) => {
            let reason = match endpoint {
                Endpoint::Postgres(_) => Reason::SourceUnreachable,
                Endpoint::ClickHouse(_) => Reason::DestinationUnreachable,
            };
            let seconds = PROBE_TIMEOUT.as_secs();
            blocked_report(Blocker::transient(
                reason,
                format!("the server did not answer within {seconds} s"),
            ))
        }
    }
}

/// The report about a peer that could not be probed completely.
pub(super) fn blocked_report(blocker: Blocker) -> PeerReport {
    let outcome = if blocker.transient {
        PeerOutcome::Retrying(blocker.failure)
    } else {
        PeerOutcome::Stalled(blocker.failure)
    };
    PeerReport { outcome, server_version: None, system_identifier: None }
}

fn outcome(checks: &[Check]) -> PeerOutcome {
    match Blocker::checks(checks) {
        Some(blocker) => blocked_report(blocker).outcome,
        None => {
            let detail = |name: &str| {
                let check = checks.iter().find(|check| check.name == name);
                check.map_or("", |check| check.detail.as_str())
            };
            PeerOutcome::Connected { message: format!("{}: {}", detail("version"), detail("connection")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    fn check(name: &str, outcome: Outcome, transient: bool, detail: &str) -> Check {
        Check {
            subject: "source".to_owned(),
            name: name.to_owned(),
            outcome,
            detail: detail.to_owned(),
            remedies: Vec::new(),
            reason: Some(Reason::SourceUnreachable),
            transient,
            of_state: false,
        }
    }

    #[test]
    fn the_outcome_follows_from_the_checks() {
        let connection =
            check("connection", Outcome::Warning, false, "app as walferry at db:5432, plain text");
        let version = check("version", Outcome::Ok, false, "PostgreSQL 18.4");
        assert_eq!(
            outcome(&[connection, version]),
            PeerOutcome::Connected {
                message: "PostgreSQL 18.4: app as walferry at db:5432, plain text".to_owned()
            }
        );
        let failed = |transient| outcome(&[check("connection", Outcome::Failure, transient, "refused")]);
        assert!(
            matches!(failed(true), PeerOutcome::Retrying(failure) if failure.reason == Reason::SourceUnreachable)
        );
        assert!(
            matches!(failed(false), PeerOutcome::Stalled(failure) if failure.message.ends_with("refused"))
        );
    }
}
