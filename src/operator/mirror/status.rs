//! The last step: writes the status of a report, and publishes events of what has changed.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Resource, ResourceExt};

use super::events::status_events;
use crate::{
    api::{Mirror, MirrorStatus},
    model::MirrorReport,
    operator::{
        last_status::LastStatus,
        object::{MaybeInvalid, valid},
        shared::Shared,
    },
    status,
};

/// Writes the status if it differs enough from the last one, and publishes events of what has changed.
///
/// # Errors
/// The API server's error.
pub(super) async fn publish(
    shared: &Shared,
    last_status: &mut LastStatus<MirrorStatus>,
    mirror: &MaybeInvalid<Mirror>,
    report: &MirrorReport,
) -> Result<(), kube::Error> {
    let uid = mirror.uid().unwrap_or_default();
    let watched = valid(mirror).and_then(|mirror| mirror.status.as_ref());
    let (before, age) = last_status.current(mirror, watched);
    let generation = mirror.meta().generation;
    let next = status::mirror_status(report, generation, before.as_ref(), &Time(Timestamp::now()));
    shared.metrics.record_ready("Mirror", &uid, &next.conditions);
    if !status::write_now(before.as_ref(), &next, age) {
        return Ok(());
    }
    shared.write_status(mirror, &next).await?;
    last_status.record(mirror, next.clone());
    let mode = valid(mirror).map(|mirror| mirror.spec.snapshot.mode).unwrap_or_default();
    for event in status_events(&before.unwrap_or_default(), &next, mode) {
        shared.events.publish(&mirror.object_ref(&()), &event).await;
    }
    Ok(())
}
