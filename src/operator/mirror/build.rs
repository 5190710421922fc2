//! What a Mirror owns in the cluster: a ConfigMap that `walferry replicate` reads and a Deployment of one pod that runs it.
//!
//! Pure: the same resources give the same objects to the byte, so applying them again changes nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};

use crate::{
    api::{Mirror, ReplicationPeer},
    model::Password,
};

/// What all replicators of an operator have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicatorSettings {
    /// The image, with tag or digest.
    pub image: String,
    /// `imagePullPolicy` of the container; Kubernetes' own choice when `None`.
    pub image_pull_policy: Option<String>,
    /// Names of Secrets to pull the image with, in each Mirror's namespace.
    pub image_pull_secrets: Vec<String>,
}

/// A Mirror and what its replicator is made from.
pub(super) struct Replicator<'a> {
    /// The Mirror; its name, namespace and UID are set.
    pub(super) mirror: &'a Mirror,
    /// The peer of `spec.sourceRef`.
    pub(super) source: &'a ReplicationPeer,
    /// The peer of `spec.destinationRef`.
    pub(super) destination: &'a ReplicationPeer,
    /// What all replicators have in common.
    pub(super) settings: &'a ReplicatorSettings,
}

impl Replicator<'_> {
    /// The name of the ConfigMap and of the Deployment, a DNS label.
    pub(super) fn name(&self) -> String {
        String::new()
    }

    /// The labels of everything that is owned.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// The documents that `walferry replicate` reads; no secret is in them.
    ///
    /// # Errors
    /// When a resource can't be written as YAML, which would be a defect.
    pub(super) fn config_yaml(&self) -> Result<String, serde_yaml::Error> {
        Ok(String::new())
    }

    /// The ConfigMap with the text of [`Self::config_yaml`].
    pub(super) fn config_map(&self, yaml: &str) -> ConfigMap {
        let _ = yaml;
        ConfigMap::default()
    }

    /// The Deployment; `config_hash` is the one of [`config_hash`], `replicas` 1, or 0 for a suspended Mirror.
    pub(super) fn deployment(&self, config_hash: &str, replicas: i32) -> Deployment {
        let _ = (config_hash, replicas);
        Deployment::default()
    }
}

/// What tells one configuration from another: 16 hexadecimal digits over the documents, the Mirror's UID and the values of its Secrets
/// by Secret and key.
pub(super) fn config_hash(yaml: &str, uid: &str, secrets: &BTreeMap<(String, String), Password>) -> String {
    let _ = (yaml, uid, secrets);
    String::new()
}

/// The annotation of the Deployment and of its pod template that holds the hash of [`config_hash`].
pub(super) const CONFIG_HASH: &str = "walferry.dev/config-hash";
/// The port of the replicator's HTTP server.
pub(super) const HTTP_PORT: i32 = 9464;
