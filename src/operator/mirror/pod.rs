//! The state of a replicator, from its Deployment and pods.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::build::{CONTAINER, HTTP_PORT, applied_hash};
use crate::{fault::Reason, operator::labels::CONFIG_HASH};

/// The state of a replicator, as far as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplicatorState {
    /// There is no Deployment, or it is scaled to zero and has no pods.
    Absent,
    /// Not running yet.
    Starting {
        /// What is being waited for.
        message: String,
    },
    /// Not running because of a failure.
    Failing {
        /// The reason of the failure.
        reason: Reason,
        /// What failed, and what to do.
        message: String,
        /// Whether manual action is required.
        terminal: bool,
    },
    /// Running, with an HTTP server.
    Running {
        /// The pod's address and the HTTP port, as a URL has them: `10.0.0.1:9464` or `[fd00::1]:9464`.
        address: String,
    },
}

impl ReplicatorState {
    fn starting(message: impl Into<String>) -> Self {
        ReplicatorState::Starting { message: message.into() }
    }

    /// A failure that may be transient.
    fn failing(reason: Reason, message: String) -> Self {
        ReplicatorState::Failing { reason, message, terminal: false }
    }

    fn failed(reason: Reason, message: String) -> Self {
        ReplicatorState::Failing { reason, message, terminal: true }
    }
}

/// The state of the replicator of this Deployment, whose pods are `pods`.
pub(super) fn replicator_state(deployment: Option<&Deployment>, pods: &[Pod]) -> ReplicatorState {
    let Some(deployment) = deployment else { return ReplicatorState::Absent };
    let hash = applied_hash(deployment);
    if let Some(pod) = newest(pods.iter().filter(|pod| !is_over(pod) && has_configuration(pod, hash))) {
        return pod_state(pod);
    }
    if let Some(message) = refusal(deployment) {
        return forbidden(message);
    }
    match (newest(pods.iter()), deployment.spec.as_ref().and_then(|spec| spec.replicas)) {
        (Some(pod), _) => ReplicatorState::starting(replacement(pod)),
        (None, Some(0)) => ReplicatorState::Absent,
        (None, _) => ReplicatorState::starting("creating the replicator's pod"),
    }
}

fn newest<'a>(pods: impl Iterator<Item = &'a Pod>) -> Option<&'a Pod> {
    pods.max_by_key(|pod| (pod.metadata.creation_timestamp.clone(), name(pod)))
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether the pod is terminating or has ended. An evicted pod remains as a record for a while, next to its
/// replacement.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether the pod runs the Deployment's configuration; one with an earlier configuration is about to be
/// replaced.
fn has_configuration(pod: &Pod, hash: Option<&str>) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    hash.is_none()
        || annotations.and_then(|annotations| annotations.get(CONFIG_HASH)).map(String::as_str) == hash
}

/// Why this pod is being replaced by another.
fn replacement(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let why = status.and_then(|status| status.reason.as_deref());
    match (pod.metadata.deletion_timestamp.is_some(), is_over(pod), why) {
        (true, ..) => format!("pod {} is terminating", name(pod)),
        (false, true, Some(why)) => {
            let message = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
            format!("pod {} has ended ({}); creating another", name(pod), sentence(why, message))
        }
        (false, true, None) => format!("pod {} has ended; creating another", name(pod)),
        (false, false, _) => format!("pod {} has an earlier configuration and is being replaced", name(pod)),
    }
}

/// Why the ReplicaSet can't create pods: a quota, Pod Security, a missing priority class or service account.
fn refusal(deployment: &Deployment) -> Option<&str> {
    let mut conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let failure = conditions.find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    Some(failure.message.as_deref().unwrap_or("no message was given"))
}

fn forbidden(refusal: &str) -> ReplicatorState {
    let message = format!("the cluster refuses the replicator's pod: {refusal}");
    // A new namespace gets its service account a moment later.
    if refusal.contains("serviceaccount") && refusal.contains("not found") {
        return ReplicatorState::failing(Reason::ReplicatorForbidden, message);
    }
    ReplicatorState::failed(Reason::ReplicatorForbidden, message)
}

