//! What clean-up needs to know of a Mirror.

use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject},
};
use serde::Deserialize;

use crate::{
    api::{DeletionPolicy, Mirror, PeerRef, SlotStatus},
    operator::{
        blocker::Blocker,
        error::Error,
        object::{MaybeInvalid, valid},
        shared::Shared,
    },
};

/// The fields of a Mirror that clean-up needs. They are few, so that a Mirror which is invalid otherwise can
/// be cleaned up too.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct DeletionView {
    pub(super) spec: SpecView,
    #[serde(default)]
    pub(super) status: StatusView,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SpecView {
    pub(super) source_ref: PeerRef,
    pub(super) destination_ref: PeerRef,
    #[serde(default)]
    pub(super) deletion_policy: DeletionPolicy,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct StatusView {
    pub(super) slot: Option<SlotStatus>,
}

impl DeletionView {
    /// Reads the fields, from the API server where the object doesn't match its type.
    ///
    /// # Errors
    /// The API server's error, or a blocker when even these fields can't be read.
    pub(super) async fn read(shared: &Shared, mirror: &MaybeInvalid<Mirror>) -> Result<DeletionView, Error> {
        if let Some(mirror) = valid(mirror) {
            let status = mirror.status.clone().unwrap_or_default();
            return Ok(DeletionView {
                spec: SpecView {
                    source_ref: mirror.spec.source_ref.clone(),
                    destination_ref: mirror.spec.destination_ref.clone(),
                    deletion_policy: mirror.spec.deletion_policy,
                },
                status: StatusView { slot: status.slot },
            });
        }
        let namespace = mirror.namespace().unwrap_or_default();
        let kind = ApiResource::erase::<Mirror>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(shared.client.clone(), &namespace, &kind);
        let object = api.get(&mirror.name_any()).await?;
        serde_json::from_value(object.data)
            .map_err(|error| Blocker::invalid_object(&error.to_string()).into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_its_fields_from_a_mirror_that_is_otherwise_invalid() {
        let invalid = json!({
            "spec": {
                "sourceRef": {"name": "app"}, "destinationRef": {"name": "analytics"}, "deletionPolicy": "Retain",
                "tables": "none", "batch": 7,
            },
            "status": {"slot": {"host": "db", "port": 5432, "database": "app", "systemIdentifier": "7"}, "conditions": 5},
        });
        let view: DeletionView = serde_json::from_value(invalid).unwrap();
        assert_eq!(view.spec.source_ref.name, "app");
        assert_eq!(view.spec.deletion_policy, DeletionPolicy::Retain);
        assert_eq!(view.status.slot.unwrap().system_identifier, "7");
        let incomplete = json!({"spec": {"sourceRef": {"name": "app"}}});
        assert!(serde_json::from_value::<DeletionView>(incomplete).is_err());
    }
}
