//! What happens when a Mirror is deleted: the replicator ends, then slot, publication and state go, then the Mirror.
//!
//! Every step can be done again, so it doesn't matter where an earlier try ended.

use std::{fmt::Display, time::Duration};

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Preconditions},
    core::ApiResource,
    runtime::controller::Action,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    build::MIRROR_UID,
    owned::Owner,
    publish::publish,
    replicator::{pods, unasked},
};
use crate::{
    api::{ABANDON, DeletionPolicy, Mirror, PeerRef, SlotStatus},
    cleanup,
    fault::Reason,
    model::{ClickHouseEndpoint, MirrorFailure, MirrorIdentity, MirrorPhase, PostgresEndpoint},
    operator::{
        context::Context,
        error::Error,
        events::Notice,
        finalizer, labels, login,
        obstacle::Obstacle,
        scope::{Guarded, valid},
    },
    resolve::Endpoint,
    status::slot_place,
};

/// How often to look whether the replicator has ended; its pod's end is told by a watch too.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long after its time a pod is told to be late.
const OVERDUE: SignedDuration = SignedDuration::from_secs(15);
/// Longest time of one try to clean up.
const CLEANED_WITHIN: Duration = Duration::from_secs(60);

/// What clean-up needs to know of a Mirror: as little as can be, so that one which can't be read otherwise is cleaned up too.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Leaving {
    spec: LeavingSpec,
    #[serde(default)]
    status: LeavingStatus,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeavingSpec {
    source_ref: PeerRef,
    destination_ref: PeerRef,
    #[serde(default)]
    deletion_policy: DeletionPolicy,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
struct LeavingStatus {
    slot: Option<SlotStatus>,
}

/// The databases that a Mirror was last run with.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    pub(super) source: PostgresEndpoint,
    pub(super) destination: ClickHouseEndpoint,
}

/// Takes the next step of a Mirror's end.
///
/// # Errors
/// What the API server says.
pub(super) async fn finalize(
    context: &Context,
    mirror: &Guarded<Mirror>,
    identity: &MirrorIdentity,
) -> Result<Action, Error> {
    let uid = mirror.uid().unwrap_or_default();
    if !finalizer::is_set(mirror, labels::CLEANUP) || context.memory.mirrors.of(&uid, |memory| memory.ended) {
        return Ok(Action::await_change());
    }
    if mirror.annotations().get(ABANDON).is_some_and(|value| value == "true") {
        return abandon(context, mirror, identity).await;
    }
    if !has_ended(context, mirror).await? {
        let pods = pods(context, &Owner::of(mirror));
        let failure = pods.iter().find_map(|pod| ending(pod, Timestamp::now()));
        let report = unasked(identity, MirrorPhase::Deleting, failure);
        publish(context, mirror, &report).await.or_else(gone)?;
        return Ok(Action::requeue(LOOK_EVERY));
    }
    match clean_up(context, mirror, identity).await {
        Ok(notice) => let_go(context, mirror, identity, &notice).await,
        Err(Error::Obstacle(obstacle)) => {
            let MirrorFailure { reason, message, remedies } = obstacle.failure;
            let MirrorIdentity { namespace, name, .. } = identity;
            let by_hand = left(context, mirror, identity).await.by_hand();
            let message = format!(
                "{reason}: {message}. It is tried again; to let go without cleaning up: kubectl annotate mirror {name} --namespace {namespace} {ABANDON}=true, \
                 and then {by_hand}"
            );
            let failure = MirrorFailure { reason, message, remedies };
            let report = unasked(identity, MirrorPhase::Deleting, Some(failure));
            publish(context, mirror, &report).await.or_else(gone)?;
            Ok(Action::requeue(context.memory.backoff.next(&uid)))
        }
        Err(error) => Err(error),
    }
}

/// A status that can't be written because its object is gone is nobody's loss.
fn gone(error: kube::Error) -> Result<(), kube::Error> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error),
    }
}

