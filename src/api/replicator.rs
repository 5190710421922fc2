//! `spec.replicator`: how the pod of a Mirror runs.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, Toleration},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SecretRef, rules::message};

/// Settings of a Mirror's pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorSpec {
    /// Resources of the container. What is left out keeps walferry's default: requests of 50m CPU and 64Mi
    /// memory, a limit of 256Mi memory and none on CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ReplicatorResources>,
    /// Labels that a node must have for the pod to run there, such as `kubernetes.io/arch: amd64`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of nodes that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the pod, as `spec.affinity` of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "affinity_schema")]
    pub affinity: Option<Affinity>,
    /// Name of a PriorityClass: who is evicted last when a node is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(message::OBJECT_NAME))]
    pub priority_class_name: Option<String>,
    /// Secrets, in the namespace of the Mirror, to pull walferry's image with; they are added to the
    /// operator's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// Additional labels of the pod. Those of app.kubernetes.io/ and walferry.dev/ are walferry's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new(
        "self.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('walferry.dev/'))"
    ).message(message::RESERVED_LABEL))]
    pub pod_labels: BTreeMap<String, String>,
    /// Additional annotations of the pod. Those of app.kubernetes.io/ and walferry.dev/ are walferry's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new(
        "self.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('walferry.dev/'))"
    ).message(message::RESERVED_ANNOTATION))]
    pub pod_annotations: BTreeMap<String, String>,
    /// Log level of the pod.
    #[serde(default)]
    pub log_level: LogLevel,
}

/// Resources of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)"
    ).message(message::REQUEST_OVER_LIMIT),
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicatorResources {
    /// Resource requests of the pod: `{cpu: 100m, memory: 128Mi}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    #[x_kube(validation = Rule::new(
        "self.all(name, isQuantity(string(self[name])) && !string(self[name]).startsWith('-'))"
    ).message(message::QUANTITY))]
    pub requests: BTreeMap<String, IntOrString>,
    /// Resource limits of the container; beyond its memory limit it is killed. The memory limit must exceed
    /// batch.maxBytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities_schema")]
    #[x_kube(validation = Rule::new(
        "self.all(name, isQuantity(string(self[name])) && !string(self[name]).startsWith('-'))"
    ).message(message::QUANTITY))]
    pub limits: BTreeMap<String, IntOrString>,
}

/// Log level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "documented at the field: documented variants make a schema that is not structural"
)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Quantities by the name of a resource, as in Kubernetes' own API.
fn quantities_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 5,
        "additionalProperties": {"x-kubernetes-int-or-string": true},
    })
}

/// Kubernetes' own schema, with its lists and selectors marked as they are there: replaced as a whole.
fn affinity_schema(generator: &mut SchemaGenerator) -> Schema {
    fn mark(schema: &mut Value) {
        if let Value::Object(fields) = schema {
            if fields.get("type").is_some_and(|kind| kind == "array") {
                fields.insert("x-kubernetes-list-type".to_owned(), "atomic".into());
            }
            let is_selector = |properties: &Value| {
                properties.get("matchExpressions").or(properties.get("nodeSelectorTerms")).is_some()
            };
            if fields.get("properties").is_some_and(is_selector) {
                fields.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
            }
            fields.values_mut().for_each(mark);
        }
    }
    let mut schema = generator.subschema_for::<Affinity>();
    schema.as_object_mut().into_iter().flat_map(|fields| fields.values_mut()).for_each(mark);
    schema
}
