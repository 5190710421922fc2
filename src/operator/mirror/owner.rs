//! Which objects belong to a Mirror: decided by namespace, name and the UID in their controller reference,
//! never by labels alone, which anybody can put on any object.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt};

use super::build;
use crate::{
    api::{GROUP, Mirror},
    fault::Reason,
    operator::{blocker::Blocker, labels::MIRROR_UID, stores::Stores},
};

/// The label with the hash of the pod template, which is also the end of the ReplicaSet's name.
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Identifies what a Mirror owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The namespace of the Mirror and of all that it owns.
    pub(super) namespace: String,
    /// The Mirror's UID.
    pub(super) uid: String,
    /// The name of its ConfigMap and of its Deployment.
    pub(super) object: String,
}

impl Owner {
    /// The objects of this Mirror.
    pub(super) fn of(mirror: &impl ResourceExt) -> Owner {
        Owner {
            namespace: mirror.namespace().unwrap_or_default(),
            uid: mirror.uid().unwrap_or_default(),
            object: build::object_name(&mirror.name_any()),
        }
    }

    /// Whether a ConfigMap or Deployment is this Mirror's.
    pub(super) fn owns(&self, object: &impl ResourceExt) -> bool {
        object.namespace().as_ref() == Some(&self.namespace)
            && object.name_any() == self.object
            && controller(object).is_some_and(|owner| is_mirror(owner) && owner.uid == self.uid)
    }

    /// Whether a pod belongs to this Mirror's Deployment: its controller is the ReplicaSet that the
    /// Deployment creates for the pod's template.
    pub(super) fn owns_pod(&self, pod: &impl ResourceExt) -> bool {
        let replica_set = pod.labels().get(POD_TEMPLATE_HASH).map(|hash| format!("{}-{hash}", self.object));
        pod.namespace().as_ref() == Some(&self.namespace)
            && pod.labels().get(MIRROR_UID) == Some(&self.uid)
            && controller(pod).is_some_and(|owner| {
                owner.kind == "ReplicaSet"
                    && owner.api_version.starts_with("apps/")
                    && Some(&owner.name) == replica_set.as_ref()
            })
    }

    /// The pods of this Mirror's replicator, as the stores have them.
    pub(super) fn pods(&self, stores: &Stores) -> Vec<Pod> {
        stores.pods(|pod| self.owns_pod(pod))
    }

    /// Why the Mirror can't use an existing object of the name that it needs; `None` when it owns the object.
    pub(super) fn blocker<K: Resource<DynamicType = ()>>(&self, found: &impl ResourceExt) -> Option<Blocker> {
        if self.owns(found) {
            return None;
        }
        let (kind, name, namespace) = (K::kind(&()), found.name_any(), &self.namespace);
        if let Some(owner) = controller(found).filter(|owner| is_mirror(owner)) {
            let message = format!(
                "{kind} {name} in namespace {namespace} belongs to an earlier Mirror {} with UID {}; waiting for the cluster to garbage-collect it",
                owner.name, owner.uid
            );
            return Some(Blocker::transient(Reason::ObjectNotOurs, message));
        }
        let resource = kind.to_lowercase();
        let message = format!(
            "{kind} {name} in namespace {namespace} exists and does not belong to this Mirror, which needs that name. \
             If nobody needs it: kubectl delete {resource} {name} --namespace {namespace}. Otherwise create the Mirror under another name"
        );
        Some(Blocker::terminal(Reason::ObjectNotOurs, message))
    }
}

fn controller(object: &impl ResourceExt) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