/// Deletes the Deployment, and says whether it and its pods are gone. Foreground: while pods are left, so is the Deployment, and it makes no new ones.
async fn has_ended(context: &Context, mirror: &Guarded<Mirror>) -> Result<bool, kube::Error> {
    let owner = Owner::of(mirror);
    let of_this_name = ListParams::default().fields(&format!("metadata.name={}", owner.object));
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &owner.namespace);
    let mut found = deployments.list_metadata(&of_this_name).await?.items;
    found.retain(|found| owner.owns(found));
    for deployment in found.iter().filter(|found| found.metadata.deletion_timestamp.is_none()) {
        let this = Preconditions { uid: deployment.uid(), ..Preconditions::default() };
        match deployments
            .delete(&deployment.name_any(), &DeleteParams::foreground().preconditions(this))
            .await
        {
            Ok(_) => {}
            // It is gone, or another one has taken its place.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
    let labelled = ListParams::default().labels(&format!("{MIRROR_UID}={}", owner.uid));
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &owner.namespace);
    let pods = pods.list_metadata(&labelled).await?.items;
    Ok(found.is_empty() && !pods.iter().any(|pod| owner.owns_pod(pod)))
}

/// What is being waited for while this pod is there.
fn ending(pod: &Pod, now: Timestamp) -> Option<MirrorFailure> {
    let ends_by = pod.metadata.deletion_timestamp.as_ref()?.0;
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    let mut message = format!(
        "waiting for the replicator to end (pod {name} on node {node}); then its slot, publication and state are removed"
    );
    if now.duration_since(ends_by) > OVERDUE {
        message = format!(
            "{message}. It should have ended at {ends_by:.0}. If {node} is gone for good: kubectl delete pod {name} --namespace {namespace} --force"
        );
    }
    Some(MirrorFailure::new(Reason::Deleting, message))
}

/// Removes what the Mirror's policy says.
async fn clean_up(
    context: &Context,
    mirror: &Guarded<Mirror>,
    identity: &MirrorIdentity,
) -> Result<Notice, Error> {
    let leaving = read(context, mirror).await?;
    if leaving.spec.deletion_policy == DeletionPolicy::Retain {
        let note = format!("deletionPolicy is Retain: {} stay", what(identity));
        return Ok(Notice::normal(Reason::Retained, note));
    }
    let endpoints = endpoints(context, mirror, &leaving.spec).await?;
    let made_at = leaving.status.slot.as_ref().map(slot_place);
    let cleaned = cleanup::remove(cleanup::MirrorRemoval {
        mirror: identity,
        source: &endpoints.source,
        destination: &endpoints.destination,
        made_at: made_at.as_ref(),
    });
    let report = match timeout(CLEANED_WITHIN, cleaned).await {
        Ok(report) => report.map_err(|error| Obstacle::passing(error.reason(), error.to_string()))?,
        Err(_) => {
            let message = format!("a server did not answer within {} s", CLEANED_WITHIN.as_secs());
            return Err(Obstacle::passing(Reason::CleanupFailed, message).into());
        }
    };
    let note = report.done.join(", ");
    Ok(if report.incomplete {
        Notice::warning(Reason::CleanedUp, note)
    } else {
        Notice::normal(Reason::CleanedUp, note)
    })
}

fn what(identity: &MirrorIdentity) -> String {
    let (slot, publication) = (identity.slot_name(), identity.publication_name());
    format!("slot {slot} and publication {publication} at the source, and the state at the destination,")
}

/// What is needed of the Mirror, also of one that isn't what its type says.
async fn read(context: &Context, mirror: &Guarded<Mirror>) -> Result<Leaving, Error> {
    if let Some(mirror) = valid(mirror) {
        let status = mirror.status.clone().unwrap_or_default();
        return Ok(Leaving {
            spec: LeavingSpec {
                source_ref: mirror.spec.source_ref.clone(),
                destination_ref: mirror.spec.destination_ref.clone(),
                deletion_policy: mirror.spec.deletion_policy,
            },
            status: LeavingStatus { slot: status.slot },
        });
    }
    let namespace = mirror.namespace().unwrap_or_default();
    let kind = ApiResource::erase::<Mirror>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, &kind);
    let object = api.get(&mirror.name_any()).await?;
    serde_json::from_value(object.data).map_err(|error| login::unreadable(&error.to_string()).into())
}

