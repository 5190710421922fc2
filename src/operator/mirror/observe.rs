//! What the Deployment and its pods say about a replicator.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::build::{CONFIG_HASH, CONTAINER, HTTP_PORT, applied_hash};
use crate::fault::Reason;

/// How a replicator fares, as far as the cluster can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplicatorState {
    /// There is no Deployment, or it is scaled to zero and no pod is left.
    Absent,
    /// On its way.
    Starting {
        /// What is being waited for.
        message: String,
    },
    /// It does not run, and this is why.
    Failing {
        /// A constant of [`crate::api::conditions::reason`].
        reason: Reason,
        /// What is wrong and what to do.
        message: String,
        /// Whether it stays so until somebody acts.
        needs_human: bool,
    },
    /// It runs, and its HTTP server can be asked.
    Running {
        /// The pod's address and the HTTP port, as a URL has them: `10.0.0.1:9464` or `[fd00::1]:9464`.
        address: String,
    },
}

impl ReplicatorState {
    fn starting(message: impl Into<String>) -> Self {
        ReplicatorState::Starting { message: message.into() }
    }

    /// What passes by itself, or may.
    fn failing(reason: Reason, message: String) -> Self {
        ReplicatorState::Failing { reason, message, needs_human: false }
    }

    fn needs_human(reason: Reason, message: String) -> Self {
        ReplicatorState::Failing { reason, message, needs_human: true }
    }
}

/// How the replicator of this Deployment fares; `pods` are those with its labels.
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
        (Some(pod), _) => ReplicatorState::starting(leaving(pod)),
        (None, Some(0)) => ReplicatorState::Absent,
        (None, _) => ReplicatorState::starting("the replicator's pod is being made"),
    }
}

fn newest<'a>(pods: impl Iterator<Item = &'a Pod>) -> Option<&'a Pod> {
    pods.max_by_key(|pod| (pod.metadata.creation_timestamp.clone(), name(pod)))
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Whether the pod ends or has ended. An evicted pod stays as a record for a while, with its successor beside it.
fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether the pod runs what the Deployment asks for; one with an earlier configuration is about to be replaced.
fn has_configuration(pod: &Pod, hash: Option<&str>) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    hash.is_none()
        || annotations.and_then(|annotations| annotations.get(CONFIG_HASH)).map(String::as_str) == hash
}

/// What is said of a pod that makes room for another.
fn leaving(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let why = status.and_then(|status| status.reason.as_deref());
    match (pod.metadata.deletion_timestamp.is_some(), is_over(pod), why) {
        (true, ..) => format!("pod {} is ending", name(pod)),
        (false, true, Some(why)) => {
            let words = status.and_then(|status| status.message.as_deref()).unwrap_or_default();
            format!("pod {} has ended ({}); another is being made", name(pod), sentence(why, words))
        }
        (false, true, None) => format!("pod {} has ended; another is being made", name(pod)),
        (false, false, _) => format!("pod {} has an earlier configuration and is being replaced", name(pod)),
    }
}

/// Why the ReplicaSet can't make pods: a quota, Pod Security, a missing priority class or service account.
fn refusal(deployment: &Deployment) -> Option<&str> {
    let mut conditions = deployment.status.as_ref()?.conditions.iter().flatten();
    let failure = conditions.find(|c| c.type_ == "ReplicaFailure" && c.status == "True")?;
    Some(failure.message.as_deref().unwrap_or("no message was given"))
}

fn forbidden(words: &str) -> ReplicatorState {
    let message = format!("the cluster refuses the replicator's pod: {words}");
    // In a namespace that was just made, the service account comes a moment later.
    if words.contains("serviceaccount") && words.contains("not found") {
        return ReplicatorState::failing(Reason::ReplicatorForbidden, message);
    }
    ReplicatorState::needs_human(Reason::ReplicatorForbidden, message)
}

fn pod_state(pod: &Pod) -> ReplicatorState {
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    let container = status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER);
    let Some(container) = container else { return unscheduled(pod, status) };
    let end = ended(container);
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

/// Whether the pod was ready at some time after `start`: what ended the container before is history then.
fn has_been_ready(status: &PodStatus, start: Option<&Time>) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    let changed =
        conditions.find(|c| c.type_ == "Ready").and_then(|ready| ready.last_transition_time.as_ref());
    changed.zip(start).is_some_and(|(changed, start)| changed > start)
}

/// A container that doesn't run, and was not killed at its memory limit.
fn stopped(pod: &Pod, container: &ContainerStatus) -> ReplicatorState {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let why = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
    let words = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    match why {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => ReplicatorState::needs_human(
            Reason::ReplicatorImageUnavailable,
            format!(
                "image {} can't be had ({}): give the operator an image that the nodes can pull, and Secrets to pull it with where it needs them",
                container.image,
                sentence(why, words)
            ),
        ),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            ReplicatorState::needs_human(
                Reason::ReplicatorMisconfigured,
                format!("the container of pod {} can't be made: {}", name(pod), sentence(why, words)),
            )
        }
        _ => match ended(container) {
            Some(end) => crashing(pod, container, end),
            None => ReplicatorState::starting(match words {
                "" => format!("the container of pod {} is being made", name(pod)),
                words => format!("the container of pod {} is being made: {words}", name(pod)),
            }),
        },
    }
}

/// How the container ended: just now, or before it was started again.
fn ended(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    now.or_else(|| container.last_state.as_ref().and_then(|state| state.terminated.as_ref()))
}

fn is_out_of_memory(end: &ContainerStateTerminated) -> bool {
    end.reason.as_deref() == Some("OOMKilled")
}

fn out_of_memory(pod: &Pod) -> ReplicatorState {
    let limit = memory_limit(pod).map_or_else(String::new, |limit| format!(" of {limit}"));
    ReplicatorState::needs_human(
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
    let words = end.message.as_deref().unwrap_or_default().trim();
    let words = if words.is_empty() {
        format!("see kubectl logs --previous {}", name(pod))
    } else {
        words.to_owned()
    };
    let starts = container.restart_count;
    ReplicatorState::failing(
        Reason::ReplicatorCrashing,
        format!("pod {} ended with {how} and is started again (restart {starts}): {words}", name(pod)),
    )
}

/// A pod without a container yet: why no node takes it, where the scheduler says so.
fn unscheduled(pod: &Pod, status: &PodStatus) -> ReplicatorState {
    let mut conditions = status.conditions.iter().flatten();
    let refused = conditions.find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    let Some(condition) = refused else {
        return ReplicatorState::starting(format!("pod {} is being placed on a node", name(pod)));
    };
    let words = condition.message.as_deref().unwrap_or("the scheduler gave no reason");
    let message = format!("no node takes the replicator's pod: {words}");
    ReplicatorState::failing(Reason::ReplicatorUnschedulable, message)
}

fn address(status: &PodStatus) -> Option<String> {
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(HTTP_PORT).ok()?).to_string())
}

fn sentence(why: &str, words: &str) -> String {
    if words.is_empty() { why.to_owned() } else { format!("{why}: {words}") }
}

#[cfg(test)]
mod tests;
