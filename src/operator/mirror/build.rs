//! The fourth step: renders the ConfigMap that `walferry replicate` reads, and the Deployment of one pod that
//! runs it.
//!
//! Pure: the same resources give byte-identical objects, so applying them again changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy},
        core::v1::{
            Capabilities, ConfigMap, ConfigMapProjection, Container, ContainerPort, HTTPGetAction, KeyToPath,
            LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
            ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, Volume, VolumeMount,
            VolumeProjection,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::Resource;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    api::{
        DeletionPolicy, LogLevel, Mirror, MirrorSpec, RESYNC, ReplicationPeer, ReplicatorResources,
        ReplicatorSpec, amount,
    },
    model::Password,
    operator::labels::{CONFIG_HASH, MIRROR_UID},
    resolve,
};

/// The name of the replicator's container.
pub(super) const CONTAINER: &str = "replicator";
/// The port of the replicator's HTTP server.
pub(super) const HTTP_PORT: i32 = 9464;

/// The key of the ConfigMap.
const CONFIG_FILE: &str = "mirror.yaml";
/// Where the pod finds the documents and, below `secrets`, a folder for each Secret.
const FOLDER: &str = "/etc/walferry";
/// The most characters of a label's value and of a DNS label.
const LABEL: usize = 63;

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