/// Both databases: as the resources say now or, where those are gone already, as they were said last.
async fn endpoints(
    context: &Context,
    mirror: &Guarded<Mirror>,
    spec: &LeavingSpec,
) -> Result<Endpoints, Error> {
    let namespace = mirror.namespace().unwrap_or_default();
    let now = async {
        let source = endpoint(context, &namespace, &spec.source_ref.name).await?;
        let destination = endpoint(context, &namespace, &spec.destination_ref.name).await?;
        match (source, destination) {
            (Endpoint::Postgres(source), Endpoint::ClickHouse(destination)) => {
                Ok(Endpoints { source, destination })
            }
            _ => {
                Err(Obstacle::lasting(Reason::InvalidSpec, "the peers are not of the kinds they must be")
                    .into())
            }
        }
    };
    let remembered =
        context.memory.mirrors.of(&mirror.uid().unwrap_or_default(), |memory| memory.endpoints.clone());
    match (now.await, remembered) {
        (Err(Error::Obstacle(obstacle)), Some(remembered)) => {
            tracing::info!(
                namespace,
                mirror = mirror.name_any(),
                reason = %obstacle.failure.reason,
                "cleaning up with the last known settings of the peers"
            );
            Ok(remembered)
        }
        (now, _) => now,
    }
}

async fn endpoint(context: &Context, namespace: &str, name: &str) -> Result<Endpoint, Error> {
    let missing = || {
        let message = format!("there is no ReplicationPeer {name} in namespace {namespace} any more");
        Obstacle::lasting(Reason::PeerMissing, message)
    };
    let peer = context.peer(namespace, name).await?.ok_or_else(missing)?;
    match &peer.0 {
        Ok(peer) => Ok(login::read(context, peer).await?.endpoint?),
        Err(invalid) => Err(login::unreadable(&invalid.error).into()),
    }
}

/// Lets go of a Mirror that can't be cleaned up, as its user has said.
async fn abandon(
    context: &Context,
    mirror: &Guarded<Mirror>,
    identity: &MirrorIdentity,
) -> Result<Action, Error> {
    has_ended(context, mirror).await?;
    let left = left(context, mirror, identity).await;
    let note = format!(
        "let go as asked: {} stay if they are there; a slot keeps WAL until it is dropped: {}",
        what(identity),
        left.by_hand()
    );
    let_go(context, mirror, identity, &Notice::warning(Reason::Abandoned, note)).await
}

/// What stays of a Mirror at its source when nobody cleans up.
struct Left {
    /// What drops slot and publication.
    statements: String,
    /// The server and the database, as far as that is known.
    place: Option<String>,
}

impl Left {
    /// What its user has to run, and where.
    fn by_hand(&self) -> String {
        let Left { statements, place } = self;
        format!("at {}: {statements}", place.as_deref().unwrap_or("the source"))
    }
}

/// What stays, told without any Secret: a namespace that goes takes those first.
async fn left(context: &Context, mirror: &Guarded<Mirror>, identity: &MirrorIdentity) -> Left {
    let leaving = read(context, mirror).await.ok();
    let made_at = leaving.as_ref().and_then(|leaving| leaving.status.slot.as_ref());
    let mut place = made_at.map(|made_at| slot_place(made_at).to_string());
    if place.is_none() {
        let remembered =
            context.memory.mirrors.of(&mirror.uid().unwrap_or_default(), |memory| memory.endpoints.clone());
        place = remembered
            .map(|Endpoints { source, .. }| self::place(&source.host, source.port, &source.database));
    }
    if let (None, Some(leaving)) = (&place, &leaving) {
        let peer = context.peer(&identity.namespace, &leaving.spec.source_ref.name).await.ok().flatten();
        let postgres = peer.as_deref().and_then(valid).and_then(|peer| peer.spec.postgres.as_ref());
        place = postgres.map(|postgres| self::place(&postgres.host, postgres.port, &postgres.database));
    }
    Left { statements: cleanup::statements(identity), place }
}

