//! Leader election: one process at a time works, the one that holds the Lease.
//!
//! The way of Kubernetes' own controllers: a write names the version of the Lease that it was decided on, so of two that want it one fails; and
//! how long a holder has been silent is told by the watcher's own clock, not by comparing clocks of two nodes.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};

use super::error::words;

/// How long a Lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(20);
/// How often the holder renews it.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How long renewing may fail before the holder stops working: well before anybody else may begin.
const GIVE_UP_AFTER: Duration = Duration::from_secs(13);
/// How often those that wait look at it, and how soon a failed request is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest time of one look or write.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Which Lease, and who wants it.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// What tells this process from others that want it.
    pub identity: String,
}

/// A wish for the Lease.
pub(super) struct Candidate {
    api: Api<Lease>,
    settings: LeaseSettings,
    /// The Lease's version as last seen, and since when it is that one.
    seen: Option<(String, Instant)>,
}

/// Why the Lease was not won or renewed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", words(.0))]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silence(#[from] tokio::time::error::Elapsed),
}

impl Candidate {
    /// A candidate that has not looked yet.
    pub(super) fn new(client: Client, settings: LeaseSettings) -> Candidate {
        Candidate { api: Api::namespaced(client, &settings.namespace), settings, seen: None }
    }

    /// Waits until this process holds the Lease, and gives the time from which on it does.
    pub(super) async fn win(&mut self) -> Instant {
        loop {
            let asked = Instant::now();
            match self.take().await {
                Ok(true) => return asked,
                Ok(false) => {}
                Err(Error::Api(kube::Error::Api(status))) if status.code == 409 => {
                    tracing::debug!(lease = self.settings.name, "another process was quicker");
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.settings.name, "cannot get the lease, trying again");
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Renews the Lease, which is held since `renewed`, until another process has it or it could not be renewed in time.
    pub(super) async fn hold(&mut self, mut renewed: Instant) {
        let mut pause = RENEW_EVERY;
        loop {
            sleep(pause).await;
            let asked = Instant::now();
            match self.take().await {
                Ok(true) => (renewed, pause) = (asked, RENEW_EVERY),
                Ok(false) => {
                    tracing::warn!(lease = self.settings.name, "another process has the lease");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.settings.name, "cannot renew the lease");
                    pause = LOOK_EVERY;
                    if renewed.elapsed() + ANSWER_WITHIN >= GIVE_UP_AFTER {
                        return;
                    }
                }
            }
        }
    }

    /// Lets the Lease go, so that another process needn't wait for its end.
    pub(super) async fn release(&mut self) {
        let released = async {
            let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() == Some(&self.settings.identity) {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.api.replace(&self.settings.name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if let Err(error) =
            timeout(ANSWER_WITHIN, released).await.map_err(Error::from).and_then(|done| Ok(done?))
        {
            tracing::warn!(%error, lease = self.settings.name, "cannot release the lease; it ends by itself");
        }
    }

    /// Takes the Lease or renews it, if that is allowed; says whether it is held.
    async fn take(&mut self) -> Result<bool, Error> {
        timeout(ANSWER_WITHIN, self.try_take()).await?
    }

    async fn try_take(&mut self) -> Result<bool, Error> {
        let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else {
            let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
            let spec = Some(claim(&LeaseSpec::default(), &self.settings.identity));
            self.api.create(&PostParams::default(), &Lease { metadata, spec }).await?;
            return Ok(true);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let spec = lease.spec.take().unwrap_or_default();
        if !may_take(&spec, &self.settings.identity, unchanged) {
            return Ok(false);
        }
        lease.spec = Some(claim(&spec, &self.settings.identity));
        self.api.replace(&self.settings.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }
}

/// Whether the Lease is ours, free, or has not been renewed for as long as it holds.
fn may_take(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> bool {
    let holds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        Some(holder) => holder == identity || unchanged >= Duration::from_secs(holds),
    }
}

/// The Lease in our hands.
fn claim(spec: &LeaseSpec, identity: &str) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let ours = spec.holder_identity.as_deref() == Some(identity);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: if ours { spec.acquire_time.clone() } else { Some(now.clone()) },
        renew_time: Some(now),
        lease_transitions: Some(spec.lease_transitions.unwrap_or_default() + i32::from(!ours)),
        ..spec.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: Option<&str>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(20),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn takes_what_is_its_own_free_or_abandoned() {
        let seconds = Duration::from_secs;
        assert!(may_take(&held_by(Some("a")), "a", seconds(0)));
        assert!(may_take(&held_by(None), "a", seconds(0)));
        assert!(may_take(&held_by(Some("")), "a", seconds(0)));
        assert!(!may_take(&held_by(Some("b")), "a", seconds(19)));
        assert!(may_take(&held_by(Some("b")), "a", seconds(20)));
    }

    #[test]
    fn counts_who_takes_over_and_not_who_renews() {
        let taken = claim(&held_by(Some("b")), "a");
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("a"), Some(4)));
        let renewed = claim(&taken, "a");
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(4), &taken.acquire_time));
    }

    #[test]
    fn stops_before_another_may_begin() {
        assert!(
            GIVE_UP_AFTER + LOOK_EVERY < DURATION && RENEW_EVERY + ANSWER_WITHIN + LOOK_EVERY < GIVE_UP_AFTER
        );
    }
}
