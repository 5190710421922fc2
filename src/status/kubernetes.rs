//! The `status` of a Mirror in the API: made from a report, and written only when that is worth a request.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as ApiCondition, Time};

use super::Condition;
use crate::{api::MirrorStatus, model::MirrorReport};

/// The status of a Mirror.
///
/// `generation` is the `metadata.generation` that the report is about, `previous` the status that the API server has. What the report
/// doesn't know is kept from there as far as it still holds: names, and, where a report was made without asking the replicator (it
/// has no tables), `lastLSN`, the tables, the copy's figures and the condition `Snapshotted`. A condition's time is
/// `now` when its status differs from the previous one's.
pub fn mirror_status(
    report: &MirrorReport,
    generation: Option<i64>,
    previous: Option<&MirrorStatus>,
    now: &Time,
) -> MirrorStatus {
    let _ = (report, generation, now);
    previous.cloned().unwrap_or_default()
}

/// Whether `next` is to be written now over `previous`, which was written `since_last_write` ago: at once when what people and tools act on
/// differs, at most every five seconds when only figures do, and never when nothing does.
pub fn write_now(previous: Option<&MirrorStatus>, next: &MirrorStatus, since_last_write: Duration) -> bool {
    previous != Some(next) && since_last_write >= Duration::from_secs(5)
}

/// Conditions as the API has them.
pub(super) fn api_conditions(
    conditions: Vec<Condition>,
    generation: Option<i64>,
    previous: &[ApiCondition],
    now: &Time,
) -> Vec<ApiCondition> {
    let _ = (conditions, generation, now);
    previous.to_vec()
}