fn pod_state(pod: &Pod) -> ReplicatorState {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    let container = status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER);
    let Some(container) = container else { return unscheduled(pod, status) };
    let end = termination(container);
    let Some(running) = container.state.as_ref().and_then(|state| state.running.as_ref()) else {
        return match end {
            Some(end) if is_out_of_memory(end) => out_of_memory(pod),
            _ => stopped(pod, container),
        };
    };
    let recovered = container.ready || has_been_ready(status, running.started_at.as_ref());
    match address(status) {
        _ if !recovered && end.is_some_and(is_out_of_memory) => out_of_memory(pod),
        Some(address) => ReplicatorState::Running { address },
        None => ReplicatorState::starting(format!("pod {} has no address yet", name(pod))),
    }
}

/// Whether the pod was ready at some time after `start`: then an earlier failure of the container is history.
fn has_been_ready(status: &PodStatus, start: Option<&Time>) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    let changed =
        conditions.find(|c| c.type_ == "Ready").and_then(|ready| ready.last_transition_time.as_ref());
    changed.zip(start).is_some_and(|(changed, start)| changed > start)
}

/// A container that is not running, and was not killed at its memory limit.
fn stopped(pod: &Pod, container: &ContainerStatus) -> ReplicatorState {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let why = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    match why {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => ReplicatorState::failed(
            Reason::ReplicatorImageUnavailable,
            format!(
                "image {} can't be pulled ({}): configure the operator with an image that the nodes can pull, and with image pull Secrets if it needs them",
                container.image,
                sentence(why, message)
            ),
        ),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            ReplicatorState::failed(
                Reason::ReplicatorMisconfigured,
                format!("the container of pod {} can't be created: {}", name(pod), sentence(why, message)),
            )
        }
        _ => match termination(container) {
            Some(end) => crashing(pod, container, end),
            None => ReplicatorState::starting(match message {
                "" => format!("creating the container of pod {}", name(pod)),
                message => format!("creating the container of pod {}: {message}", name(pod)),
            }),
        },
    }
}

/// How the container ended: just now, or before it was restarted.
fn termination(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    now.or_else(|| container.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
}

fn is_out_of_memory(end: &ContainerStateTerminated) -> bool {
    end.reason.as_deref() == Some("OOMKilled")
}

fn out_of_memory(pod: &Pod) -> ReplicatorState {
    let limit = memory_limit(pod).map_or_else(String::new, |limit| format!(" of {limit}"));
    ReplicatorState::failed(
        Reason::ReplicatorOutOfMemory,
        format!(
            "pod {} was killed at its memory limit{limit}: raise spec.replicator.resources.limits.memory or lower spec.batch.maxBytes",
            name(pod)
        ),
    )
}

fn memory_limit(pod: &Pod) -> Option<&str> {
    let containers = &pod.spec.as_ref()?.containers;
    let container = containers.iter().find(|container| container.name == CONTAINER)?;
    Some(&container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0)
}

fn crashing(pod: &Pod, container: &ContainerStatus, end: &ContainerStateTerminated) -> ReplicatorState {
    let how = match end.signal {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit code {}", end.exit_code),
    };
    let message = end.message.as_deref().unwrap_or_default().trim();
    let message = match message {
        "" => format!("see kubectl logs --previous {}", name(pod)),
        message => message.to_owned(),
    };
    let restarts = container.restart_count;
    ReplicatorState::failing(
        Reason::ReplicatorCrashing,
        format!("pod {} ended with {how} and is restarted (restart {restarts}): {message}", name(pod)),
    )
}

/// A pod without a container yet: why the scheduler finds no node, if so.
fn unscheduled(pod: &Pod, status: &PodStatus) -> ReplicatorState {
    let mut conditions = status.conditions.iter().flatten();
    let refused = conditions.find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    let Some(condition) = refused else {
        return ReplicatorState::starting(format!("scheduling pod {}", name(pod)));
    };
    let refusal = condition.message.as_deref().unwrap_or("the scheduler gave no reason");
    let message = format!("no node can run the replicator's pod: {refusal}");
    ReplicatorState::failing(Reason::ReplicatorUnschedulable, message)
}

fn address(status: &PodStatus) -> Option<String> {
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(HTTP_PORT).ok()?).to_string())
}

fn sentence(why: &str, message: &str) -> String {
    if message.is_empty() { why.to_owned() } else { format!("{why}: {message}") }
}

#[cfg(test)]
mod tests;
