//! The third step: whether both servers have what replication needs. The same checks, in the same words, as `walferry check`.

use std::time::Duration;

use tokio::time::timeout;

use crate::{api::conditions::reason, check, model::ReplicatorConfig, operator::obstacle::Obstacle};

/// Longest time of all checks together.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Checks both servers.
///
/// # Errors
/// What failed, with the fix.
pub(super) async fn preflight(config: &ReplicatorConfig) -> Result<(), Obstacle> {
    match timeout(ANSWER_WITHIN, check::preflight(config)).await {
        Ok(report) => Obstacle::checks(&report.checks).map_or(Ok(()), Err),
        Err(_) => {
            let message =
                format!("the checks of both servers took longer than {} s", ANSWER_WITHIN.as_secs());
            Err(Obstacle::passing(reason::PROGRESSING_WITH_RETRY, message))
        }
    }
}
