//! The fifth step: applies ConfigMap and Deployment when they differ from what exists.

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
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    build::{self, Replicator, ReplicatorSettings, applied_hash},
    owner::Owner,
    validate::Plan,
};
use crate::{
    api::Mirror,
    operator::{blocker::Blocker, error::Error, finalizer, labels, stores::Stores},
};

/// How long the watch may take to show what was applied.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// The objects that a Mirror should own.
#[derive(Debug)]
pub(super) struct Desired {
    config_map: ConfigMap,
    deployment: Deployment,
    /// The hash of the configuration.
    pub(super) config_hash: String,
    /// The hash of both objects.
    digest: u64,
}

/// What was applied, as the API server returned it.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    digest: u64,
    config_hash: String,
    deployment: Deployment,
    config_map: ConfigMap,
    at: Instant,
}

/// The objects that a Mirror owns, as the watches have them.
pub(super) struct Observed {
    /// The Deployment.
    pub(super) deployment: Option<Deployment>,
    config_map: Option<PartialObjectMeta<ConfigMap>>,
}

impl Desired {
    /// Renders the objects.
    ///
    /// # Errors
    /// When a resource can't be rendered as YAML, which would be a defect.
    pub(super) fn render(
        settings: &ReplicatorSettings,
        mirror: &Mirror,
        plan: &Plan<'_>,
    ) -> Result<Desired, Error> {
        let replicator = Replicator { mirror, source: plan.source, destination: plan.destination, settings };
        let yaml = replicator.config_yaml()?;
        let config_hash = build::config_hash(&yaml, &plan.config.mirror.uid, &plan.entries);
        let config_map = replicator.config_map(&yaml);
        let deployment = replicator.deployment(&config_hash, i32::from(!mirror.spec.suspend));
        let mut hasher = DefaultHasher::new();
        for value in [serde_json::to_string(&config_map), serde_json::to_string(&deployment)] {
            // An object without a JSON form could not be applied at all.
            value.unwrap_or_default().hash(&mut hasher);
        }
        Ok(Desired { config_map, deployment, config_hash, digest: hasher.finish() })
    }

    /// Whether a pod with another configuration is about to start, so that both servers must be checked
    /// first.
    pub(super) fn starts_new_pod(&self, observed: &Observed, applied: Option<&Applied>) -> bool {
        if replicas(&self.deployment) == 0 {
            return false;
        }
        match &observed.deployment {
            Some(deployment) => {
                replicas(deployment) == 0 || applied_hash(deployment) != Some(&self.config_hash)
            }
            None => !applied.is_some_and(|applied| {
                applied.config_hash == self.config_hash && applied.at.elapsed() < WATCH_LAG
            }),
        }
    }
}

impl Observed {
    /// Reads them from the stores.
    pub(super) fn read(stores: &Stores, mirror: &Mirror) -> Observed {
        let owner = Owner::of(mirror);
        let (namespace, name) = (&owner.namespace, &owner.object);
        let deployment = stores.find(|stores| &stores.deployments, namespace, name);
        let config_map = stores.find(|stores| &stores.config_maps, namespace, name);
        Observed {
            deployment: deployment.filter(|found| owner.owns(&**found)).as_deref().cloned(),
            config_map: config_map.filter(|found| owner.owns(&**found)).as_deref().cloned(),
        }
    }

    /// Whether a replicator runs, with whatever settings.
    pub(super) fn runs(&self) -> bool {
        self.deployment.as_ref().is_some_and(|deployment| replicas(deployment) > 0)
    }

    /// Whether nobody has changed what was applied. The watch may be behind, never ahead.
    fn still_has(&self, applied: &Applied) -> bool {
        let deployment_unchanged = match &self.deployment {
            Some(found) => {
                found.uid() == applied.deployment.uid()
                    && found.metadata.generation <= applied.deployment.metadata.generation
            }
            None => applied.at.elapsed() < WATCH_LAG,
        };
        let config_map_unchanged = match &self.config_map {
            Some(found) => {
                found.uid() == applied.config_map.uid() && version(found) <= version(&applied.config_map)
            }
            None => applied.at.elapsed() < WATCH_LAG,
        };
        deployment_unchanged && config_map_unchanged
    }
}

