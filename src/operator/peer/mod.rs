//! The controller of ReplicationPeers: probes databases, reports whether they are usable, and keeps a peer
//! while Mirrors use it.

mod probe;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};
use tokio::time::Instant;

use super::{
    backoff::Backoff,
    blocker::Blocker,
    cache::PerObject,
    credentials::{self, SecretEntries},
    error::Error,
    events::{self, Event},
    finalizer, labels,
    last_status::LastStatus,
    object::{MaybeInvalid, is_ready, valid},
    shared::Shared,
};
use crate::{
    api::{ReplicationPeer, ReplicationPeerStatus},
    fault::Reason,
    status::{self, Kubectl, PeerOutcome, PeerReport},
};

/// How often a usable database is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(300);
/// How often a peer is reconciled that needs manual action.
const STALLED_INTERVAL: Duration = Duration::from_secs(60);

/// What the controller works with.
pub(super) struct Controller {
    pub(super) shared: Arc<Shared>,
    pub(super) caches: Arc<PerObject<ReconcileCache>>,
}

impl AsRef<Shared> for Controller {
    fn as_ref(&self) -> &Shared {
        &self.shared
    }
}

/// What is kept of a peer between two reconciles.
#[derive(Debug, Default)]
pub(super) struct ReconcileCache {
    last_status: LastStatus<ReplicationPeerStatus>,
    last_probe: Option<LastProbe>,
}

/// The last probe of a database.
#[derive(Clone, Debug)]
struct LastProbe {
    /// A hash of what was probed: the peer's generation and its Secrets.
    settings: u64,
    /// When the next probe is due, if those don't change.
    next: Instant,
}

impl LastProbe {
    /// A probe of these settings that is valid for `interval` from now on.
    fn now(settings: u64, interval: Duration) -> LastProbe {
        LastProbe { settings, next: Instant::now() + interval }
    }

    /// For how long it is still valid for these settings; `None` when the next probe is due.
    fn valid_for(&self, settings: u64) -> Option<Duration> {
        let left = self.next.saturating_duration_since(Instant::now());
        (self.settings == settings && !left.is_zero()).then_some(left)
    }
}

/// How long after this outcome the next probe is due. Unreachable databases get the pauses of `backoff`.
fn interval(outcome: &PeerOutcome, backoff: &Backoff, uid: &str) -> Duration {
    if let PeerOutcome::Retrying(_) = outcome {
        return backoff.next(uid);
    }
    backoff.reset(uid);
    match outcome {
        PeerOutcome::Stalled(_) => STALLED_INTERVAL,
        _ => PROBE_INTERVAL,
    }
}

/// Reconciles a peer.
///
/// # Errors
/// The API server's error.
pub(super) async fn reconcile(
    object: Arc<MaybeInvalid<ReplicationPeer>>,
    controller: Arc<Controller>,
) -> Result<Action, Error> {
    let shared = &controller.shared;
    let uid = object.uid().unwrap_or_default();
    let mut cache = controller.caches.of(&uid).await;
    let ReconcileCache { last_status, last_probe } = &mut *cache;
    if object.meta().deletion_timestamp.is_some() {
        return finalize(shared, last_status, &object).await;
    }
    let peer = match &object.0 {
        Ok(peer) => peer,
        Err(invalid) => {
            let report = probe::blocked_report(Blocker::invalid_object(&invalid.error));
            publish(shared, last_status, &object, report).await?;
            return Ok(Action::await_change());
        }
    };
    if peer.status.as_ref().is_none_or(|status| status.conditions.is_empty()) {
        let outcome = PeerOutcome::Progressing;
        let first = PeerReport { outcome, server_version: None, system_identifier: None };
        publish(shared, last_status, &object, first).await?;
    }
    finalizer::add(&api(shared, &object), &*object, labels::IN_USE).await?;
    let credentials = credentials::read(shared, peer).await?;
    let settings = fingerprint(peer, &credentials.entries);
    let endpoint = match credentials.endpoint {
        Ok(endpoint) => endpoint,
        Err(blocker) => {
            *last_probe = None;
            publish(shared, last_status, &object, probe::blocked_report(blocker)).await?;
            return Ok(Action::requeue(STALLED_INTERVAL));
        }
    };
    if let Some(left) = last_probe.as_ref().and_then(|probe| probe.valid_for(settings)) {
        return Ok(Action::requeue(left));
    }
    let report = probe::probe(&endpoint).await;
    let interval = interval(&report.outcome, &shared.backoff, &uid);
    *last_probe = Some(LastProbe::now(settings, interval));
    publish(shared, last_status, &object, report).await?;
    Ok(Action::requeue(interval))
}

fn api(shared: &Shared, peer: &MaybeInvalid<ReplicationPeer>) -> Api<ReplicationPeer> {
    Api::namespaced(shared.client.clone(), &peer.namespace().unwrap_or_default())
}

