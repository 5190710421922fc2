//! The deletion of a Mirror: its replicator terminates, slot, publication and state are removed, and then its
//! finalizer.
//!
//! Every step can be repeated, so it doesn't matter where an earlier attempt ended.

mod deletion_view;
mod endpoints;
mod orphans;

pub(super) use endpoints::Endpoints;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::controller::Action,
};
use tokio::time::timeout;

use super::{owner::Owner, report::offline_report, status::publish};
use crate::{
    api::{DeletionPolicy, FORMER_SKIP_CLEANUP, Mirror, MirrorStatus, SKIP_CLEANUP},
    cleanup,
    fault::Reason,
    model::{MirrorFailure, MirrorIdentity, MirrorPhase},
    operator::{
        blocker::Blocker, error::Error, events::Event, finalizer, labels, last_status::LastStatus,
        object::MaybeInvalid, shared::Shared,
    },
    status::slot_place,
};
use deletion_view::DeletionView;
use orphans::Orphans;

/// How often to check whether the replicator has terminated; a watch also reports the end of its pod.
const TERMINATION_INTERVAL: Duration = Duration::from_secs(2);
/// How long after its grace period a pod counts as overdue.
const OVERDUE: SignedDuration = SignedDuration::from_secs(15);
/// The time limit of one attempt to clean up.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(60);

/// The deletion of one Mirror.
pub(super) struct Deletion<'a> {
    pub(super) shared: &'a Shared,
    pub(super) mirror: &'a MaybeInvalid<Mirror>,
    pub(super) identity: &'a MirrorIdentity,
    /// The databases that the Mirror was last run with, if this process knows them.
    pub(super) endpoints: Option<&'a Endpoints>,
    pub(super) last_status: &'a mut LastStatus<MirrorStatus>,
}

