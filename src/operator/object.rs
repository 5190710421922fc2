//! Kubernetes objects as the API server returns them, valid or not.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, core::DeserializeGuard};
use serde::de::DeserializeOwned;

use crate::api::{Mirror, conditions::READY};

/// An object that a watch can deliver.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

/// An object that may not match its type. One that was stored before a schema changed must not stop the watch
/// of all others.
pub(super) type MaybeInvalid<K> = DeserializeGuard<K>;

/// The object, if it matches its type.
pub(super) fn valid<K>(object: &MaybeInvalid<K>) -> Option<&K> {
    object.0.as_ref().ok()
}

/// The names of the peers that a Mirror refers to.
pub(super) fn peer_names(mirror: &Mirror) -> [&str; 2] {
    [&mirror.spec.source_ref.name, &mirror.spec.destination_ref.name]
}

/// The condition of this type.
pub(super) fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether `Ready` is true.
pub(super) fn is_ready(conditions: &[Condition]) -> bool {
    condition(conditions, READY).is_some_and(|ready| ready.status == "True")
}
