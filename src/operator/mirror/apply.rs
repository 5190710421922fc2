//! The fifth step: ConfigMap and Deployment, applied when they differ from what is there.

use std::{
    fmt::Debug,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::ConfigMap},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    build::{self, MIRROR_UID, Replicator, applied_hash},
    validate::Plan,
};
use crate::{
    api::Mirror,
    operator::{context::Context, error::Error, finalizer, labels, obstacle::Obstacle, scope::Scope},
};

/// How long the watch may take to show what was applied.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// What a Mirror is to own.
#[derive(Debug)]
pub(super) struct Wanted {
    config_map: ConfigMap,
    deployment: Deployment,
    /// What tells the configuration from another.
    pub(super) config_hash: String,
    /// What tells the objects from others.
    digest: u64,
}

/// What was applied, and what the API server made of it.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    digest: u64,
    config_hash: String,
    deployment: Deployment,
    config_map: ConfigMap,
    at: Instant,
}

/// What is there.
pub(super) struct Present {
    /// The Deployment.
    pub(super) deployment: Option<Deployment>,
    config_map: Option<PartialObjectMeta<ConfigMap>>,
}

impl Wanted {
    /// Renders what a Mirror is to own.
    ///
    /// # Errors
    /// When a resource can't be written as YAML, which would be a defect.
    pub(super) fn render(context: &Context, mirror: &Mirror, plan: &Plan<'_>) -> Result<Wanted, Error> {
        let replicator = Replicator {
            mirror,
            source: plan.source,
            destination: plan.destination,
            settings: &context.replicators,
        };
        let yaml = replicator.config_yaml()?;
        let config_hash = build::config_hash(&yaml, &plan.config.mirror.uid, &plan.entries);
        let config_map = replicator.config_map(&yaml);
        let deployment = replicator.deployment(&config_hash, i32::from(!mirror.spec.suspend));
        let mut hasher = DefaultHasher::new();
        for value in [serde_json::to_string(&config_map), serde_json::to_string(&deployment)] {
            // An object that has no JSON form would never be applied at all.
            value.unwrap_or_default().hash(&mut hasher);
        }
        Ok(Wanted { config_map, deployment, config_hash, digest: hasher.finish() })
    }

    /// Whether a pod with another configuration is about to start, so that both servers are to be checked first.
    pub(super) fn starts_anew(&self, present: &Present, applied: Option<&Applied>) -> bool {
        if replicas(&self.deployment) == 0 {
            return false;
        }
        match &present.deployment {
            Some(deployment) => {
                replicas(deployment) == 0 || applied_hash(deployment) != Some(&self.config_hash)
            }
            None => !applied.is_some_and(|applied| {
                applied.config_hash == self.config_hash && applied.at.elapsed() < WATCH_LAG
            }),
        }
    }
}

impl Present {
    /// What the stores have.
    pub(super) fn read(context: &Context, mirror: &Mirror) -> Present {
        let deployment = |scope: &Scope| scope.deployments.find(|found| belongs(found, mirror));
        let config_map = |scope: &Scope| scope.config_maps.find(|found| belongs(found, mirror));
        Present {
            deployment: context.scopes.iter().find_map(deployment).as_deref().cloned(),
            config_map: context.scopes.iter().find_map(config_map).as_deref().cloned(),
        }
    }

    /// Whether a replicator is there, with whatever settings.
    pub(super) fn runs(&self) -> bool {
        self.deployment.as_ref().is_some_and(|deployment| replicas(deployment) > 0)
    }

    /// Whether nothing has touched what was applied. The watch may be behind, never ahead.
    fn has(&self, applied: &Applied) -> bool {
        let seen = match &self.deployment {
            Some(found) => {
                found.uid() == applied.deployment.uid()
                    && found.metadata.generation <= applied.deployment.metadata.generation
            }
            None => applied.at.elapsed() < WATCH_LAG,
        };
        let config_seen = match &self.config_map {
            Some(found) => {
                found.uid() == applied.config_map.uid() && version(found) <= version(&applied.config_map)
            }
            None => applied.at.elapsed() < WATCH_LAG,
        };
        seen && config_seen
    }
}

/// Resource versions are numbers that grow; of one that isn't nothing can be told, and it counts as new.
fn version(object: &impl ResourceExt) -> u128 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(u128::MAX)
}

