//! The controller of Mirrors: a short driver over named steps, each in its own file.
//!
//! fetch → validate → preflight → build → apply → report → slot health → events → status. Wherever a
//! reconcile ends, it yields one [`MirrorReport`], from which status and events are made. This file alone
//! knows the [`Controller`] and the [`ReconcileCache`]; a step gets what it needs as arguments.

mod apply;
mod build;
mod events;
mod fetch;
mod finalize;
mod owner;
mod pod;
mod preflight;
mod report;
mod slot_health;
mod status;
mod status_client;
mod validate;

pub use build::ReplicatorSettings;

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt, runtime::controller::Action};

use super::{
    blocker::Blocker, cache::PerObject, error::Error, last_status::LastStatus, object::MaybeInvalid,
    shared::Shared,
};
use crate::{
    api::{self, FormerName, Mirror, MirrorStatus, RESYNC},
    fault::Reason,
    model::{MirrorIdentity, MirrorPhase, MirrorReport},
};
use apply::{Applied, Desired, Observed};
use events::{EventTracker, ResyncTracker};
use finalize::{Deletion, Endpoints};
use owner::Owner;
use preflight::Rejection;
use report::{blocked_report, offline_report};
use slot_health::SlotHealth;
use status_client::StatusClient;

/// How often a Mirror is reconciled while it makes progress.
const PROGRESSING_INTERVAL: Duration = Duration::from_secs(1);
/// How often a Mirror is reconciled whose figures change.
const STREAMING_INTERVAL: Duration = Duration::from_secs(5);
/// How often a Mirror is reconciled that needs manual action, or nothing.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// Peers may follow a Mirror within this time if they are in the same file.
const APPLIED_TOGETHER: SignedDuration = SignedDuration::from_secs(10);

/// What the controller works with.
pub(super) struct Controller {
    shared: Arc<Shared>,
    replicators: ReplicatorSettings,
    status_client: StatusClient,
    caches: Arc<PerObject<ReconcileCache>>,
}

impl Controller {
    /// A controller with these caches.
    pub(super) fn new(
        shared: Arc<Shared>,
        replicators: ReplicatorSettings,
        caches: Arc<PerObject<ReconcileCache>>,
    ) -> Controller {
        Controller { shared, replicators, status_client: StatusClient::new(), caches }
    }
}

impl AsRef<Shared> for Controller {
    fn as_ref(&self) -> &Shared {
        &self.shared
    }
}

/// What is kept of a Mirror between two reconciles.
#[derive(Debug, Default)]
pub(super) struct ReconcileCache {
    last_status: LastStatus<MirrorStatus>,
    applied: Option<Applied>,
    /// The last failed checks of a configuration that can't run.
    rejection: Option<Rejection>,
    /// The databases of the last valid configuration, for a clean-up after the peers are gone.
    endpoints: Option<Endpoints>,
    slot_health: SlotHealth,
    events: EventTracker,
    resync: ResyncTracker,
    /// The generation whose former names were logged.
    former_names_logged: Option<i64>,
    /// Whether the finalizer was removed: the watch shows that with a delay.
    finalized: bool,
}

impl ReconcileCache {
    /// Logs the former names that a Mirror uses, once for each version of its spec.
    fn log_former_names(&mut self, mirror: &Mirror, identity: &MirrorIdentity, found: &[FormerName]) {
        let generation = mirror.meta().generation;
        if std::mem::replace(&mut self.former_names_logged, generation) == generation {
            return;
        }
        let MirrorIdentity { namespace, name: mirror, .. } = identity;
        for name in found {
            tracing::warn!(mirror, namespace, field = name.path, "{name}");
        }
    }
}

/// Reconciles a Mirror.
///
/// # Errors
/// The API server's error; everything else is reported in the status.
pub(super) async fn reconcile(
    object: Arc<MaybeInvalid<Mirror>>,
    controller: Arc<Controller>,
) -> Result<Action, Error> {
    let shared = &*controller.shared;
    let uid = object.uid().unwrap_or_default();
    let mut cache = controller.caches.of(&uid).await;
    let identity = validate::identity(&*object);
    if object.meta().deletion_timestamp.is_some() {
        return finalize(shared, &mut cache, &object, &identity).await;
    }
    let mirror = match &object.0 {
        Ok(mirror) => mirror,
        Err(invalid) => {
            let report = blocked_report(&identity, Blocker::invalid_object(&invalid.error));
            status::publish(shared, &mut cache.last_status, &object, &report).await?;
            return Ok(Action::await_change());
        }
    };
    let (mirror, former_names) = api::normalized(mirror);
    let mirror = &*mirror;
    cache.log_former_names(mirror, &identity, &former_names);
    if mirror.status.as_ref().is_none_or(|status| status.conditions.is_empty()) {
        let first = offline_report(&identity, MirrorPhase::Provisioning, None);
        status::publish(shared, &mut cache.last_status, &object, &first).await?;
    }
    let (report, blocked) = match run_steps(&controller, &mut cache, mirror, &identity).await {
        Ok(report) => (report, false),
        Err(Error::Blocked(blocker)) if may_be_applied_soon(mirror, &blocker) => {
            (offline_report(&identity, MirrorPhase::Provisioning, Some(blocker.failure)), true)
        }
        Err(Error::Blocked(blocker)) => {
            (report_with_running_replicator(&controller, mirror, &identity, blocker).await?, true)
        }
        Err(error) => return Err(error),
    };
    let source = cache.endpoints.as_ref().map(|endpoints| endpoints.source.clone());
    let report = cache.slot_health.complete(mirror, &identity, source.as_ref(), report).await;
    for event in cache.events.new_events(&report) {
        shared.events.publish(&object.object_ref(&()), &event).await;
    }
    status::publish(shared, &mut cache.last_status, &object, &report).await?;
    Ok(Action::requeue(interval(shared, &uid, &report, blocked)))
}

