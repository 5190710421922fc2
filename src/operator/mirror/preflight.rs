//! The third step: whether both servers have what replication needs. The same checks, in the same words, as `walferry check`.

use std::{collections::BTreeMap, time::Duration};

use kube::ResourceExt;
use tokio::time::{Instant, timeout};

use super::apply::{Present, Wanted};
use crate::{
    api::Mirror,
    check,
    fault::Reason,
    model::ReplicatorConfig,
    operator::{context::Context, obstacle::Obstacle},
};

/// Longest time of all checks together.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How soon both servers are asked again about settings that they refused, while a replicator runs with earlier ones: its figures are
/// read more often than that.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Settings that a human must mend, with what the servers said and when.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    config_hash: String,
    annotations: BTreeMap<String, String>,
    obstacle: Obstacle,
    at: Instant,
}

impl Refused {
    /// Whether it would be said again: neither settings nor annotations, by which a user may ask for another look, have changed since.
    fn holds(&self, config_hash: &str, annotations: &BTreeMap<String, String>) -> bool {
        self.config_hash == config_hash && self.annotations == *annotations && self.at.elapsed() < AGAIN_AFTER
    }
}

/// Checks both servers.
///
/// # Errors
/// What failed, with the fix.
pub(super) async fn preflight(
    context: &Context,
    mirror: &Mirror,
    wanted: &Wanted,
    present: &Present,
    config: &ReplicatorConfig,
) -> Result<(), Obstacle> {
    let uid = mirror.uid().unwrap_or_default();
    let known = context.memory.mirrors.of(&uid, |memory| {
        let holds = |it: &&Refused| present.runs() && it.holds(&wanted.config_hash, mirror.annotations());
        memory.refused.as_ref().filter(holds).map(|refused| refused.obstacle.clone())
    });
    if let Some(obstacle) = known {
        return Err(obstacle);
    }
    let found = checks(config).await;
    let lasting = found.as_ref().err().filter(|obstacle| !obstacle.passing);
    let refused = lasting.map(|obstacle| Refused {
        config_hash: wanted.config_hash.clone(),
        annotations: mirror.annotations().clone(),
        obstacle: obstacle.clone(),
        at: Instant::now(),
    });
    context.memory.mirrors.of(&uid, |memory| memory.refused = refused);
    found
}

async fn checks(config: &ReplicatorConfig) -> Result<(), Obstacle> {
    match timeout(ANSWER_WITHIN, check::preflight(config)).await {
        // A table that can't be mirrored keeps no other from it: the replicator reports it as failed, and looks again.
        Ok(report) if !report.starts_nothing(config) => Ok(()),
        Ok(report) => Obstacle::checks(&report.checks).map_or(Ok(()), Err),
        Err(_) => {
            let message =
                format!("the checks of both servers took longer than {} s", ANSWER_WITHIN.as_secs());
            Err(Obstacle::passing(Reason::ProgressingWithRetry, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn settings_that_were_refused_are_not_checked_with_each_look() {
        let note = |value: &str| BTreeMap::from([("example.com/look".to_owned(), value.to_owned())]);
        let refused = Refused {
            config_hash: "a".to_owned(),
            annotations: note("1"),
            obstacle: Obstacle::lasting(Reason::InvalidSpec, "no"),
            at: Instant::now(),
        };
        assert!(refused.holds("a", &note("1")));
        assert!(!refused.holds("b", &note("1")) && !refused.holds("a", &note("2")));
        tokio::time::advance(AGAIN_AFTER).await;
        assert!(!refused.holds("a", &note("1")));
    }
}
