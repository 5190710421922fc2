//! A Mirror's objects in the cluster: its pod, its Deployment, its events.

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Pod},
        events::v1::Event,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use walferry::{api, model::MirrorIdentity};

use super::{
    TestEnv, TestNamespace, cluster, condition,
    test_env::{clickhouse, own_postgres},
    watch,
};
use crate::support::{self, Mirror};

impl TestEnv {
    /// For a test that stops its PostgreSQL or needs these options.
    pub fn with_own_postgres(options: &[&str]) -> TestEnv {
        TestEnv::with(TestNamespace::new(), support::TestEnv::on(own_postgres(options), clickhouse()))
    }

    /// The name of a Mirror's slot and publication.
    #[track_caller]
    pub fn name_at_source(&self, name: &str) -> String {
        let mirror = cluster().block_on(self.namespace.api::<api::Mirror>().get(name)).unwrap();
        let uid = mirror.uid().unwrap().replace('-', "");
        MirrorIdentity { namespace: self.namespace.name.clone(), name: name.to_owned(), uid }.slot_name()
    }

    /// Applies only the Mirror, without its peers and Secrets.
    #[track_caller]
    pub fn apply_mirror(&self, mirror: &Mirror) -> String {
        self.namespace.apply(&mirror.mirror);
        name_of(mirror)
    }

    /// Merges a patch into a Mirror, like `kubectl patch --type merge`.
    #[track_caller]
    pub fn patch_mirror(&self, name: &str, patch: &Value) {
        let patch = Patch::Merge(patch);
        cluster()
            .block_on(self.namespace.api::<api::Mirror>().patch(name, &PatchParams::default(), &patch))
            .unwrap();
    }

    /// `kubectl annotate mirror`.
    #[track_caller]
    pub fn annotate(&self, name: &str, annotation: &str, value: &str) {
        self.patch_mirror(name, &json!({"metadata": {"annotations": {annotation: value}}}));
    }

    /// Deletes an object without waiting for its end.
    #[track_caller]
    pub fn begin_delete<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone,
        K: std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let api = self.namespace.api::<K>();
        cluster().ask(async || api.delete(name, &DeleteParams::default()).await).unwrap();
    }

    /// Waits until a Mirror is gone.
    #[track_caller]
    pub fn until_gone(&self, name: &str) {
        self.namespace.until::<api::Mirror, ()>(name, "gone", |mirror| mirror.is_none().then_some(()));
    }

    /// Waits until a condition of this type has this reason.
    #[track_caller]
    pub fn until_reason(&self, name: &str, kind: &str, reason: &str) {
        self.until(name, &format!("{kind} with {reason}"), |mirror| {
            let found = condition(&mirror.status.as_ref()?.conditions, kind)?;
            (found.reason == reason).then_some(())
        });
    }

    /// Waits for an event of this reason about a Mirror and returns its note.
    #[track_caller]
    pub fn until_event(&self, name: &str, reason: &str) -> String {
        let awaited = format!("an event {reason} of {name}");
        cluster().block_on(watch::until_any(
            self.namespace.api::<Event>(),
            &Default::default(),
            &awaited,
            |event| {
                let about = event.regarding.as_ref()?.name.as_deref()?;
                (about == name && event.reason.as_deref() == Some(reason))
                    .then(|| event.note.clone().unwrap_or_default())
            },
        ))
    }

    /// The reasons of the events about a Mirror, sorted.
    pub fn events(&self, name: &str) -> Vec<String> {
        let selector = format!("involvedObject.name={name},involvedObject.kind=Mirror");
        let columns = "custom-columns=REASON:.reason";
        let arguments = ["get", "events", "--no-headers", "-o", columns, "--field-selector", &selector];
        let outcome = self.namespace.kubectl(&arguments).exits(0);
        let mut reasons: Vec<_> = outcome.stdout.lines().map(|line| line.trim().to_owned()).collect();
        reasons.sort();
        reasons
    }

    /// Waits for a ready replicator of the Mirror that is not one of `before`, and returns its pod.
    #[track_caller]
    pub fn until_replicator(&self, name: &str, before: &[&Pod]) -> Pod {
        self.until_pod(name, "a ready replicator", |pod| {
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
            let new = before.iter().all(|old| old.uid() != pod.uid());
            (ready && new && pod.metadata.deletion_timestamp.is_none()).then(|| pod.clone())
        })
    }

    /// Watches the replicators of a Mirror until `look` returns something for one.
    #[track_caller]
    pub fn until_pod<T>(&self, name: &str, awaited: &str, look: impl FnMut(&Pod) -> Option<T>) -> T {
        let labels = format!("walferry.dev/mirror={name},app.kubernetes.io/component=replicator");
        let config = watcher::Config::default().labels(&labels);
        let awaited = format!("{awaited} of {name}");
        cluster().block_on(watch::until_any(self.namespace.api::<Pod>(), &config, &awaited, look))
    }

    /// Waits until a pod is gone.
    #[track_caller]
    pub fn until_pod_gone(&self, pod: &Pod) {
        self.namespace.until::<Pod, ()>(&pod.name_any(), "gone", |found| {
            found.is_none_or(|found| found.uid() != pod.uid()).then_some(())
        });
    }

    /// Kills a pod without grace period.
    #[track_caller]
    pub fn kill_pod(&self, pod: &Pod) {
        let now = DeleteParams::default().grace_period(0);
        cluster().block_on(self.namespace.api::<Pod>().delete(&pod.name_any(), &now)).unwrap();
    }

    /// Evicts a pod, like `kubectl drain`.
    #[track_caller]
    pub fn evict(&self, pod: &Pod) {
        let parameters = EvictParams { post_options: PostParams::default(), ..EvictParams::default() };
        cluster().block_on(self.namespace.api::<Pod>().evict(&pod.name_any(), &parameters)).unwrap();
    }

    /// The Deployment of a Mirror.
    #[track_caller]
    pub fn deployment(&self, name: &str) -> Deployment {
        let name = format!("walferry-{name}");
        cluster().block_on(self.namespace.api::<Deployment>().get(&name)).unwrap()
    }

    /// Deletes the whole namespace and waits until it is gone.
    #[track_caller]
    pub fn delete_namespace(&self) {
        let namespaces = Api::<Namespace>::all(cluster().client.clone());
        let name = self.namespace.name.as_str();
        cluster().block_on(async {
            namespaces.delete(name, &DeleteParams::default()).await.unwrap();
            watch::until(namespaces, name, "gone", |found| found.is_none().then_some(())).await;
        });
    }
}

/// A Mirror between the same peers with another name and other tables.
pub fn another(mirror: &Mirror, name: &str, tables: &[&str]) -> Mirror {
    let mut mirror = mirror.clone();
    mirror.mirror["metadata"]["name"] = name.into();
    mirror.mirror["spec"]["tables"] =
        tables.iter().map(|table| json!({"schema": "public", "name": table})).collect();
    mirror
}

/// The name of a Mirror.
fn name_of(mirror: &Mirror) -> String {
    mirror.mirror["metadata"]["name"].as_str().unwrap().to_owned()
}