/// Resource versions are increasing numbers. One that isn't a number counts as new.
fn version(object: &impl ResourceExt) -> u128 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(u128::MAX)
}

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Applies the desired objects if they don't exist like that, and returns the Deployment as the API server
/// has it. The Mirror gets its finalizer before anything is created. An object of somebody else is never
/// written to.
///
/// # Errors
/// [`Error::Blocked`] for what the cluster refuses and for objects of somebody else, or the API server's
/// error.
pub(super) async fn apply(
    client: &Client,
    applied: &mut Option<Applied>,
    mirror: &Mirror,
    desired: &Desired,
    observed: &Observed,
) -> Result<Deployment, Error> {
    let unchanged = |last: &&Applied| last.digest == desired.digest && observed.still_has(last);
    if let Some(last) = applied.as_ref().filter(unchanged) {
        // Once the store has caught up, its Deployment has the newer status.
        let caught_up =
            |found: &&Deployment| found.metadata.generation == last.deployment.metadata.generation;
        return Ok(observed.deployment.as_ref().filter(caught_up).unwrap_or(&last.deployment).clone());
    }
    let owner = Owner::of(mirror);
    let namespace = &owner.namespace;
    // Both are looked up before either is written: a Mirror that can't own one of them creates nothing.
    let config_map_uid = existing::<ConfigMap>(client, &owner).await?;
    let deployment_uid = existing::<Deployment>(client, &owner).await?;
    let mirrors: Api<Mirror> = Api::namespaced(client.clone(), namespace);
    finalizer::add(&mirrors, mirror, labels::CLEANUP).await?;
    let config_map = write(client, namespace, &desired.config_map, config_map_uid).await?;
    let deployment = write(client, namespace, &desired.deployment, deployment_uid).await?;
    *applied = Some(Applied {
        digest: desired.digest,
        config_hash: desired.config_hash.clone(),
        deployment: deployment.clone(),
        config_map,
        at: Instant::now(),
    });
    tracing::info!(
        namespace,
        mirror = mirror.name_any(),
        config = desired.config_hash,
        "applied the replicator"
    );
    Ok(deployment)
}

/// The UID of the object that the Mirror already owns under this name; `None` when there is no object of that
/// name. The API server is queried, because the stores hold only objects with walferry's labels.
///
/// # Errors
/// [`Error::Blocked`] for an object of somebody else.
async fn existing<K>(client: &Client, owner: &Owner) -> Result<Option<String>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &owner.namespace);
    let of_this_name = ListParams::default().fields(&format!("metadata.name={}", owner.object));
    let found = api.list_metadata(&of_this_name).await?.items;
    match found.iter().find(|found| found.name_any() == owner.object) {
        None => Ok(None),
        Some(found) => match owner.blocker::<K>(found) {
            Some(blocker) => Err(blocker.into()),
            None => Ok(found.uid()),
        },
    }
}

/// Applies an object, over the one with this UID or as a new one.
async fn write<K>(client: &Client, namespace: &str, object: &K, existing: Option<String>) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut apply = PatchParams::apply(labels::FIELD_MANAGER);
    // Never take over fields of an object that was created since the lookup.
    apply.force = existing.is_some();
    let name = object.name_any();
    let mut object = object.clone();
    // An object that has replaced it since has another UID, which is a conflict.
    object.meta_mut().uid = existing;
    api.patch(&name, &apply, &Patch::Apply(&object)).await.map_err(|error| {
        let what = format!("{} {name}", K::kind(&()));
        Blocker::refused(&what, &error).map_or(Error::Api(error), Error::Blocked)
    })
}