impl Deletion<'_> {
    /// Takes the next step, and returns whether the finalizer is gone.
    ///
    /// # Errors
    /// The API server's error.
    pub(super) async fn step(&mut self) -> Result<(Action, bool), Error> {
        if !finalizer::is_set(self.mirror, labels::CLEANUP) {
            return Ok((Action::await_change(), true));
        }
        if skips_cleanup(self.mirror.annotations()) {
            self.replicator_has_terminated().await?;
            return self.remove_finalizer(&self.skipped_cleanup().await).await;
        }
        if !self.replicator_has_terminated().await? {
            let pods = Owner::of(self.mirror).pods(&self.shared.stores);
            let failure = pods.iter().find_map(|pod| terminating(pod, Timestamp::now()));
            self.publish(failure).await?;
            return Ok((Action::requeue(TERMINATION_INTERVAL), false));
        }
        match self.clean_up().await {
            Ok(event) => self.remove_finalizer(&event).await,
            Err(Error::Blocked(blocker)) => {
                let failure = self.failed_cleanup(blocker.failure).await;
                self.publish(Some(failure)).await?;
                let pause = self.shared.backoff.next(&self.mirror.uid().unwrap_or_default());
                Ok((Action::requeue(pause), false))
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the status. That the object is gone by now is fine.
    async fn publish(&mut self, failure: Option<MirrorFailure>) -> Result<(), kube::Error> {
        let report = offline_report(self.identity, MirrorPhase::Deleting, failure);
        match publish(self.shared, self.last_status, self.mirror, &report).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result,
        }
    }

    /// Deletes the Deployment, and returns whether it and its pods are gone. In the foreground: the
    /// Deployment stays while pods are left, and creates no new ones.
    async fn replicator_has_terminated(&self) -> Result<bool, kube::Error> {
        let owner = Owner::of(self.mirror);
        let of_this_name = ListParams::default().fields(&format!("metadata.name={}", owner.object));
        let deployments: Api<Deployment> = Api::namespaced(self.shared.client.clone(), &owner.namespace);
        let mut found = deployments.list_metadata(&of_this_name).await?.items;
        found.retain(|found| owner.owns(found));
        for deployment in found.iter().filter(|found| found.metadata.deletion_timestamp.is_none()) {
            let this = Preconditions { uid: deployment.uid(), ..Preconditions::default() };
            let foreground = DeleteParams::foreground().preconditions(this);
            match deployments.delete(&deployment.name_any(), &foreground).await {
                Ok(_) => {}
                // It is gone, or another one has replaced it.
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
                Err(error) => return Err(error),
            }
        }
        let labelled = ListParams::default().labels(&format!("{}={}", labels::MIRROR_UID, owner.uid));
        let pods: Api<Pod> = Api::namespaced(self.shared.client.clone(), &owner.namespace);
        let pods = pods.list_metadata(&labelled).await?.items;
        Ok(found.is_empty() && !pods.iter().any(|pod| owner.owns_pod(pod)))
    }

    /// Removes slot, publication and state, unless the deletion policy retains them.
    async fn clean_up(&self) -> Result<Event, Error> {
        let view = DeletionView::read(self.shared, self.mirror).await?;
        if view.spec.deletion_policy == DeletionPolicy::Retain {
            let note = format!("deletionPolicy is Retain: {} remain", self.resources());
            return Ok(Event::normal(Reason::Retained, note));
        }
        let endpoints = Endpoints::current(self.shared, self.mirror, &view.spec, self.endpoints).await?;
        let made_at = view.status.slot.as_ref().map(slot_place);
        let removal = cleanup::remove(cleanup::MirrorRemoval {
            mirror: self.identity,
            source: &endpoints.source,
            destination: &endpoints.destination,
            made_at: made_at.as_ref(),
        });
        let report = match timeout(CLEANUP_TIMEOUT, removal).await {
            Ok(report) => report.map_err(|error| Blocker::transient(error.reason(), error.to_string()))?,
            Err(_) => {
                let message = format!("a server did not respond within {} s", CLEANUP_TIMEOUT.as_secs());
                return Err(Blocker::transient(Reason::CleanupFailed, message).into());
            }
        };
        let note = report.done.join(", ");
        Ok(match report.incomplete {
            true => Event::warning(Reason::CleanedUp, note),
            false => Event::normal(Reason::CleanedUp, note),
        })
    }

    /// The failure of a clean-up, with the way to delete the Mirror without it.
    async fn failed_cleanup(&self, failure: MirrorFailure) -> MirrorFailure {
        let MirrorFailure { reason, message, remedies } = failure;
        let MirrorIdentity { namespace, name, .. } = self.identity;
        let manual_cleanup = self.orphans().await.manual_cleanup();
        let message = format!(
            "{reason}: {message}. Retrying; to delete the Mirror without cleaning up: kubectl annotate mirror {name} --namespace {namespace} {SKIP_CLEANUP}=true, \
             and then {manual_cleanup}"
        );
        MirrorFailure { reason, message, remedies }
    }

    /// The event of a Mirror that is deleted without clean-up, as its user has requested.
    async fn skipped_cleanup(&self) -> Event {
        let note = format!(
            "skipped the clean-up as requested: {} remain if they exist; a slot retains WAL until it is dropped: {}",
            self.resources(),
            self.orphans().await.manual_cleanup()
        );
        Event::warning(Reason::CleanupSkipped, note)
    }

    async fn orphans(&self) -> Orphans {
        Orphans::find(self.shared, self.mirror, self.identity, self.endpoints).await
    }

    fn resources(&self) -> String {
        let (slot, publication) = (self.identity.slot_name(), self.identity.publication_name());
        format!("slot {slot} and publication {publication} at the source, and the state at the destination,")
    }

    async fn remove_finalizer(&self, event: &Event) -> Result<(Action, bool), Error> {
        let MirrorIdentity { namespace, name, .. } = self.identity;
        tracing::info!(namespace, mirror = name, reason = %event.reason, note = event.note, "mirror deleted");
        self.shared.events.publish(&self.mirror.object_ref(&()), event).await;
        let api: Api<Mirror> = Api::namespaced(self.shared.client.clone(), namespace);
        finalizer::remove(&api, self.mirror, labels::CLEANUP).await?;
        Ok((Action::await_change(), true))
    }
}

/// Whether the user has requested deletion without clean-up.
fn skips_cleanup(annotations: &BTreeMap<String, String>) -> bool {
    let requests = |name| annotations.get(name).is_some_and(|value| value == "true");
    requests(SKIP_CLEANUP) || requests(FORMER_SKIP_CLEANUP)
}

/// The wait for this pod, if it is terminating.
fn terminating(pod: &Pod, now: Timestamp) -> Option<MirrorFailure> {
    let deadline = pod.metadata.deletion_timestamp.as_ref()?.0;
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    let mut message = format!(
        "waiting for the replicator to terminate (pod {name} on node {node}) before removing its slot, publication and state"
    );
    if now.duration_since(deadline) > OVERDUE {
        message = format!(
            "{message}. It should have terminated by {deadline:.0}. If node {node} is permanently gone: kubectl delete pod {name} --namespace {namespace} --force"
        );
    }
    Some(MirrorFailure::new(Reason::Deleting, message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cleanup_is_skipped_by_both_names_of_the_annotation() {
        let annotated = |name: &str, value: &str| skips_cleanup(&[(name.into(), value.into())].into());
        assert!(annotated("walferry.dev/skip-cleanup", "true") && annotated("walferry.dev/abandon", "true"));
        assert!(
            !annotated("walferry.dev/skip-cleanup", "false") && !annotated("walferry.dev/resync", "true")
        );
    }

    #[test]
    fn a_pod_that_does_not_terminate_is_reported_with_its_node() {
        let pod = |deleted: Option<&str>| -> Pod {
            let mut pod = json!({"metadata": {"name": "walferry-demo-x", "namespace": "team"}, "spec": {"nodeName": "n1", "containers": []}});
            if let Some(time) = deleted {
                pod["metadata"]["deletionTimestamp"] = time.into();
            }
            serde_json::from_value(pod).unwrap()
        };
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        assert_eq!(terminating(&pod(None), at("2026-11-21T10:00:00Z")), None);
        let message = |now: &str| terminating(&pod(Some("2026-11-21T10:00:30Z")), at(now)).unwrap().message;
        let waits = "waiting for the replicator to terminate (pod walferry-demo-x on node n1) before removing its slot, publication and state";
        assert_eq!(message("2026-11-21T10:00:40Z"), waits);
        assert_eq!(
            message("2026-11-21T10:00:46Z"),
            format!(
                "{waits}. It should have terminated by 2026-11-21T10:00:30Z. If node n1 is permanently gone: kubectl delete pod walferry-demo-x --namespace team --force"
            )
        );
    }
}
