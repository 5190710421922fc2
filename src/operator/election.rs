//! Leader election: the process that holds the Lease is the leader, and only the leader reconciles.
//!
//! It works as in Kubernetes' own controllers. A write names the resource version of the Lease that it is
//! based on, so of two candidates one fails. How long a leader has been silent is measured by each
//! candidate's own clock; clocks of two nodes are never compared.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};

use super::error::api_error;

/// How long a Lease is valid without being renewed.
const LEASE_DURATION: Duration = Duration::from_secs(20);
/// How often the leader renews it.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// How long renewing may fail before the leader stops: well before another process may take the Lease.
const RENEW_DEADLINE: Duration = Duration::from_secs(13);
/// How often candidates read it, and how soon a failed request is retried.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// The time limit of one read or write.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// The Lease, and this process as a candidate for it.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Distinguishes this process from other candidates.
    pub identity: String,
}

/// A candidate for the Lease.
pub(super) struct Candidate {
    api: Api<Lease>,
    settings: LeaseSettings,
    /// The last observed resource version of the Lease, and when it was first observed.
    observed: Option<(String, Instant)>,
}

/// Why the Lease was not won or renewed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", api_error(.0))]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Silence(#[from] tokio::time::error::Elapsed),
}

impl Candidate {
    /// A candidate that has not read the Lease yet.
    pub(super) fn new(client: Client, settings: LeaseSettings) -> Candidate {
        Candidate { api: Api::namespaced(client, &settings.namespace), settings, observed: None }
    }

    /// Waits until this process holds the Lease, and returns the time since when it does.
    pub(super) async fn win(&mut self) -> Instant {
        loop {
            let asked = Instant::now();
            match self.acquire().await {
                Ok(true) => return asked,
                Ok(false) => {}
                Err(Error::Api(kube::Error::Api(status))) if status.code == 409 => {
                    tracing::debug!(lease = self.settings.name, "another process updated the lease first");
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.settings.name, "cannot acquire the lease, retrying");
                }
            }
            sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews the Lease, which is held since `renewed`, until another process takes it or renewing fails for
    /// too long.
    pub(super) async fn hold(&mut self, mut renewed: Instant) {
        let mut pause = RENEW_INTERVAL;
        loop {
            sleep(pause).await;
            let asked = Instant::now();
            match self.acquire().await {
                Ok(true) => (renewed, pause) = (asked, RENEW_INTERVAL),
                Ok(false) => {
                    tracing::warn!(lease = self.settings.name, "another process has the lease");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.settings.name, "cannot renew the lease");
                    pause = RETRY_PERIOD;
                    if renewed.elapsed() + REQUEST_TIMEOUT >= RENEW_DEADLINE {
                        return;
                    }
                }
            }
        }
    }

    /// Releases the Lease, so that another process needn't wait until it expires.
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
            timeout(REQUEST_TIMEOUT, released).await.map_err(Error::from).and_then(|done| Ok(done?))
        {
            tracing::warn!(%error, lease = self.settings.name, "cannot release the lease; it expires");
        }
    }

    /// Acquires or renews the Lease if that is allowed, and returns whether it is held.
    async fn acquire(&mut self) -> Result<bool, Error> {
        timeout(REQUEST_TIMEOUT, self.try_acquire()).await?
    }

    async fn try_acquire(&mut self) -> Result<bool, Error> {
        let Some(mut lease) = self.api.get_opt(&self.settings.name).await? else {
            let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
            let spec = Some(held_by_us(&LeaseSpec::default(), &self.settings.identity));
            self.api.create(&PostParams::default(), &Lease { metadata, spec }).await?;
            return Ok(true);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.observed.as_ref().is_none_or(|(observed, _)| *observed != version) {
            self.observed = Some((version, Instant::now()));
        }
        let unchanged = self.observed.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let spec = lease.spec.take().unwrap_or_default();
        if !may_acquire(&spec, &self.settings.identity, unchanged) {
            return Ok(false);
        }
        lease.spec = Some(held_by_us(&spec, &self.settings.identity));
        self.api.replace(&self.settings.name, &PostParams::default(), &lease).await?;
        Ok(true)
    }
}

/// Whether the Lease is ours, free, or expired.
fn may_acquire(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> bool {
    let valid = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        Some(holder) => holder == identity || unchanged >= Duration::from_secs(valid),
    }
}

/// The Lease, held by `identity`.
fn held_by_us(spec: &LeaseSpec, identity: &str) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let ours = spec.holder_identity.as_deref() == Some(identity);
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(i32::try_from(LEASE_DURATION.as_secs()).unwrap_or(i32::MAX)),
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
    fn acquires_a_lease_that_is_its_own_free_or_expired() {
        let seconds = Duration::from_secs;
        assert!(may_acquire(&held_by(Some("a")), "a", seconds(0)));
        assert!(may_acquire(&held_by(None), "a", seconds(0)));
        assert!(may_acquire(&held_by(Some("")), "a", seconds(0)));
        assert!(!may_acquire(&held_by(Some("b")), "a", seconds(19)));
        assert!(may_acquire(&held_by(Some("b")), "a", seconds(20)));
    }

    #[test]
    fn counts_transitions_and_not_renewals() {
        let taken = held_by_us(&held_by(Some("b")), "a");
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("a"), Some(4)));
        let renewed = held_by_us(&taken, "a");
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(4), &taken.acquire_time));
    }

    #[test]
    fn the_leader_stops_before_another_process_may_lead() {
        assert!(
            RENEW_DEADLINE + RETRY_PERIOD < LEASE_DURATION
                && RENEW_INTERVAL + REQUEST_TIMEOUT + RETRY_PERIOD < RENEW_DEADLINE
        );
    }
}
