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
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    build::{self, Replicator, applied_hash},
    owned::Owner,
    validate::Plan,
};
use crate::{
    api::Mirror,
    operator::{context::Context, error::Error, finalizer, labels, obstacle::Obstacle},
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
        let owner = Owner::of(mirror);
        let (namespace, name) = (&owner.namespace, &owner.object);
        let deployment = context.find(|scope| &scope.deployments, namespace, name);
        let config_map = context.find(|scope| &scope.config_maps, namespace, name);
        Present {
            deployment: deployment.filter(|found| owner.owns(&**found)).as_deref().cloned(),
            config_map: config_map.filter(|found| owner.owns(&**found)).as_deref().cloned(),
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

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Applies what is wanted, if it isn't there, and gives the Deployment as the API server has it. Before anything is made, the Mirror gets its finalizer.
/// An object of somebody else is never written to.
///
/// # Errors
/// [`Error::Obstacle`] for what the cluster refuses and for objects of somebody else, and what else the API server says.
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
    let owner = Owner::of(mirror);
    let namespace = &owner.namespace;
    // Both before either is written: a Mirror that can't have one of them makes nothing.
    let their_config_map = look::<ConfigMap>(&context.client, &owner).await?;
    let their_deployment = look::<Deployment>(&context.client, &owner).await?;
    let mirrors: Api<Mirror> = Api::namespaced(context.client.clone(), namespace);
    finalizer::add(&mirrors, mirror, labels::CLEANUP).await?;
    let config_map = write(&context.client, namespace, &wanted.config_map, their_config_map).await?;
    let deployment = write(&context.client, namespace, &wanted.deployment, their_deployment).await?;
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

/// The UID of the object that the Mirror has under the name of what it owns; `None` when there is no object of that name. The API server is
/// asked, because the stores hold only what has walferry's labels.
///
/// # Errors
/// [`Error::Obstacle`] for an object of somebody else.
async fn look<K>(client: &Client, owner: &Owner) -> Result<Option<String>, Error>
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

/// Applies an object, over the one of this UID or as a new one.
async fn write<K>(client: &Client, namespace: &str, object: &K, over: Option<String>) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut apply = PatchParams::apply(labels::FIELD_MANAGER);
    // Fields of an object that appeared since it was looked for are nobody's to take.
    apply.force = over.is_some();
    let name = object.name_any();
    let mut object = object.clone();
    // One that took its place since then has another UID, which is a conflict.
    object.meta_mut().uid = over;
    api.patch(&name, &apply, &Patch::Apply(&object)).await.map_err(|error| {
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

    /// Requests with their bodies.
    type Asked = Arc<Mutex<Vec<(String, Value)>>>;

    /// An API server that has this ConfigMap, and keeps what it is asked.
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
    async fn an_object_is_looked_for_before_it_is_written() {
        let owner = Owner { namespace: "team".into(), uid: "0a".into(), object: "walferry-shop".into() };
        let mut stranger = metadata("0a");
        stranger["metadata"]["ownerReferences"] = json!([]);
        let (client, asked) = cluster(Some(stranger));
        let refused = look::<ConfigMap>(&client, &owner).await.unwrap_err();
        assert!(matches!(refused, Error::Obstacle(found) if found.failure.reason == "ObjectNotOurs"));
        let list = "GET /api/v1/namespaces/team/configmaps?&fieldSelector=metadata.name%3Dwalferry-shop";
        assert_eq!(
            asked.lock().unwrap().iter().map(|(request, _)| request.as_str()).collect::<Vec<_>>(),
            [list]
        );

        let wanted = ConfigMap {
            metadata: ObjectMeta { name: Some("walferry-shop".to_owned()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        };
        for (found, query, uid) in [
            (Some(metadata("0a")), "?&force=true&fieldManager=walferry", json!("c")),
            (None, "?&fieldManager=walferry", Value::Null),
        ] {
            let (client, asked) = cluster(found);
            let over = look::<ConfigMap>(&client, &owner).await.unwrap();
            write(&client, "team", &wanted, over).await.unwrap();
            let (request, body) = asked.lock().unwrap().pop().unwrap();
            assert_eq!(request, format!("PATCH /api/v1/namespaces/team/configmaps/walferry-shop{query}"));
            assert_eq!(body["metadata"]["uid"], uid);
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
