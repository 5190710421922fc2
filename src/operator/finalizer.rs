//! Finalizers, which keep an object until its clean-up is done.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{labels, object::Watched};

/// Whether the object has the finalizer.
pub(super) fn is_set(object: &impl ResourceExt, finalizer: &str) -> bool {
    object.finalizers().iter().any(|found| found == finalizer)
}

/// Adds the finalizer, whatever others the object has by now. An object that is gone, or was replaced by
/// another of its name, is an error and left alone.
///
/// # Errors
/// The API server's error.
pub(super) async fn add<K: Watched>(
    api: &Api<K>,
    object: &impl ResourceExt,
    finalizer: &str,
) -> Result<(), kube::Error> {
    if is_set(object, finalizer) {
        return Ok(());
    }
    let patch = Patch::Apply(json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"uid": object.uid(), "finalizers": [finalizer]},
    }));
    let apply = PatchParams::apply(labels::FIELD_MANAGER).force();
    api.patch_metadata(&object.name_any(), &apply, &patch).await.map(drop)
}

/// Removes the finalizer. An object that is gone already is fine.
///
/// # Errors
/// The API server's error, among them a conflict when the object has changed since it was read.
pub(super) async fn remove<K: Watched>(
    api: &Api<K>,
    object: &impl ResourceExt,
    finalizer: &str,
) -> Result<(), kube::Error> {
    if !is_set(object, finalizer) {
        return Ok(());
    }
    let others: Vec<&str> =
        object.finalizers().iter().map(String::as_str).filter(|found| *found != finalizer).collect();
    // With the resource version, a list that somebody else changed since is a conflict.
    let metadata =
        json!({"uid": object.uid(), "resourceVersion": object.resource_version(), "finalizers": others});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    // Only metadata is returned, so this also works for an object that doesn't match its type.
    match api.patch_metadata(&object.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
