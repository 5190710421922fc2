use serde_json::{Value, json};

use super::*;

fn deployment(extra: Value) -> Deployment {
    let mut deployment = json!({
        "metadata": {"name": "walferry-demo", "namespace": "shop", "generation": 1},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"walferry.dev/mirror-uid": "2c9b"}},
            "template": {"metadata": {"annotations": {"walferry.dev/config-hash": "new"}}},
        },
    });
    deployment.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(deployment).unwrap()
}

/// A pod as kubelet reports it: on a node, with an address, created in this minute.
fn pod(name: &str, minute: u32, phase: &str, container: Value) -> Pod {
    let mut status = json!({
        "phase": phase,
        "podIP": "10.1.0.7",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T10:00:00Z"},
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastTransitionTime": "2026-11-21T10:00:30Z"},
        ],
    });
    if !container.is_null() {
        let mut container = container;
        let defaults = json!({
            "name": "replicator", "image": "registry.example/walferry:0.1.0", "imageID": "", "ready": false,
            "restartCount": 0, "lastState": {},
        });
        for (field, value) in defaults.as_object().unwrap() {
            container.as_object_mut().unwrap().entry(field).or_insert_with(|| value.clone());
        }
        status["containerStatuses"] = json!([container]);
    }
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "shop",
            "creationTimestamp": format!("2026-11-21T10:{minute:02}:00Z"),
            "annotations": {"walferry.dev/config-hash": "new"},
        },
        "spec": {"containers": [{"name": "replicator", "resources": {"limits": {"memory": "256Mi"}}}]},
        "status": status,
    }))
    .unwrap()
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"state": {"waiting": {"reason": reason, "message": message}}})
}

fn running(ready: bool) -> Value {
    json!({"ready": ready, "started": true, "state": {"running": {"startedAt": "2026-11-21T10:01:00Z"}}})
}

fn terminated(reason: &str, exit_code: i32, message: &str) -> Value {
    json!({"terminated": {
        "reason": reason, "exitCode": exit_code, "message": message,
        "startedAt": "2026-11-21T10:00:20Z", "finishedAt": "2026-11-21T10:00:30Z",
    }})
}

fn state(container: Value) -> ReplicatorState {
    replicator_state(Some(&deployment(json!({}))), &[pod("walferry-demo-1", 0, "Pending", container)])
}

fn failing(state: ReplicatorState) -> (Reason, bool, String) {
    match state {
        ReplicatorState::Failing { reason, message, terminal } => (reason, terminal, message),
        other => panic!("{other:?}"),
    }
}