fn belongs(object: &impl ResourceExt, mirror: &Mirror) -> bool {
    mirror.metadata.uid.is_some() && object.labels().get(MIRROR_UID) == mirror.metadata.uid.as_ref()
}

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Applies what is wanted, if it isn't there, and gives the Deployment as the API server has it. Before anything is made, the Mirror gets its finalizer.
///
/// # Errors
/// [`Error::Obstacle`] for what the cluster refuses, and what else the API server says.
pub(super) async fn apply(
    context: &Context,
    mirror: &Mirror,
    wanted: &Wanted,
    present: &Present,
) -> Result<Deployment, Error> {
    let uid = mirror.uid().unwrap_or_default();
    let applied = context.memory.mirrors.of(&uid, |memory| memory.applied.clone());
    if let Some(applied) = applied.filter(|applied| applied.digest == wanted.digest && present.has(applied)) {
        // Of the two the store's is the newer one, when it has caught up: its status moves on.
        let newest = present.deployment.clone();
        let caught_up =
            |found: &Deployment| found.metadata.generation == applied.deployment.metadata.generation;
        return Ok(newest.filter(caught_up).unwrap_or(applied.deployment));
    }
    let namespace = mirror.namespace().unwrap_or_default();
    let mirrors: Api<Mirror> = Api::namespaced(context.client.clone(), &namespace);
    finalizer::add(&mirrors, mirror, labels::CLEANUP).await?;
    let config_map = write(context, &namespace, &wanted.config_map).await?;
    let deployment = write(context, &namespace, &wanted.deployment).await?;
    let applied = Applied {
        digest: wanted.digest,
        config_hash: wanted.config_hash.clone(),
        deployment: deployment.clone(),
        config_map,
        at: Instant::now(),
    };
    context.memory.mirrors.of(&uid, |memory| memory.applied = Some(applied));
    tracing::info!(
        namespace,
        mirror = mirror.name_any(),
        config = wanted.config_hash,
        "applied the replicator"
    );
    Ok(deployment)
}

async fn write<K>(context: &Context, namespace: &str, object: &K) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let apply = PatchParams::apply(labels::FIELD_MANAGER).force();
    let name = object.name_any();
    api.patch(&name, &apply, &Patch::Apply(object)).await.map_err(|error| {
        let what = format!("{} {name}", K::kind(&()));
        Obstacle::refused(&what, &error).map_or(Error::Api(error), Error::Obstacle)
    })
}

/// Ends the replicator of a suspended Mirror that something else is wrong with.
///
/// # Errors
/// What the API server says.
pub(super) async fn scale_down(context: &Context, deployment: &Deployment) -> Result<(), kube::Error> {
    if replicas(deployment) == 0 {
        return Ok(());
    }
    let namespace = deployment.namespace().unwrap_or_default();
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), &namespace);
    let patch = Patch::Merge(serde_json::json!({"spec": {"replicas": 0}}));
    let params =
        PatchParams { field_manager: Some(labels::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&deployment.name_any(), &params, &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::{apps::v1::DeploymentSpec, core::v1::PodTemplateSpec},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn deployment(hash: &str, replicas: i32, generation: i64) -> Deployment {
        let annotations = Some([(build::CONFIG_HASH.to_owned(), hash.to_owned())].into());
        let template = PodTemplateSpec {
            metadata: Some(ObjectMeta { annotations, ..ObjectMeta::default() }),
            ..PodTemplateSpec::default()
        };
        Deployment {
            metadata: ObjectMeta {
                uid: Some("d".to_owned()),
                generation: Some(generation),
                ..ObjectMeta::default()
            },
            spec: Some(DeploymentSpec { replicas: Some(replicas), template, ..DeploymentSpec::default() }),
            ..Deployment::default()
        }
    }

    fn config_map(version: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                uid: Some("c".to_owned()),
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn wanted(hash: &str, replicas: i32) -> Wanted {
        Wanted {
            config_map: config_map("1"),
            deployment: deployment(hash, replicas, 1),
            config_hash: hash.to_owned(),
            digest: 1,
        }
    }

    fn present(deployment: Option<Deployment>, version: Option<&str>) -> Present {
        let config_map = version.map(|version| PartialObjectMeta {
            types: None,
            metadata: config_map(version).metadata,
            _phantom: std::marker::PhantomData,
        });
        Present { deployment, config_map }
    }

    fn applied() -> Applied {
        Applied {
            digest: 1,
            config_hash: "a".to_owned(),
            deployment: deployment("a", 1, 3),
            config_map: config_map("9"),
            at: Instant::now(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_checked_when_a_pod_with_another_configuration_is_about_to_start() {
        let running = |hash| present(Some(deployment(hash, 1, 1)), Some("1"));
        assert!(wanted("a", 1).starts_anew(&present(None, None), None));
        assert!(!wanted("a", 1).starts_anew(&running("a"), None));
        assert!(wanted("b", 1).starts_anew(&running("a"), None));
        let suspended = present(Some(deployment("a", 0, 1)), Some("1"));
        assert!(wanted("a", 1).starts_anew(&suspended, None));
        assert!(!wanted("b", 0).starts_anew(&running("a"), None));
        // The watch doesn't show yet what was applied just now.
        let applied = applied();
        assert!(!wanted("a", 1).starts_anew(&present(None, None), Some(&applied)));
        tokio::time::advance(WATCH_LAG).await;
        assert!(wanted("a", 1).starts_anew(&present(None, None), Some(&applied)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_have_changed_is_applied_again() {
        let applied = applied();
        let there =
            |generation, version| present(Some(deployment("a", 1, generation)), Some(version)).has(&applied);
        assert!(there(3, "9"));
        assert!(there(2, "8"), "the watch is behind");
        assert!(!there(4, "9") && !there(3, "10"));
        assert!(present(None, None).has(&applied));
        tokio::time::advance(WATCH_LAG).await;
        assert!(
            !present(None, Some("9")).has(&applied)
                && !present(Some(deployment("a", 1, 3)), None).has(&applied)
        );
    }
}