/// Stops the replicator of a suspended Mirror whose spec is blocked.
///
/// # Errors
/// The API server's error.
pub(super) async fn scale_down(client: &Client, deployment: &Deployment) -> Result<(), kube::Error> {
    if replicas(deployment) == 0 {
        return Ok(());
    }
    let namespace = deployment.namespace().unwrap_or_default();
    let api: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let patch =
        Patch::Merge(serde_json::json!({"metadata": {"uid": deployment.uid()}, "spec": {"replicas": 0}}));
    let params =
        PatchParams { field_manager: Some(labels::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&deployment.name_any(), &params, &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use http_body_util::BodyExt;
    use k8s_openapi::{
        api::{apps::v1::DeploymentSpec, core::v1::PodTemplateSpec},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    fn deployment(hash: &str, replicas: i32, generation: i64) -> Deployment {
        let annotations = Some([(labels::CONFIG_HASH.to_owned(), hash.to_owned())].into());
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

    fn desired(hash: &str, replicas: i32) -> Desired {
        Desired {
            config_map: config_map("1"),
            deployment: deployment(hash, replicas, 1),
            config_hash: hash.to_owned(),
            digest: 1,
        }
    }

    fn observed(deployment: Option<Deployment>, version: Option<&str>) -> Observed {
        let config_map = version.map(|version| PartialObjectMeta {
            types: None,
            metadata: config_map(version).metadata,
            _phantom: std::marker::PhantomData,
        });
        Observed { deployment, config_map }
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

    /// Requests with their bodies.
    type Asked = Arc<Mutex<Vec<(String, Value)>>>;

    /// An API server that has this ConfigMap, and records its requests.
    fn cluster(found: Option<Value>) -> (Client, Asked) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&asked);
        let items: Vec<Value> = found.into_iter().collect();
        let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items});
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let (requests, list) = (Arc::clone(&requests), list.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let answer = if head.method == hyper::Method::GET { list } else { body.clone() };
                requests.lock().unwrap().push((format!("{} {}", head.method, head.uri), body));
                Ok::<_, Infallible>(hyper::Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        (Client::new(service, "team"), asked)
    }

    fn metadata(owner: &str) -> Value {
        let owner = json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror", "name": "shop", "uid": owner, "controller": true});
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"namespace": "team", "name": "walferry-shop", "uid": "c", "ownerReferences": [owner]}})
    }

    #[tokio::test]
    async fn an_object_is_looked_up_before_it_is_written() {
        let owner = Owner { namespace: "team".into(), uid: "0a".into(), object: "walferry-shop".into() };
        let mut unowned = metadata("0a");
        unowned["metadata"]["ownerReferences"] = json!([]);
        let (client, asked) = cluster(Some(unowned));
        let refused = existing::<ConfigMap>(&client, &owner).await.unwrap_err();
        assert!(matches!(refused, Error::Blocked(found) if found.failure.reason == "ObjectNotOurs"));
        let list = "GET /api/v1/namespaces/team/configmaps?&fieldSelector=metadata.name%3Dwalferry-shop";
        assert_eq!(
            asked.lock().unwrap().iter().map(|(request, _)| request.as_str()).collect::<Vec<_>>(),
            [list]
        );

        let config_map = ConfigMap {
            metadata: ObjectMeta { name: Some("walferry-shop".to_owned()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        };
        for (found, query, uid) in [
            (Some(metadata("0a")), "?&force=true&fieldManager=walferry", json!("c")),
            (None, "?&fieldManager=walferry", Value::Null),
        ] {
            let (client, asked) = cluster(found);
            let uid_found = existing::<ConfigMap>(&client, &owner).await.unwrap();
            write(&client, "team", &config_map, uid_found).await.unwrap();
            let (request, body) = asked.lock().unwrap().pop().unwrap();
            assert_eq!(request, format!("PATCH /api/v1/namespaces/team/configmaps/walferry-shop{query}"));
            assert_eq!(body["metadata"]["uid"], uid);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_checked_when_a_pod_with_another_configuration_is_about_to_start() {
        let running = |hash| observed(Some(deployment(hash, 1, 1)), Some("1"));
        assert!(desired("a", 1).starts_new_pod(&observed(None, None), None));
        assert!(!desired("a", 1).starts_new_pod(&running("a"), None));
        assert!(desired("b", 1).starts_new_pod(&running("a"), None));
        let suspended = observed(Some(deployment("a", 0, 1)), Some("1"));
        assert!(desired("a", 1).starts_new_pod(&suspended, None));
        assert!(!desired("b", 0).starts_new_pod(&running("a"), None));
        // The watch doesn't show yet what was just applied.
        let applied = applied();
        assert!(!desired("a", 1).starts_new_pod(&observed(None, None), Some(&applied)));
        tokio::time::advance(WATCH_LAG).await;
        assert!(desired("a", 1).starts_new_pod(&observed(None, None), Some(&applied)));
    }

    #[tokio::test(start_paused = true)]
    async fn objects_that_others_have_changed_are_applied_again() {
        let applied = applied();
        let unchanged = |generation, version| {
            observed(Some(deployment("a", 1, generation)), Some(version)).still_has(&applied)
        };
        assert!(unchanged(3, "9"));
        assert!(unchanged(2, "8"), "the watch is behind");
        assert!(!unchanged(4, "9") && !unchanged(3, "10"));
        assert!(observed(None, None).still_has(&applied));
        tokio::time::advance(WATCH_LAG).await;
        assert!(
            !observed(None, Some("9")).still_has(&applied)
                && !observed(Some(deployment("a", 1, 3)), None).still_has(&applied)
        );
    }
}