fn starting(state: ReplicatorState) -> String {
    match state {
        ReplicatorState::Starting { message } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn absent() {
    assert_eq!(replicator_state(None, &[]), ReplicatorState::Absent);
    let mut suspended = deployment(json!({}));
    suspended.spec.as_mut().unwrap().replicas = Some(0);
    assert_eq!(replicator_state(Some(&suspended), &[]), ReplicatorState::Absent);
    let mut ending = pod("a", 0, "Running", running(true));
    ending.metadata.deletion_timestamp = ending.metadata.creation_timestamp.clone();
    assert_eq!(starting(replicator_state(Some(&suspended), &[ending])), "pod a is terminating");
    assert_eq!(
        starting(replicator_state(Some(&deployment(json!({}))), &[])),
        "creating the replicator's pod"
    );
}

#[test]
fn starting_up() {
    assert_eq!(
        starting(state(json!({"state": {"waiting": {"reason": "ContainerCreating"}}}))),
        "creating the container of pod walferry-demo-1"
    );
    assert_eq!(starting(state(Value::Null)), "scheduling pod walferry-demo-1");
    let mut no_address = pod("a", 0, "Running", running(false));
    no_address.status.as_mut().unwrap().pod_ip = None;
    assert_eq!(
        starting(replicator_state(Some(&deployment(json!({}))), &[no_address])),
        "pod a has no address yet"
    );
}

#[test]
fn running_with_an_address() {
    assert_eq!(state(running(true)), ReplicatorState::Running { address: "10.1.0.7:9464".into() });
    assert_eq!(state(running(false)), ReplicatorState::Running { address: "10.1.0.7:9464".into() });
    let mut six = pod("a", 0, "Running", running(true));
    six.status.as_mut().unwrap().pod_ip = Some("fd00::7".into());
    assert_eq!(
        replicator_state(Some(&deployment(json!({}))), &[six]),
        ReplicatorState::Running { address: "[fd00::7]:9464".into() }
    );
}

#[test]
fn image() {
    for why in ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"] {
        let (reason, terminal, message) = failing(state(waiting(why, "not found")));
        assert_eq!((reason, terminal), (Reason::ReplicatorImageUnavailable, true));
        assert_eq!(
            message,
            format!(
                "image registry.example/walferry:0.1.0 can't be pulled ({why}: not found): configure the operator with an image that the nodes can pull, and with image pull Secrets if it needs them"
            )
        );
    }
}

#[test]
fn misconfigured() {
    let words = "container has runAsNonRoot and image will run as root";
    let (reason, terminal, message) = failing(state(waiting("CreateContainerConfigError", words)));
    assert_eq!((reason, terminal), (Reason::ReplicatorMisconfigured, true));
    assert_eq!(
        message,
        format!("the container of pod walferry-demo-1 can't be created: CreateContainerConfigError: {words}")
    );
}

#[test]
fn out_of_memory() {
    let killed = terminated("OOMKilled", 137, "");
    let mut again = waiting("CrashLoopBackOff", "back-off 10s restarting failed container");
    again["lastState"] = killed.clone();
    let mut restarted = running(false);
    restarted["lastState"] = killed.clone();
    for container in [json!({"state": killed}), again, restarted] {
        let (reason, terminal, message) = failing(state(container));
        assert_eq!((reason, terminal), (Reason::ReplicatorOutOfMemory, true));
        assert_eq!(
            message,
            "pod walferry-demo-1 was killed at its memory limit of 256Mi: raise spec.replicator.resources.limits.memory or lower spec.batch.maxBytes"
        );
    }
    let mut streams = running(true);
    streams["lastState"] = terminated("OOMKilled", 137, "");
    assert!(matches!(state(streams), ReplicatorState::Running { .. }));
}

#[test]
fn a_failure_before_the_pod_was_ready_is_history() {
    let mut container = running(false);
    container["lastState"] = terminated("OOMKilled", 137, "");
    let mut pod = pod("a", 0, "Running", container);
    let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
    let later = serde_json::from_value(json!("2026-11-21T12:00:00Z")).unwrap();
    conditions.iter_mut().find(|c| c.type_ == "Ready").unwrap().last_transition_time = Some(later);
    assert!(matches!(
        replicator_state(Some(&deployment(json!({}))), &[pod]),
        ReplicatorState::Running { .. }
    ));
}

#[test]
fn crashing() {
    let mut again = waiting("CrashLoopBackOff", "back-off 40s restarting failed container");
    again["restartCount"] = json!(4);
    again["lastState"] = terminated("Error", 2, "mirror.yaml: not valid YAML\n");
    let (reason, terminal, message) = failing(state(again));
    assert_eq!((reason, terminal), (Reason::ReplicatorCrashing, false));
    assert_eq!(
        message,
        "pod walferry-demo-1 ended with exit code 2 and is restarted (restart 4): mirror.yaml: not valid YAML"
    );
    let (_, _, message) = failing(state(json!({"state": terminated("Error", 1, "")})));
    assert_eq!(
        message,
        "pod walferry-demo-1 ended with exit code 1 and is restarted (restart 0): see kubectl logs --previous walferry-demo-1"
    );
}

#[test]
fn unschedulable() {
    let words = "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available";
    let mut pod = pod("a", 0, "Pending", Value::Null);
    pod.status = serde_json::from_value(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words},
    ]}))
    .unwrap();
    let (reason, terminal, message) = failing(replicator_state(Some(&deployment(json!({}))), &[pod]));
    assert_eq!((reason, terminal), (Reason::ReplicatorUnschedulable, false));
    assert_eq!(message, format!("no node can run the replicator's pod: {words}"));
}

#[test]
fn forbidden() {
    let refused = |words: &str| {
        deployment(json!({"status": {"conditions": [
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetCreated"},
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words},
        ]}}))
    };
    let words = "pods \"walferry-demo-1\" is forbidden: exceeded quota: small, requested: memory=64Mi";
    let (reason, terminal, message) = failing(replicator_state(Some(&refused(words)), &[]));
    assert_eq!((reason, terminal), (Reason::ReplicatorForbidden, true));
    assert_eq!(message, format!("the cluster refuses the replicator's pod: {words}"));
    let words = "pods \"a-\" is forbidden: error looking up service account shop/default: serviceaccount \"default\" not found";
    assert!(!failing(replicator_state(Some(&refused(words)), &[])).1);
    // The state of an existing pod is more specific.
    let pods = [pod("a", 0, "Running", running(true))];
    assert!(matches!(replicator_state(Some(&refused(words)), &pods), ReplicatorState::Running { .. }));
}

#[test]
fn the_newest_pod_counts() {
    let deployment = deployment(json!({}));
    let mut evicted = pod("evicted", 5, "Failed", Value::Null);
    let status = evicted.status.as_mut().unwrap();
    status.reason = Some("Evicted".into());
    status.message = Some("The node was low on resource: memory.".into());
    let older = pod("older", 1, "Running", running(true));
    let newer = pod("newer", 2, "Pending", waiting("ErrImagePull", ""));
    for pods in
        [[older.clone(), newer.clone(), evicted.clone()], [evicted.clone(), newer.clone(), older.clone()]]
    {
        assert_eq!(failing(replicator_state(Some(&deployment), &pods)).0, Reason::ReplicatorImageUnavailable);
    }
    let mut ending = newer.clone();
    ending.metadata.deletion_timestamp = ending.metadata.creation_timestamp.clone();
    let pods = [older.clone(), ending];
    assert!(matches!(replicator_state(Some(&deployment), &pods), ReplicatorState::Running { .. }));
    assert_eq!(
        starting(replicator_state(Some(&deployment), &[evicted])),
        "pod evicted has ended (Evicted: The node was low on resource: memory.); creating another"
    );
    let mut outdated = older;
    outdated.metadata.annotations.as_mut().unwrap().insert("walferry.dev/config-hash".into(), "old".into());
    assert_eq!(
        starting(replicator_state(Some(&deployment), &[outdated])),
        "pod older has an earlier configuration and is being replaced"
    );
}