/// A Mirror and what its replicator is rendered from.
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
    /// The name of the ConfigMap and of the Deployment: a DNS label, because pods and their host names are
    /// called after it.
    pub(super) fn name(&self) -> String {
        object_name(self.mirror.metadata.name.as_deref().unwrap_or_default())
    }

    /// The labels of everything that is owned.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.extend(
            [
                ("app.kubernetes.io/name", "walferry"),
                ("app.kubernetes.io/managed-by", "walferry"),
                ("walferry.dev/mirror", &fitting(self.mirror.metadata.name.as_deref().unwrap_or_default())),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        labels
    }

    /// The labels that select the Mirror's pods.
    fn selector(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("app.kubernetes.io/component".to_owned(), "replicator".to_owned()),
            (MIRROR_UID.to_owned(), self.mirror.metadata.uid.clone().unwrap_or_default()),
        ])
    }

    /// The documents that `walferry replicate` reads: no secrets, and nothing that doesn't concern it.
    ///
    /// # Errors
    /// When a resource can't be rendered as YAML, which would be a defect.
    pub(super) fn config_yaml(&self) -> Result<String, serde_yaml::Error> {
        let bare = |metadata: &ObjectMeta| ObjectMeta {
            name: metadata.name.clone(),
            namespace: self.mirror.metadata.namespace.clone(),
            ..ObjectMeta::default()
        };
        let peer = |peer: &ReplicationPeer| ReplicationPeer {
            metadata: bare(&peer.metadata),
            spec: peer.spec.clone(),
            status: None,
        };
        let mut annotations = self.mirror.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| key == RESYNC);
        let mirror = Mirror {
            metadata: ObjectMeta {
                uid: self.mirror.metadata.uid.clone(),
                annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
                ..bare(&self.mirror.metadata)
            },
            // Fields that concern the operator alone must not replace the pod.
            spec: MirrorSpec {
                suspend: false,
                deletion_policy: DeletionPolicy::default(),
                replicator: None,
                ..self.mirror.spec.clone()
            },
            status: None,
        };
        fn document(text: &mut String, resource: &impl Serialize) -> Result<(), serde_yaml::Error> {
            text.push_str("---\n");
            text.push_str(&serde_yaml::to_string(resource)?);
            Ok(())
        }
        let mut text = String::new();
        document(&mut text, &peer(self.source))?;
        document(&mut text, &peer(self.destination))?;
        document(&mut text, &mirror)?;
        Ok(text)
    }

    /// The ConfigMap with the text of [`Self::config_yaml`].
    pub(super) fn config_map(&self, yaml: &str) -> ConfigMap {
        ConfigMap {
            metadata: self.metadata(),
            data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), yaml.to_owned())])),
            ..ConfigMap::default()
        }
    }

    /// The Deployment; `config_hash` is the one of [`config_hash`], `replicas` 1, or 0 for a suspended
    /// Mirror.
    pub(super) fn deployment(&self, config_hash: &str, replicas: i32) -> Deployment {
        Deployment {
            metadata: self.metadata(),
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                // Nothing rolls back: the operator applies the Mirror's spec.
                revision_history_limit: Some(1),
                selector: LabelSelector { match_labels: Some(self.selector()), ..LabelSelector::default() },
                // A slot has one reader: the old pod must end before the new one starts.
                strategy: Some(DeploymentStrategy {
                    type_: Some("Recreate".to_owned()),
                    ..DeploymentStrategy::default()
                }),
                template: self.pod(config_hash),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        }
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name()),
            namespace: self.mirror.metadata.namespace.clone(),
            labels: Some(self.labels()),
            owner_references: self.mirror.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    fn pod(&self, config_hash: &str) -> PodTemplateSpec {
        let spec = self.mirror.spec.replicator.clone().unwrap_or_default();
        let mut annotations = spec.pod_annotations.clone();
        annotations.insert(CONFIG_HASH.to_owned(), config_hash.to_owned());
        let mut labels = spec.pod_labels.clone();
        labels.extend(self.labels());
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                annotations: Some(annotations),
                labels: Some(labels),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                automount_service_account_token: Some(false),
                containers: vec![self.container(&spec)],
                enable_service_links: Some(false),
                image_pull_secrets: self.image_pull_secrets(&spec),
                security_context: Some(pod_security()),
                termination_grace_period_seconds: Some(30),
                volumes: Some(vec![self.volume()]),
                affinity: spec.affinity,
                node_selector: Some(spec.node_selector).filter(|labels| !labels.is_empty()),
                priority_class_name: spec.priority_class_name,
                tolerations: Some(spec.tolerations).filter(|tolerations| !tolerations.is_empty()),
                ..PodSpec::default()
            }),
        }
    }

    fn container(&self, spec: &ReplicatorSpec) -> Container {
        let listen = format!("[::]:{HTTP_PORT}");
        let (config, secrets) = (format!("{FOLDER}/{CONFIG_FILE}"), format!("{FOLDER}/secrets"));
        let mut args = vec!["replicate", "--config", &config, "--secrets", &secrets, "--http", &listen];
        args.extend(["--log-format", "json"]);
        args.extend(log_level(spec.log_level).into_iter().flat_map(|level| ["--log-level", level]));
        Container {
            name: CONTAINER.to_owned(),
            args: Some(args.into_iter().map(str::to_owned).collect()),
            image: Some(self.settings.image.clone()),
            image_pull_policy: self.settings.image_pull_policy.clone(),
            liveness_probe: Some(probe("/healthz", 10)),
            readiness_probe: Some(probe("/readyz", 2)),
            ports: Some(vec![ContainerPort {
                container_port: HTTP_PORT,
                name: Some("http".to_owned()),
                protocol: Some("TCP".to_owned()),
                ..ContainerPort::default()
            }]),
            resources: Some(resources(spec.resources.as_ref())),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    ..Capabilities::default()
                }),
                read_only_root_filesystem: Some(true),
                ..SecurityContext::default()
            }),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![VolumeMount {
                mount_path: FOLDER.to_owned(),
                name: "config".to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            }]),
            ..Container::default()
        }
    }

    /// The documents and, of each Secret that a peer names, only the keys that it needs.
    fn volume(&self) -> Volume {
        let mut secrets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, key) in [self.source, self.destination].into_iter().flat_map(resolve::secret_entries) {
            secrets.entry(name).or_default().insert(key);
        }
        let item = |key: &str, path: String| KeyToPath { key: key.to_owned(), path, mode: None };
        let documents = VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: self.name(),
                items: Some(vec![item(CONFIG_FILE, CONFIG_FILE.to_owned())]),
                ..ConfigMapProjection::default()
            }),
            ..VolumeProjection::default()
        };
        let secret = |(name, keys): (String, BTreeSet<String>)| VolumeProjection {
            secret: Some(SecretProjection {
                items: Some(keys.iter().map(|key| item(key, format!("secrets/{name}/{key}"))).collect()),
                name,
                ..SecretProjection::default()
            }),
            ..VolumeProjection::default()
        };
        Volume {
            name: "config".to_owned(),
            projected: Some(ProjectedVolumeSource {
                // Readable by whatever user the pod runs as; nothing else runs in it.
                default_mode: Some(0o444),
                sources: Some([documents].into_iter().chain(secrets.into_iter().map(secret)).collect()),
            }),
            ..Volume::default()
        }
    }

    fn image_pull_secrets(&self, spec: &ReplicatorSpec) -> Option<Vec<LocalObjectReference>> {
        let own = spec.image_pull_secrets.iter().map(|secret| &secret.name);
        let mut names: Vec<&String> = Vec::new();
        for name in self.settings.image_pull_secrets.iter().chain(own) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let reference = |name: &String| LocalObjectReference { name: name.clone() };
        Some(names.into_iter().map(reference).collect()).filter(|names: &Vec<_>| !names.is_empty())
    }
}