/// Releases a deleted peer once no Mirror refers to it.
async fn finalize(
    shared: &Shared,
    last_status: &mut LastStatus<ReplicationPeerStatus>,
    peer: &MaybeInvalid<ReplicationPeer>,
) -> Result<Action, Error> {
    let (namespace, name) = (peer.namespace().unwrap_or_default(), peer.name_any());
    let users = shared.stores.mirrors_of_peer(&namespace, &name);
    if users.is_empty() {
        finalizer::remove(&api(shared, peer), peer, labels::IN_USE).await?;
        return Ok(Action::await_change());
    }
    let message = format!("in use by {}: it is deleted after them", named("Mirror", &users));
    let outcome = PeerOutcome::Deleting { message };
    let report = PeerReport { outcome, server_version: None, system_identifier: None };
    publish(shared, last_status, peer, report).await?;
    Ok(Action::requeue(STALLED_INTERVAL))
}

/// `Mirror a`, or `Mirrors a, b`.
fn named(kind: &str, names: &[String]) -> String {
    format!("{kind}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// A hash that differs between two sets of settings.
fn fingerprint(peer: &ReplicationPeer, entries: &SecretEntries) -> u64 {
    let mut hasher = DefaultHasher::new();
    peer.metadata.generation.hash(&mut hasher);
    for (entry, value) in entries {
        (entry, value.expose()).hash(&mut hasher);
    }
    hasher.finish()
}

/// Writes the status if it differs from the last one, and publishes events of what has changed.
async fn publish(
    shared: &Shared,
    last_status: &mut LastStatus<ReplicationPeerStatus>,
    peer: &MaybeInvalid<ReplicationPeer>,
    report: PeerReport,
) -> Result<(), Error> {
    let watched = valid(peer).and_then(|peer| peer.status.as_ref());
    let (before, _) = last_status.current(peer, watched);
    let kubectl = Kubectl::peer(&peer.namespace().unwrap_or_default(), &peer.name_any());
    let report = PeerReport { outcome: report.outcome.with_remedies(&kubectl), ..report };
    let next = status::peer_status(&report, peer.meta().generation, before.as_ref(), &Time(Timestamp::now()));
    let conditions = before.as_ref().map_or(&[][..], |before| &before.conditions);
    shared.metrics.record_ready("ReplicationPeer", &peer.uid().unwrap_or_default(), &next.conditions);
    if before.as_ref() == Some(&next) {
        return Ok(());
    }
    shared.write_status(peer, &next).await?;
    last_status.record(peer, next.clone());
    let mut events: Vec<Event> = events::stalled(conditions, &next.conditions).into_iter().collect();
    if let PeerOutcome::Connected { message } = &report.outcome
        && !is_ready(conditions)
    {
        events.push(Event::normal(Reason::Connected, message));
    }
    for event in &events {
        shared.events.publish(&peer.object_ref(&()), event).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MirrorFailure, Password};

    #[tokio::test(start_paused = true)]
    async fn a_database_is_probed_every_five_minutes_and_immediately_with_new_settings() {
        let backoff = Backoff::default();
        let failure = || MirrorFailure::new(Reason::SourceUnreachable, "refused");
        let after = |outcome: PeerOutcome| interval(&outcome, &backoff, "0a").as_secs();
        let connected = || PeerOutcome::Connected { message: "PostgreSQL 18.4".into() };
        assert_eq!(after(connected()), 300);
        assert_eq!(after(PeerOutcome::Stalled(failure())), 60);
        let retries = [(); 3].map(|()| after(PeerOutcome::Retrying(failure())));
        assert_eq!((retries, after(connected())), ([1, 2, 4], 300));
        assert_eq!(after(PeerOutcome::Retrying(failure())), 1, "a success resets the backoff");

        let probe = LastProbe::now(7, PROBE_INTERVAL);
        assert_eq!(probe.valid_for(7), Some(PROBE_INTERVAL));
        assert_eq!(probe.valid_for(8), None);
        tokio::time::advance(PROBE_INTERVAL - Duration::from_secs(1)).await;
        assert_eq!(probe.valid_for(7), Some(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(probe.valid_for(7), None);
    }

    #[test]
    fn users_are_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(named("Mirror", &names(&["a"])), "Mirror a");
        assert_eq!(named("Mirror", &names(&["a", "b"])), "Mirrors a, b");
    }

    #[test]
    fn new_secrets_and_new_specs_change_the_fingerprint() {
        let mut peer =
            ReplicationPeer::new("app", crate::api::ReplicationPeerSpec { postgres: None, clickhouse: None });
        let entries = |password: &str| {
            SecretEntries::from([(("db".to_owned(), "password".to_owned()), Password::new(password))])
        };
        let first = fingerprint(&peer, &entries("one"));
        assert_eq!(first, fingerprint(&peer, &entries("one")));
        assert_ne!(first, fingerprint(&peer, &entries("two")));
        peer.metadata.generation = Some(2);
        assert_ne!(first, fingerprint(&peer, &entries("one")));
    }
}
