//! The resources of `walferry.dev/v1alpha1`: [`ReplicationPeer`], a database, and [`Mirror`], what is
//! replicated between two of them.
//!
//! Types and the rules that one object must keep on its own. The same rules are in the generated
//! CustomResourceDefinitions, where the Kubernetes API server evaluates them as CEL, and in
//! [`Problem`]-returning functions, for files that never meet an API server. Nothing here connects to
//! anything.

#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns of the same type look the same to the lint"
)]
#![allow(unreachable_pub, reason = "KubeSchema copies each public struct into a function")]

mod byte_size;
pub mod conditions;
mod expression;
mod former;
mod mirror;
mod names;
mod peer;
mod quantity;
pub mod reference;
mod replicator;
mod rules;

pub use byte_size::{MAX_BATCH_BYTES, MIN_BATCH_BYTES, batch_bytes};
pub use former::{FormerName, is_former_field, is_former_value, normalize, normalized};
pub use mirror::{
    BatchSpec, ColumnsSpec, DeletionPolicy, EngineSpec, FailedTable, LagStatus, Mirror, MirrorSpec,
    MirrorStatus, MirrorTable, Operation, OutOfRange, SlotStatus, SnapshotMode, SnapshotSpec, SnapshotStatus,
    TableCounts, TargetSpec,
};
pub use names::{is_namespace, is_object_name, is_secret_key};
pub use peer::{
    ClickHousePeer, PostgresPeer, ReplicationPeer, ReplicationPeerSpec, ReplicationPeerStatus, TlsMode,
    TlsSpec,
};
pub use quantity::{Amount, amount};
pub use replicator::{LogLevel, ReplicatorResources, ReplicatorSpec};
pub use rules::{Problem, mirror_problems, peer_problems};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::{CustomResourceExt, KubeSchema};
use serde::{Deserialize, Serialize};

use rules::message;

/// The API group of all resources.
pub const GROUP: &str = "walferry.dev";

/// The version of all resources, with the group: what `apiVersion` says.
pub const API_VERSION: &str = "walferry.dev/v1alpha1";

/// The prefix of every name that walferry creates at the destination: the state table and the columns that
/// carry version and deletion.
pub const RESERVED_PREFIX: &str = "_walferry";

/// The prefix of walferry's own labels and annotations.
pub const RESERVED_KEYS: [&str; 2] = ["app.kubernetes.io/", "walferry.dev/"];

/// The annotation that has a Mirror copy everything again when its value changes.
pub const RESYNC: &str = "walferry.dev/resync";

/// The annotation that releases a Mirror that is being deleted and can't clean up: `"true"`.
pub const SKIP_CLEANUP: &str = "walferry.dev/skip-cleanup";

/// The former name of [`SKIP_CLEANUP`], which is honoured too: an object that has it is not to be stuck.
pub const FORMER_SKIP_CLEANUP: &str = "walferry.dev/abandon";

/// The CRDs, in the order in which to apply them.
pub fn custom_resource_definitions() -> [CustomResourceDefinition; 2] {
    let mut crds = [ReplicationPeer::crd(), Mirror::crd()];
    for version in crds.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        let schema = version.schema.as_mut().and_then(|validation| validation.open_api_v3_schema.as_mut());
        schema.into_iter().for_each(forbid_null);
    }
    crds
}

/// Makes `field: null` mean the same as no field: the API server prunes such nulls, and CEL's `has()` is then
/// false, as expected.
fn forbid_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flatten().for_each(|(_, property)| forbid_null(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        forbid_null(items);
    }
}

/// The name of a ReplicationPeer in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerRef {
    /// Name of a ReplicationPeer in the namespace of the Mirror.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(message::OBJECT_NAME))]
    pub name: String,
}

/// The name of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of a Secret in the namespace of the resource.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(message::OBJECT_NAME))]
    pub name: String,
}

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of a Secret in the namespace of the resource.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(message::OBJECT_NAME))]
    pub name: String,
    /// The key within the Secret.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$') && self != '.' && !self.startsWith('..')").message(message::SECRET_KEY))]
    pub key: String,
}

fn default_ca_key() -> String {
    "ca.crt".to_owned()
}