fn place(host: &str, port: impl Display, database: &str) -> String {
    format!("{host}:{port} in database {database}")
}

async fn let_go(
    context: &Context,
    mirror: &Guarded<Mirror>,
    identity: &MirrorIdentity,
    notice: &Notice,
) -> Result<Action, Error> {
    let MirrorIdentity { namespace, name, .. } = identity;
    tracing::info!(namespace, mirror = name, reason = %notice.reason, note = notice.note, "mirror ended");
    context.events.publish(&mirror.object_ref(&()), notice).await;
    let api: Api<Mirror> = Api::namespaced(context.client.clone(), namespace);
    let ended = |is: bool| {
        context.memory.mirrors.of(&mirror.uid().unwrap_or_default(), |memory| memory.ended = is);
    };
    // before the watch shows the end, with which the memory goes
    ended(true);
    finalizer::remove(&api, mirror, labels::CLEANUP).await.inspect_err(|_| ended(false))?;
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_is_told_with_what_to_run_and_where() {
        let left = |place: Option<&str>| {
            let identity = MirrorIdentity { namespace: "team".into(), name: "shop".into(), uid: "0a".into() };
            Left { statements: cleanup::statements(&identity), place: place.map(str::to_owned) }.by_hand()
        };
        let run = "SELECT pg_drop_replication_slot('walferry_0a'); DROP PUBLICATION IF EXISTS walferry_0a, walferry_0a_inserts;";
        assert_eq!(
            left(Some(&place("db.example", 5432, "app"))),
            format!("at db.example:5432 in database app: {run}")
        );
        assert_eq!(left(None), format!("at the source: {run}"));
    }

    #[test]
    fn a_pod_that_does_not_end_is_told_with_its_node() {
        let pod = |deleted: Option<&str>| -> Pod {
            let mut pod = json!({"metadata": {"name": "walferry-demo-x", "namespace": "team"}, "spec": {"nodeName": "n1", "containers": []}});
            if let Some(time) = deleted {
                pod["metadata"]["deletionTimestamp"] = time.into();
            }
            serde_json::from_value(pod).unwrap()
        };
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        assert_eq!(ending(&pod(None), at("2026-11-21T10:00:00Z")), None);
        let message = |now: &str| ending(&pod(Some("2026-11-21T10:00:30Z")), at(now)).unwrap().message;
        let waits = "waiting for the replicator to end (pod walferry-demo-x on node n1); then its slot, publication and state are removed";
        assert_eq!(message("2026-11-21T10:00:40Z"), waits);
        assert_eq!(
            message("2026-11-21T10:00:46Z"),
            format!(
                "{waits}. It should have ended at 2026-11-21T10:00:30Z. If n1 is gone for good: kubectl delete pod walferry-demo-x --namespace team --force"
            )
        );
    }

    #[test]
    fn reads_what_it_needs_of_a_mirror_that_is_otherwise_broken() {
        let broken = json!({
            "spec": {
                "sourceRef": {"name": "app"}, "destinationRef": {"name": "analytics"}, "deletionPolicy": "Retain",
                "tables": "none", "batch": 7,
            },
            "status": {"slot": {"host": "db", "port": 5432, "database": "app", "systemIdentifier": "7"}, "conditions": 5},
        });
        let leaving: Leaving = serde_json::from_value(broken).unwrap();
        assert_eq!(leaving.spec.source_ref.name, "app");
        assert_eq!(leaving.spec.deletion_policy, DeletionPolicy::Retain);
        assert_eq!(leaving.status.slot.unwrap().system_identifier, "7");
        assert!(serde_json::from_value::<Leaving>(json!({"spec": {"sourceRef": {"name": "app"}}})).is_err());
    }
}
