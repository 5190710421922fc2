//! The controller of Mirrors: a short driver over named steps, each in its own file.
//!
//! fetch → validate → preflight → build → apply → replicator → slot → publish. Whatever step a look at a Mirror ends in, it comes to one
//! [`MirrorReport`], from which status and events are made.

mod apply;
mod build;
mod fetch;
mod finalize;
mod observe;
mod owned;
mod preflight;
mod publish;
mod replicator;
mod slot;
mod tell;
mod validate;

pub(super) use build::MIRROR_UID;
pub use build::ReplicatorSettings;
pub(super) use replicator::StatusClient;

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt, runtime::controller::Action};

use super::{
    context::{Context, Written},
    error::Error,
    events::Notice,
    login,
    obstacle::Obstacle,
    scope::Guarded,
};
use crate::{
    api::{Mirror, MirrorStatus, RESYNC},
    fault::Reason,
    model::{MirrorIdentity, MirrorPhase, MirrorReport},
};
use apply::{Applied, Present, Wanted, apply};
use finalize::{Endpoints, finalize};
use owned::Owner;
use publish::publish;
use replicator::{hindered, unasked};
use tell::Told;
use validate::Plan;

/// How often a Mirror is looked at that is on its way.
const MOVING: Duration = Duration::from_secs(1);
/// How often one is looked at that streams, for its figures.
const STREAMING: Duration = Duration::from_secs(5);
/// How often one is looked at that waits for a human, or for nothing.
const RESTING: Duration = Duration::from_secs(60);

/// Within this time after a Mirror, its peers are applied too if they are in the same file.
const APPLIED_TOGETHER: SignedDuration = SignedDuration::from_secs(10);

/// What is remembered of a Mirror.
#[derive(Debug, Default)]
pub(super) struct Memory {
    written: Option<Written<MirrorStatus>>,
    applied: Option<Applied>,
    /// What the servers said last to a configuration that can't be run.
    refused: Option<preflight::Refused>,
    endpoints: Option<Endpoints>,
    /// The slot, when the operator last looked at it itself.
    seen: Option<slot::Seen>,
    /// What was told of reports so far.
    told: Told,
    /// Whether it was let go: the watch shows that only a little later.
    ended: bool,
    /// The value of the annotation that asks for a resync, as last applied.
    resync: Option<Option<String>>,
}

/// Looks at a Mirror.
///
/// # Errors
/// What the API server says; everything else is told in the status.
pub(super) async fn reconcile(mirror: Arc<Guarded<Mirror>>, context: Arc<Context>) -> Result<Action, Error> {
    let identity = validate::identity(&*mirror);
    if mirror.meta().deletion_timestamp.is_some() {
        return finalize(&context, &mirror, &identity).await;
    }
    let readable = match &mirror.0 {
        Ok(readable) => readable,
        Err(invalid) => {
            let report = hindered(&identity, login::unreadable(&invalid.error));
            publish(&context, &mirror, &report).await?;
            return Ok(Action::await_change());
        }
    };
    if readable.status.as_ref().is_none_or(|status| status.conditions.is_empty()) {
        publish(&context, &mirror, &unasked(&identity, MirrorPhase::Provisioning, None)).await?;
    }
    let (report, ours) = match drive(&context, readable, &identity).await {
        Ok(report) => (report, false),
        Err(Error::Obstacle(obstacle)) if may_still_come(readable, &obstacle) => {
            (unasked(&identity, MirrorPhase::Provisioning, Some(obstacle.failure)), true)
        }
        Err(Error::Obstacle(obstacle)) => (standing(&context, readable, &identity, obstacle).await?, true),
        Err(error) => return Err(error),
    };
    let uid = mirror.uid().unwrap_or_default();
    let report = slot::look_where_unread(&context, readable, &identity, report).await;
    let told = |memory: &mut Memory| memory.told.take_up(&report);
    for notice in context.memory.mirrors.of(&uid, told) {
        context.events.publish(&mirror.object_ref(&()), &notice).await;
    }
    publish(&context, &mirror, &report).await?;
    Ok(Action::requeue(pause(&context, &uid, &report, ours)))
}