/// The name of the ConfigMap and of the Deployment of a Mirror of this name.
pub(super) fn object_name(mirror: &str) -> String {
    if mirror.contains('.') {
        return shortened(&format!("walferry-{}", mirror.replace('.', "-")), &hex(&[mirror]));
    }
    fitting(&format!("walferry-{mirror}"))
}

/// The hash of the configuration that a Deployment runs with.
pub(super) fn applied_hash(deployment: &Deployment) -> Option<&str> {
    let annotations = deployment.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?;
    annotations.get(CONFIG_HASH).map(String::as_str)
}

/// Identifies a configuration: 16 hexadecimal digits over the documents, the Mirror's UID and the values of
/// its Secrets by Secret and key.
pub(super) fn config_hash(yaml: &str, uid: &str, secrets: &BTreeMap<(String, String), Password>) -> String {
    let mut parts = vec![yaml, uid];
    for ((name, key), value) in secrets {
        parts.extend([name, key, value.expose()]);
    }
    hex(&parts)
}

/// 16 hexadecimal digits of SHA-256 over the parts, each after its length so that no two lists look the same.
fn hex(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A name of at most 63 characters: a longer one ends in a hash of itself.
fn fitting(name: &str) -> String {
    if name.len() <= LABEL { name.to_owned() } else { shortened(name, &hex(&[name])) }
}

/// As much of the name as leaves room for a part of the hash. Names of resources are ASCII.
fn shortened(name: &str, hash: &str) -> String {
    let hash = &hash[..8];
    let name: String = name.chars().take(LABEL - 1 - hash.len()).collect();
    format!("{}-{hash}", name.trim_end_matches(['-', '.']))
}

fn log_level(level: LogLevel) -> Option<&'static str> {
    match level {
        LogLevel::Error => Some("error"),
        LogLevel::Warn => Some("warn"),
        LogLevel::Info => None,
        LogLevel::Debug => Some("debug"),
        LogLevel::Trace => Some("trace"),
    }
}

fn probe(path: &str, period: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        ..Probe::default()
    }
}

/// Meets the restricted Pod Security Standard. The user is the image's, or one that the cluster assigns, as
/// OpenShift does.
fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..PodSecurityContext::default()
    }
}

/// The defaults, overridden by the Mirror. A default yields where it would put a request above its limit.
fn resources(spec: Option<&ReplicatorResources>) -> ResourceRequirements {
    let nothing = ReplicatorResources::default();
    let ReplicatorResources { requests: asked, limits: most } = spec.unwrap_or(&nothing);
    let text = |text: &str| IntOrString::String(text.to_owned());
    let mut requests = BTreeMap::from([("cpu".to_owned(), text("50m")), ("memory".to_owned(), text("64Mi"))]);
    let mut limits = BTreeMap::from([("memory".to_owned(), text("256Mi"))]);
    for (name, request) in &mut requests {
        if let Some(limit) = most.get(name).filter(|limit| amount(limit) < amount(request)) {
            *request = limit.clone();
        }
    }
    for (name, limit) in &mut limits {
        if let Some(request) = asked.get(name).filter(|request| amount(request) > amount(limit)) {
            *limit = request.clone();
        }
    }
    requests.extend(asked.clone());
    limits.extend(most.clone());
    ResourceRequirements {
        limits: Some(quantities(limits)),
        requests: Some(quantities(requests)),
        ..ResourceRequirements::default()
    }
}

fn quantities(amounts: BTreeMap<String, IntOrString>) -> BTreeMap<String, Quantity> {
    let quantity = |amount| match amount {
        IntOrString::Int(number) => Quantity(number.to_string()),
        IntOrString::String(text) => Quantity(text),
    };
    amounts.into_iter().map(|(name, amount)| (name, quantity(amount))).collect()
}

#[cfg(test)]
mod tests;