/// Runs the next step of a deletion, unless the finalizer is gone already.
async fn finalize(
    shared: &Shared,
    cache: &mut ReconcileCache,
    mirror: &MaybeInvalid<Mirror>,
    identity: &MirrorIdentity,
) -> Result<Action, Error> {
    if cache.finalized {
        return Ok(Action::await_change());
    }
    let endpoints = cache.endpoints.as_ref();
    let mut deletion = Deletion { shared, mirror, identity, endpoints, last_status: &mut cache.last_status };
    let (action, finalized) = deletion.step().await?;
    cache.finalized = finalized;
    Ok(action)
}

/// Whether the missing peer may be applied right after the Mirror: the objects of one file or folder have an
/// order of their own.
fn may_be_applied_soon(mirror: &Mirror, blocker: &Blocker) -> bool {
    let created = mirror.meta().creation_timestamp.as_ref();
    let age = created.map(|created| Timestamp::now().duration_since(created.0));
    blocker.failure.reason == Reason::PeerMissing && age.is_some_and(|age| age < APPLIED_TOGETHER)
}

/// All steps up to the report.
async fn run_steps(
    controller: &Controller,
    cache: &mut ReconcileCache,
    mirror: &Mirror,
    identity: &MirrorIdentity,
) -> Result<MirrorReport, Error> {
    let shared = &*controller.shared;
    let fetched = fetch::fetch(shared, mirror).await?;
    let plan = validate::validate(mirror, &fetched)?;
    let desired = Desired::render(&controller.replicators, mirror, &plan)?;
    let observed = Observed::read(&shared.stores, mirror);
    if desired.starts_new_pod(&observed, cache.applied.as_ref()) {
        preflight::preflight(&mut cache.rejection, mirror, &desired, &observed, &plan.config).await?;
    }
    cache.endpoints = Some(Endpoints::of(&plan.config));
    if let Some(event) = cache.resync.requested(mirror.annotations().get(RESYNC)) {
        shared.events.publish(&mirror.object_ref(&()), &event).await;
    }
    let deployment = apply::apply(&shared.client, &mut cache.applied, mirror, &desired, &observed).await?;
    if mirror.spec.suspend {
        return Ok(offline_report(identity, MirrorPhase::Suspended, None));
    }
    let pods = Owner::of(mirror).pods(&shared.stores);
    Ok(report::replicator_report(&controller.status_client, identity, &deployment, &pods).await)
}

/// The report about a Mirror whose current spec is blocked. A replicator with earlier settings continues, and
/// its figures are reported.
async fn report_with_running_replicator(
    controller: &Controller,
    mirror: &Mirror,
    identity: &MirrorIdentity,
    blocker: Blocker,
) -> Result<MirrorReport, kube::Error> {
    let shared = &*controller.shared;
    let blocked = blocked_report(identity, blocker);
    let Some(deployment) = Observed::read(&shared.stores, mirror).deployment else { return Ok(blocked) };
    if mirror.spec.suspend {
        apply::scale_down(&shared.client, &deployment).await?;
        return Ok(blocked);
    }
    let pods = Owner::of(mirror).pods(&shared.stores);
    let running = report::replicator_report(&controller.status_client, identity, &deployment, &pods).await;
    Ok(report::blocked_while_running(blocked, running))
}

/// When to reconcile again. `blocked` says that a step of the operator itself failed, as opposed to the
/// replicator.
fn interval(shared: &Shared, uid: &str, report: &MirrorReport, blocked: bool) -> Duration {
    if blocked && report.phase == MirrorPhase::Retrying {
        return shared.backoff.next(uid);
    }
    shared.backoff.reset(uid);
    match report.phase {
        // A replicator runs nevertheless, and its figures change.
        MirrorPhase::Stalled if !report.tables.is_empty() => STREAMING_INTERVAL,
        MirrorPhase::Provisioning | MirrorPhase::Snapshotting => PROGRESSING_INTERVAL,
        MirrorPhase::Streaming | MirrorPhase::Retrying => STREAMING_INTERVAL,
        MirrorPhase::Suspended => slot_health::CHECK_INTERVAL,
        MirrorPhase::Stalled | MirrorPhase::Finished | MirrorPhase::Deleting => IDLE_INTERVAL,
    }
}
