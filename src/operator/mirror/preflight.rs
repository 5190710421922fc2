//! The third step: whether both servers meet the requirements of replication. The same checks as
//! `walferry check`.

use std::{collections::BTreeMap, time::Duration};

use kube::ResourceExt;
use tokio::time::{Instant, timeout};

use super::apply::{Desired, Observed};
use crate::{api::Mirror, check, fault::Reason, model::ReplicatorConfig, operator::blocker::Blocker};

/// The time limit of all checks together.
const CHECKS_TIMEOUT: Duration = Duration::from_secs(60);
/// How soon rejected settings are checked again while a replicator runs with earlier ones, whose figures are
/// read more often than that.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Settings that failed the checks and need manual action.
#[derive(Clone, Debug)]
pub(super) struct Rejection {
    config_hash: String,
    annotations: BTreeMap<String, String>,
    blocker: Blocker,
    at: Instant,
}

impl Rejection {
    /// Whether it still applies: neither settings nor annotations, by which a user may request another check,
    /// have changed since.
    fn applies(&self, config_hash: &str, annotations: &BTreeMap<String, String>) -> bool {
        self.config_hash == config_hash
            && self.annotations == *annotations
            && self.at.elapsed() < RECHECK_INTERVAL
    }
}

/// Checks both servers.
///
/// # Errors
/// The failed checks, with their remedies.
pub(super) async fn preflight(
    rejection: &mut Option<Rejection>,
    mirror: &Mirror,
    desired: &Desired,
    observed: &Observed,
    config: &ReplicatorConfig,
) -> Result<(), Blocker> {
    let applies =
        |known: &&Rejection| observed.runs() && known.applies(&desired.config_hash, mirror.annotations());
    if let Some(known) = rejection.as_ref().filter(applies) {
        return Err(known.blocker.clone());
    }
    let result = checks(config).await;
    let terminal = result.as_ref().err().filter(|blocker| !blocker.transient);
    *rejection = terminal.map(|blocker| Rejection {
        config_hash: desired.config_hash.clone(),
        annotations: mirror.annotations().clone(),
        blocker: blocker.clone(),
        at: Instant::now(),
    });
    result
}

async fn checks(config: &ReplicatorConfig) -> Result<(), Blocker> {
    match timeout(CHECKS_TIMEOUT, check::preflight(config)).await {
        // A table that can't be replicated blocks no other table: the replicator reports it as failed, and
        // checks it again.
        Ok(report) if !report.starts_nothing(config) => Ok(()),
        Ok(report) => Blocker::checks(&report.checks).map_or(Ok(()), Err),
        Err(_) => {
            let message =
                format!("the checks of both servers took longer than {} s", CHECKS_TIMEOUT.as_secs());
            Err(Blocker::transient(Reason::ProgressingWithRetry, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rejected_settings_are_not_checked_in_each_reconcile() {
        let note = |value: &str| BTreeMap::from([("example.com/look".to_owned(), value.to_owned())]);
        let rejection = Rejection {
            config_hash: "a".to_owned(),
            annotations: note("1"),
            blocker: Blocker::terminal(Reason::InvalidSpec, "no"),
            at: Instant::now(),
        };
        assert!(rejection.applies("a", &note("1")));
        assert!(!rejection.applies("b", &note("1")) && !rejection.applies("a", &note("2")));
        tokio::time::advance(RECHECK_INTERVAL).await;
        assert!(!rejection.applies("a", &note("1")));
    }
}