/// Whether what a Mirror lacks may just be applied after it: `kubectl apply` of one file or folder has an order of its own.
fn may_still_come(mirror: &Mirror, obstacle: &Obstacle) -> bool {
    let created = mirror.meta().creation_timestamp.as_ref();
    let age = created.map(|created| Timestamp::now().duration_since(created.0));
    obstacle.failure.reason == Reason::PeerMissing && age.is_some_and(|age| age < APPLIED_TOGETHER)
}

/// All steps up to the report.
async fn drive(context: &Context, mirror: &Mirror, identity: &MirrorIdentity) -> Result<MirrorReport, Error> {
    let uid = mirror.uid().unwrap_or_default();
    let fetched = fetch::fetch(context, mirror).await?;
    let plan = validate::validate(mirror, &fetched)?;
    let wanted = Wanted::render(context, mirror, &plan)?;
    let present = Present::read(context, mirror);
    let applied = context.memory.mirrors.of(&uid, |memory| memory.applied.clone());
    if wanted.starts_anew(&present, applied.as_ref()) {
        preflight::preflight(context, mirror, &wanted, &present, &plan.config).await?;
    }
    remember(context, mirror, &plan).await;
    let deployment = apply(context, mirror, &wanted, &present).await?;
    if mirror.spec.suspend {
        return Ok(unasked(identity, MirrorPhase::Suspended, None));
    }
    Ok(replicator::report(context, identity, &Owner::of(mirror), Some(&deployment)).await)
}

/// Keeps what a later clean-up may not find any more, and tells of a resync that begins.
async fn remember(context: &Context, mirror: &Mirror, plan: &Plan<'_>) {
    let endpoints =
        Endpoints { source: plan.config.source.clone(), destination: plan.config.destination.clone() };
    let asked = mirror.annotations().get(RESYNC).cloned();
    let before = context.memory.mirrors.of(&mirror.uid().unwrap_or_default(), |memory| {
        memory.endpoints = Some(endpoints);
        memory.resync.replace(asked.clone())
    });
    if let (Some(before), Some(asked)) = (before, &asked)
        && before.as_ref() != Some(asked)
    {
        let notice = Notice::normal(
            Reason::ResyncRequested,
            format!("tables are copied anew, as {RESYNC}={asked} asks"),
        );
        context.events.publish(&mirror.object_ref(&()), &notice).await;
    }
}

/// The report about a Mirror that something keeps from going on as it is. A replicator with earlier settings is left to run, and its figures are told.
async fn standing(
    context: &Context,
    mirror: &Mirror,
    identity: &MirrorIdentity,
    obstacle: Obstacle,
) -> Result<MirrorReport, kube::Error> {
    let told = hindered(identity, obstacle);
    let Some(deployment) = Present::read(context, mirror).deployment else { return Ok(told) };
    if mirror.spec.suspend {
        apply::scale_down(context, &deployment).await?;
        return Ok(told);
    }
    let running = replicator::report(context, identity, &Owner::of(mirror), Some(&deployment)).await;
    if running.tables.is_empty() {
        return Ok(told);
    }
    let at_work = matches!(running.phase, MirrorPhase::Snapshotting | MirrorPhase::Streaming);
    let meanwhile = at_work.then_some(running.phase);
    let mut failure = told.failure;
    if let (Some(failure), Some(_)) = (&mut failure, meanwhile) {
        failure.message =
            format!("{} (until then the replicator goes on with its earlier settings)", failure.message);
    }
    Ok(MirrorReport { phase: told.phase, failure, meanwhile, ..running })
}

/// When to look again. `ours` says that the operator itself met an obstacle, and didn't just hear of one.
fn pause(context: &Context, uid: &str, report: &MirrorReport, ours: bool) -> Duration {
    if ours && report.phase == MirrorPhase::Retrying {
        return context.memory.backoff.next(uid);
    }
    context.memory.backoff.reset(uid);
    match report.phase {
        // A replicator is at work nevertheless, and its figures move.
        MirrorPhase::Stalled if !report.tables.is_empty() => STREAMING,
        MirrorPhase::Provisioning | MirrorPhase::Snapshotting => MOVING,
        MirrorPhase::Streaming | MirrorPhase::Retrying => STREAMING,
        MirrorPhase::Suspended => slot::EVERY,
        MirrorPhase::Stalled | MirrorPhase::Finished | MirrorPhase::Deleting => RESTING,
    }
}
