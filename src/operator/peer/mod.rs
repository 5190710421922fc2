//! The controller of ReplicationPeers: says whether a database can be used, and keeps a peer as long as Mirrors use it.

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
    context::{Context, Written, previous},
    error::Error,
    events::{self, Notice},
    finalizer, labels, login,
    scope::{Guarded, mirrors_of_peer, valid},
};
use crate::{
    api::{ReplicationPeer, ReplicationPeerStatus},
    fault::Reason,
    status::{self, Kubectl, PeerOutcome, PeerReport},
};

/// How often a database that can be used is looked at.
const EVERY: Duration = Duration::from_secs(300);
/// How often one is looked at that waits for a human.
const STALLED: Duration = Duration::from_secs(60);

/// What is remembered of a peer.
#[derive(Debug, Default)]
pub(super) struct Memory {
    written: Option<Written<ReplicationPeerStatus>>,
    probed: Option<Probed>,
}

/// The last look at a database.
#[derive(Clone, Debug)]
struct Probed {
    /// What was looked at: the peer's generation and its Secrets.
    settings: u64,
    /// When to look again, if those don't change.
    again: Instant,
}

impl Probed {
    /// One of these settings just now, after which nobody looks for so long.
    fn now(settings: u64, pause: Duration) -> Probed {
        Probed { settings, again: Instant::now() + pause }
    }

    /// For how long it still holds for these settings; `None` when it is time to look.
    fn holds(&self, settings: u64) -> Option<Duration> {
        let left = self.again.saturating_duration_since(Instant::now());
        (self.settings == settings && !left.is_zero()).then_some(left)
    }
}

/// When a database is looked at again, of which this was found. `backoff` gives the pauses for one that can't be reached.
fn pause(outcome: &PeerOutcome, backoff: &Backoff, uid: &str) -> Duration {
    if let PeerOutcome::Retrying(_) = outcome {
        return backoff.next(uid);
    }
    backoff.reset(uid);
    match outcome {
        PeerOutcome::Stalled(_) => STALLED,
        _ => EVERY,
    }
}

/// Looks at a peer.
///
/// # Errors
/// What the API server says.
pub(super) async fn reconcile(
    guarded: Arc<Guarded<ReplicationPeer>>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    if guarded.meta().deletion_timestamp.is_some() {
        return leave(&guarded, &context).await;
    }
    let peer = match &guarded.0 {
        Ok(peer) => peer,
        Err(invalid) => {
            publish(&context, &guarded, &probe::told(login::unreadable(&invalid.error))).await?;
            return Ok(Action::await_change());
        }
    };
    let uid = peer.uid().unwrap_or_default();
    if peer.status.as_ref().is_none_or(|status| status.conditions.is_empty()) {
        let outcome = PeerOutcome::Progressing;
        let first = PeerReport { outcome, server_version: None, system_identifier: None };
        publish(&context, &guarded, &first).await?;
    }
    finalizer::add(&api(&context, &guarded), &*guarded, labels::IN_USE).await?;
    let login = login::read(&context, peer).await?;
    let settings = fingerprint(peer, &login.entries);
    let endpoint = match login.endpoint {
        Ok(endpoint) => endpoint,
        Err(obstacle) => {
            context.memory.peers.of(&uid, |memory| memory.probed = None);
            publish(&context, &guarded, &probe::told(obstacle)).await?;
            return Ok(Action::requeue(STALLED));
        }
    };
    let probed = context.memory.peers.of(&uid, |memory| memory.probed.clone());
    if let Some(left) = probed.and_then(|probed| probed.holds(settings)) {
        return Ok(Action::requeue(left));
    }
    let report = probe::probe(&endpoint).await;
    let pause = pause(&report.outcome, &context.memory.backoff, &uid);
    let probed = Probed::now(settings, pause);
    context.memory.peers.of(&uid, |memory| memory.probed = Some(probed));
    publish(&context, &guarded, &report).await?;
    Ok(Action::requeue(pause))
}

fn api(context: &Context, peer: &Guarded<ReplicationPeer>) -> Api<ReplicationPeer> {
    Api::namespaced(context.client.clone(), &peer.namespace().unwrap_or_default())
}

