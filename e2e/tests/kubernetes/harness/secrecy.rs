//! Checks that no password is in an object or a log.

use base64::Engine;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, LogParams},
    core::GroupVersionKind,
};

use super::{Cluster, TestNamespace, operator};

/// The kinds of a Mirror's objects except Secrets. Pods have the containers' arguments and environment.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "v1", "ConfigMap"),
    ("", "v1", "Pod"),
    ("", "v1", "Event"),
    ("events.k8s.io", "v1", "Event"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "ReplicaSet"),
    ("walferry.dev", "v1alpha1", "Mirror"),
    ("walferry.dev", "v1alpha1", "ReplicationPeer"),
];

/// Asserts that none of these passwords is in an object or a log of this namespace or the operator's, plain
/// or in base64.
#[track_caller]
pub fn check(namespace: &TestNamespace, passwords: &[&str]) {
    let texts: Vec<_> = [namespace.name.as_str(), operator::NAMESPACE]
        .into_iter()
        .flat_map(|name| texts(namespace.cluster, name))
        .collect();
    for password in passwords {
        let encoded = base64::engine::general_purpose::STANDARD.encode(password);
        for (place, text) in &texts {
            assert!(
                !text.contains(password) && !text.contains(&encoded),
                "{password} is in {place}:\n{text}"
            );
        }
    }
}

/// All objects and logs of a namespace, with their names.
fn texts(cluster: &Cluster, namespace: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (group, version, kind) in KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api = Api::<DynamicObject>::namespaced_with(cluster.client.clone(), namespace, &resource);
        for object in cluster.block_on(api.list(&ListParams::default())).unwrap() {
            let place = format!("{kind} {namespace}/{}", object.name_any());
            found.push((place, serde_json::to_string(&object).unwrap()));
        }
    }
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    for pod in cluster.block_on(pods.list(&ListParams::default())).unwrap() {
        for previous in [false, true] {
            let parameters = LogParams { previous, ..LogParams::default() };
            // Most pods have no previous container, and some never started.
            if let Ok(log) = cluster.block_on(pods.logs(&pod.name_any(), &parameters)) {
                found.push((format!("the log of {namespace}/{}", pod.name_any()), log));
            }
        }
    }
    found
}
