//! A namespace for one test.

use std::{
    fmt::Debug,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Namespace};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, TypeMeta},
    core::{GroupVersionKind, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Cluster, cluster, operator::Pause, watch};
use crate::support::Outcome;

/// Read-locked by tests that can run next to others, write-locked by tests that can't.
static CLUSTER_LOCK: RwLock<()> = RwLock::new(());

/// The namespace of one test. It is deleted when the test succeeds; its objects are printed when the test
/// fails.
#[derive(Debug)]
pub struct TestNamespace {
    pub name: String,
    pub cluster: &'static Cluster,
    // Dropped last and in this order: the operator starts again before the next test may run.
    _pause: Option<Pause>,
    _turn: Turn,
}

#[derive(Debug)]
#[allow(dead_code, reason = "a guard is kept, not read")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl TestNamespace {
    /// For a test that can run next to others.
    pub fn new() -> TestNamespace {
        TestNamespace::with(Turn::Shared(CLUSTER_LOCK.read().unwrap_or_else(PoisonError::into_inner)), false)
    }

    /// For a test that would affect others: it runs while no other does.
    pub fn alone() -> TestNamespace {
        TestNamespace::with(Turn::Alone(CLUSTER_LOCK.write().unwrap_or_else(PoisonError::into_inner)), false)
    }

    /// For a test of the apiserver's own handling of resources: it runs while no other does, without the
    /// operator.
    pub fn without_operator() -> TestNamespace {
        TestNamespace::with(Turn::Alone(CLUSTER_LOCK.write().unwrap_or_else(PoisonError::into_inner)), true)
    }

    fn with(turn: Turn, paused: bool) -> TestNamespace {
        let cluster = cluster();
        let pause = paused.then(Pause::begin);
        // A test's name is a path such as crds::defaults, and a namespace's name is a DNS label.
        let test = thread::current().name().unwrap_or("test").replace("::", "-").replace('_', "-");
        let namespace = json!({"metadata": {"generateName": format!("{}-", &test[..test.len().min(50)])}});
        let namespace: Namespace = serde_json::from_value(namespace).unwrap();
        let api = Api::all(cluster.client.clone());
        let namespace = cluster.block_on(api.create(&PostParams::default(), &namespace)).unwrap();
        TestNamespace { name: namespace.name_any(), cluster, _pause: pause, _turn: turn }
    }

    /// Access to the objects of one kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client.clone(), &self.name)
    }

    /// Access to the objects of this document's kind.
    fn api_of(&self, document: &Value) -> Api<DynamicObject> {
        let types: TypeMeta = serde_json::from_value(document.clone()).unwrap();
        let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(types).unwrap());
        Api::namespaced_with(self.cluster.client.clone(), &self.name, &kind)
    }

    /// Server-side apply without force.
    #[track_caller]
    pub fn apply(&self, document: &Value) -> Value {
        self.try_apply(document).unwrap_or_else(|status| panic!("{document:#}: {}", status.message))
    }

    /// Applies a Secret with these keys.
    #[track_caller]
    pub fn apply_secret(&self, name: &str, data: &Value) {
        let kind =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
        self.apply(&kind);
    }

    /// Server-side apply of a document that the apiserver may reject.
    pub fn try_apply(&self, document: &Value) -> Result<Value, Box<Status>> {
        let name = document["metadata"]["name"].as_str().expect("a name");
        let parameters = PatchParams::apply("e2e");
        let api = self.api_of(document);
        answer(self.cluster.ask(async || api.patch(name, &parameters, &Patch::Apply(document)).await))
    }

    /// Creates an object as a dry run.
    pub fn try_create(&self, document: &Value) -> Result<Value, Box<Status>> {
        let object: DynamicObject = serde_json::from_value(document.clone()).unwrap();
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        answer(self.cluster.block_on(self.api_of(document).create(&parameters, &object)))
    }

    /// Replaces the spec of this document's object as a dry run.
    pub fn try_respec(&self, document: &Value) -> Result<Value, Box<Status>> {
        let name = document["metadata"]["name"].as_str().expect("a name");
        let parameters = PatchParams { dry_run: true, ..PatchParams::default() };
        let change = Patch::Json::<()>(
            serde_json::from_value(json!([{"op": "replace", "path": "/spec", "value": document["spec"]}]))
                .unwrap(),
        );
        answer(self.cluster.block_on(self.api_of(document).patch(name, &parameters, &change)))
    }

    /// Merges this status into this document's object as a dry run.
    pub fn try_status(&self, document: &Value) -> Result<Value, Box<Status>> {
        let name = document["metadata"]["name"].as_str().expect("a name");
        let parameters = PatchParams { dry_run: true, ..PatchParams::default() };
        let change = Patch::Merge(json!({"status": document["status"]}));
        answer(self.cluster.block_on(self.api_of(document).patch_status(name, &parameters, &change)))
    }

    /// Runs kubectl in this namespace.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> Outcome {
        self.cluster.kubectl(&[&["--namespace", &self.name], arguments].concat(), "")
    }

    /// Runs kubectl in this namespace with this standard input.
    #[track_caller]
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Outcome {
        self.cluster.kubectl(&[&["--namespace", &self.name], arguments].concat(), input)
    }

    /// Watches an object until `look` returns something.
    #[track_caller]
    pub fn until<K, T>(&self, name: &str, awaited: &str, look: impl FnMut(Option<&K>) -> Option<T>) -> T
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
    {
        self.cluster.block_on(watch::until(self.api::<K>(), name, awaited, look))
    }

    /// Its objects, events and logs, to be printed when the test fails.
    fn show(&self) -> String {
        let show = |arguments: &[&str]| {
            let outcome = self.kubectl(arguments);
            format!("--- kubectl {}\n{}", arguments.join(" "), outcome.text())
        };
        let mut text = show(&["describe", "replicationpeers,mirrors,deployments,pods"]);
        text += &show(&["get", "events", "--sort-by=.lastTimestamp"]);
        text +=
            &show(&["logs", "--selector=app.kubernetes.io/component=replicator", "--tail=60", "--prefix"]);
        text
    }
}

fn answer(result: kube::Result<DynamicObject>) -> Result<Value, Box<Status>> {
    match result {
        Ok(object) => Ok(serde_json::to_value(object).unwrap()),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("the apiserver does not answer: {error}"),
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("namespace {} of the test that failed:\n{}", self.name, self.show());
            return;
        }
        // Nothing waits for the end of the namespace.
        let api = Api::<Namespace>::all(self.cluster.client.clone());
        match self.cluster.ask(async || api.delete(&self.name, &DeleteParams::default()).await) {
            // The test itself may have deleted it.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            result => drop(result.unwrap()),
        }
    }
}