/// Lets a peer go once no Mirror refers to it.
async fn leave(peer: &Guarded<ReplicationPeer>, context: &Context) -> Result<Action, Error> {
    let (namespace, name) = (peer.namespace().unwrap_or_default(), peer.name_any());
    let users: Vec<String> =
        context.scopes.iter().flat_map(|scope| mirrors_of_peer(&scope.mirrors, &namespace, &name)).collect();
    if users.is_empty() {
        finalizer::remove(&api(context, peer), peer, labels::IN_USE).await?;
        return Ok(Action::await_change());
    }
    let message = format!("in use by {}: it goes when they are deleted", named("Mirror", &users));
    let outcome = PeerOutcome::Deleting { message };
    publish(context, peer, &PeerReport { outcome, server_version: None, system_identifier: None }).await?;
    Ok(Action::requeue(STALLED))
}

/// `Mirror a`, or `Mirrors a, b`.
fn named(kind: &str, names: &[String]) -> String {
    format!("{kind}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
}

/// Tells one set of settings from another.
fn fingerprint(peer: &ReplicationPeer, entries: &login::Entries) -> u64 {
    let mut hasher = DefaultHasher::new();
    peer.metadata.generation.hash(&mut hasher);
    for (entry, value) in entries {
        (entry, value.expose()).hash(&mut hasher);
    }
    hasher.finish()
}

async fn publish(
    context: &Context,
    peer: &Guarded<ReplicationPeer>,
    report: &PeerReport,
) -> Result<(), Error> {
    let uid = peer.uid().unwrap_or_default();
    let known = valid(peer).and_then(|peer| peer.status.as_ref());
    let (before, _) = context.memory.peers.of(&uid, |memory| previous(memory.written.as_ref(), peer, known));
    let kubectl = Kubectl::peer(&peer.namespace().unwrap_or_default(), &peer.name_any());
    let report = &PeerReport { outcome: report.outcome.clone().with_remedies(&kubectl), ..report.clone() };
    let next = status::peer_status(report, peer.meta().generation, before.as_ref(), &Time(Timestamp::now()));
    let conditions = before.as_ref().map_or(&[][..], |before| &before.conditions);
    events::record_ready(&context.metrics, "ReplicationPeer", &uid, &next.conditions);
    if before.as_ref() == Some(&next) {
        return Ok(());
    }
    context.write_status(peer, &next).await?;
    let written = Written::now(peer, next.clone());
    context.memory.peers.of(&uid, |memory| memory.written = Some(written));
    let mut notices: Vec<Notice> = events::stalled(conditions, &next.conditions).into_iter().collect();
    if let PeerOutcome::Connected { message } = &report.outcome
        && !events::is_ready(conditions)
    {
        notices.push(Notice::normal(Reason::Connected, message));
    }
    for notice in &notices {
        context.events.publish(&peer.object_ref(&()), notice).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MirrorFailure, Password};

    #[tokio::test(start_paused = true)]
    async fn a_database_is_looked_at_every_five_minutes_and_at_once_with_new_settings() {
        let backoff = Backoff::default();
        let failure = || MirrorFailure::new(Reason::SourceUnreachable, "refused");
        let after = |outcome: PeerOutcome| pause(&outcome, &backoff, "0a").as_secs();
        let connected = || PeerOutcome::Connected { message: "PostgreSQL 18.4".into() };
        assert_eq!(after(connected()), 300);
        assert_eq!(after(PeerOutcome::Stalled(failure())), 60);
        let retries = [(); 3].map(|()| after(PeerOutcome::Retrying(failure())));
        assert_eq!((retries, after(connected())), ([1, 2, 4], 300));
        assert_eq!(after(PeerOutcome::Retrying(failure())), 1, "it had answered");

        let probed = Probed::now(7, EVERY);
        assert_eq!(probed.holds(7), Some(EVERY));
        assert_eq!(probed.holds(8), None);
        tokio::time::advance(EVERY - Duration::from_secs(1)).await;
        assert_eq!(probed.holds(7), Some(Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(probed.holds(7), None);
    }

    #[test]
    fn users_are_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(named("Mirror", &names(&["a"])), "Mirror a");
        assert_eq!(named("Mirror", &names(&["a", "b"])), "Mirrors a, b");
    }

    #[test]
    fn new_secrets_and_new_specs_are_looked_at() {
        let mut peer =
            ReplicationPeer::new("app", crate::api::ReplicationPeerSpec { postgres: None, clickhouse: None });
        let entries = |password: &str| {
            login::Entries::from([(("db".to_owned(), "password".to_owned()), Password::new(password))])
        };
        let first = fingerprint(&peer, &entries("one"));
        assert_eq!(first, fingerprint(&peer, &entries("one")));
        assert_ne!(first, fingerprint(&peer, &entries("two")));
        peer.metadata.generation = Some(2);
        assert_ne!(first, fingerprint(&peer, &entries("one")));
    }
}