fn is_mirror(owner: &OwnerReference) -> bool {
    owner.kind == Mirror::kind(&())
        && owner.api_version.strip_prefix(GROUP).is_some_and(|version| version.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};

    use super::*;

    fn owner() -> Owner {
        Owner { namespace: "team".into(), uid: "0a-1".into(), object: "walferry-shop".into() }
    }

    fn config_map(namespace: &str, name: &str, owners: Value) -> ConfigMap {
        let labels = json!({"walferry.dev/mirror-uid": "0a-1", "app.kubernetes.io/managed-by": "walferry"});
        let metadata =
            json!({"namespace": namespace, "name": name, "labels": labels, "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn reference(kind: &str, version: &str, uid: &str, controller: bool) -> Value {
        json!([{"apiVersion": version, "kind": kind, "name": "shop", "uid": uid, "controller": controller}])
    }

    #[test]
    fn owns_what_has_its_reference_name_and_namespace() {
        let ours = || reference("Mirror", "walferry.dev/v1alpha1", "0a-1", true);
        assert!(owner().owns(&config_map("team", "walferry-shop", ours())));
        for other in [
            config_map("other", "walferry-shop", ours()),
            config_map("team", "walferry-shop-2", ours()),
            config_map("team", "walferry-shop", json!([])),
            config_map("team", "walferry-shop", reference("Mirror", "walferry.dev/v1alpha1", "0a-1", false)),
            config_map("team", "walferry-shop", reference("Mirror", "walferry.dev/v1alpha1", "0a-2", true)),
            config_map("team", "walferry-shop", reference("Mirror", "example.com/v1", "0a-1", true)),
            config_map("team", "walferry-shop", reference("Mirror", "walferry.dev.example/v1", "0a-1", true)),
            config_map("team", "walferry-shop", reference("Job", "walferry.dev/v1alpha1", "0a-1", true)),
        ] {
            assert!(!owner().owns(&other), "{other:?}");
        }
    }

    #[test]
    fn owns_pods_of_its_own_deployment() {
        let pod = |namespace: &str, uid: &str, owner: Value| -> Pod {
            let labels = json!({"walferry.dev/mirror-uid": uid, "pod-template-hash": "7d9f"});
            let owners = if owner.is_null() { json!([]) } else { json!([owner]) };
            let metadata =
                json!({"namespace": namespace, "name": "x", "labels": labels, "ownerReferences": owners});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let set = |kind: &str, version: &str, name: &str| json!({"apiVersion": version, "kind": kind, "name": name, "uid": "1", "controller": true});
        let ours = || set("ReplicaSet", "apps/v1", "walferry-shop-7d9f");
        assert!(owner().owns_pod(&pod("team", "0a-1", ours())));
        for other in [
            pod("other", "0a-1", ours()),
            pod("team", "0a-2", ours()),
            pod("team", "0a-1", Value::Null),
            pod("team", "0a-1", set("ReplicaSet", "apps/v1", "walferry-shop-7d9e")),
            pod("team", "0a-1", set("ReplicaSet", "apps/v1", "mine-7d9f")),
            pod("team", "0a-1", set("Job", "batch/v1", "walferry-shop-7d9f")),
            pod("team", "0a-1", set("ReplicaSet", "example.com/v1", "walferry-shop-7d9f")),
        ] {
            assert!(!owner().owns_pod(&other), "{other:?}");
        }
    }

    #[test]
    fn an_object_of_somebody_else_is_named_and_never_touched() {
        let blocker = |owners| owner().blocker::<ConfigMap>(&config_map("team", "walferry-shop", owners));
        assert_eq!(blocker(reference("Mirror", "walferry.dev/v1alpha1", "0a-1", true)), None);
        let unowned = blocker(json!([])).unwrap();
        assert!(!unowned.transient);
        assert_eq!(unowned.failure.reason, Reason::ObjectNotOurs);
        assert_eq!(
            unowned.failure.message,
            "ConfigMap walferry-shop in namespace team exists and does not belong to this Mirror, which needs that name. \
             If nobody needs it: kubectl delete configmap walferry-shop --namespace team. Otherwise create the Mirror under another name"
        );
        let earlier = blocker(reference("Mirror", "walferry.dev/v1alpha1", "0a-0", true)).unwrap();
        assert!(earlier.transient && earlier.failure.message.contains("earlier Mirror shop with UID 0a-0"));
    }
}
